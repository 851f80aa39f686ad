"""Reads a file of prompts: JSON lines, plain text, or VBench's own list.

In: a path. Out: prompts with ids; or a `ValueError` that names file and line.
- `.jsonl`: one object in each line: `prompt`, and optionally `id` and `negative`.
- `.txt`: one prompt in each line.
- `.json`: VBench's `VBench_full_info.json`: objects with `prompt_en`; other keys are ignored.
Does not know what a prompt means.
Source: ours; VBench, arXiv 2311.17982.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit_accel.core.document import DocumentError, is_printable, parse_json, shown

KEYS = ("id", "prompt", "negative")
ID_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


@dataclass(frozen=True)
class EvaluationPrompt:
    """One prompt. Its clips are paired by `id`, never by its place in the file."""

    id: str
    prompt: str
    negative: str | None = None


def read_prompts(path: Path) -> tuple[EvaluationPrompt, ...]:
    """All prompts of a file, in its order. A prompt that occurs twice without an id is used once.

    Raises:
        ValueError: the file has an error; the message names the file, the line and the error.
        OSError: the file cannot be read.
    """
    if path.suffix not in _READERS:
        accepted = ", ".join(_READERS)
        raise ValueError(f"{path} ends in {path.suffix!r}; accepted: {accepted}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error
    found: dict[str, EvaluationPrompt] = {}
    for where, entry in _READERS[path.suffix](path, text):
        prompt = _prompt(where, entry)
        known = found.setdefault(prompt.id, prompt)
        if known != prompt:
            raise ValueError(f"{where}: id is {prompt.id!r}, which an earlier prompt has already")
    if not found:
        raise ValueError(f"{path} has no prompt; accepted: at least one")
    return tuple(found.values())


def _prompt(where: str, entry: Any) -> EvaluationPrompt:
    if not isinstance(entry, dict) or set(entry) - set(KEYS) or "prompt" not in entry:
        raise ValueError(
            f"{where}: {_short(entry)}; accepted: an object with prompt, and optional id, negative"
        )
    for key, value in entry.items():
        if not isinstance(value, str) or not (value.strip() or key == "negative"):
            raise ValueError(f"{where}: {key} is {_short(value)}; accepted: a text")
        if not is_printable(value):
            raise ValueError(
                f"{where}: {key} is {_short(value)}; accepted: a text without NUL and halves of "
                "surrogate pairs"
            )
    content = json.dumps([entry["prompt"], entry.get("negative")])
    name = entry.get("id") or hashlib.sha256(content.encode()).hexdigest()[:12]
    if not re.fullmatch(ID_PATTERN, name):
        raise ValueError(
            f"{where}: id is {_short(name)}; accepted: up to 64 letters, digits, dots, - and _"
        )
    return EvaluationPrompt(name, entry["prompt"], entry.get("negative"))


def _json_lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in _lines(text):
        try:
            yield f"{path}, line {number}", parse_json(line)
        except DocumentError as error:
            reason = str(error).removeprefix("is ")
            raise ValueError(f"{path}, line {number}: {reason}") from error


def _plain(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in _lines(text):
        yield f"{path}, line {number}", {"prompt": line.strip()}


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not empty. Lines end only at \\n and \\r\\n: a prompt may have other
    characters at which `str.splitlines` divides, such as U+2028."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line


def _vbench(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    try:
        entries = parse_json(text)
    except DocumentError as error:
        raise ValueError(f"{path} {error}") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path} holds {_short(entries)}; accepted: a list of objects")
    for number, entry in enumerate(entries, 1):
        where = f"{path}, entry {number}"
        if not isinstance(entry, dict) or "prompt_en" not in entry:
            raise ValueError(f"{where}: {_short(entry)}; accepted: an object with prompt_en")
        yield where, {"prompt": entry["prompt_en"]}


_READERS = {".jsonl": _json_lines, ".txt": _plain, ".json": _vbench}


def _short(value: Any) -> str:
    """The entry as it is in the file, in ASCII and shortened."""
    text = ascii(value) if len(str(value)) < 1000 else shown(value)
    return text if len(text) <= 80 else text[:77] + "..."
