"""Parses JSON and YAML to plain mappings, lists and scalars, at bounded cost.

Bytes come in; plain data goes out. YAML is limited to the content that JSON can express: no
aliases, tags or second documents. Scalars are those of YAML 1.2, so `no` and `2001-01-01` are text.
The data is made from parser events, so depth and size are checked before anything is made.
Duplicate keys are refused in both formats. It knows no field of a layout. Source: ours, on PyYAML's
parser.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from dit_accel.layout.errors import LayoutError, shown

LARGEST_BYTES = 1 << 19  # largest size of a file
DEEPEST = 16  # levels of nesting
_WHOLE = re.compile(r"[-+]?[0-9]{1,40}")
_REAL = re.compile(r"[-+]?(\.[0-9]{1,40}|[0-9]{1,40}(\.[0-9]{0,40})?)([eE][-+]?[0-9]{1,5})?")
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
}


def document(content: bytes, *, json_only: bool) -> Any:
    """The data of a file; `json_only`: JSON, else YAML.

    Raises:
        LayoutError: the content is too large or nested too deeply, not UTF-8, or not of the format.
    """
    if len(content) > LARGEST_BYTES:
        raise LayoutError("", f"has {len(content)} bytes or more; accepted: up to {LARGEST_BYTES}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LayoutError("", f"is not UTF-8 at byte {error.start}; accepted: UTF-8") from error
    return _from_json(text) if json_only else _from_yaml(text)


def _from_json(text: str) -> Any:
    try:
        found = json.loads(text, object_pairs_hook=_mapping)
    except RecursionError as error:
        raise LayoutError("", f"is nested deeper than {DEEPEST}") from error
    except LayoutError:
        raise
    except ValueError as error:  # also raised for a number with thousands of digits
        raise LayoutError("", f"is not JSON: {error}") from error
    _check_depth(found, DEEPEST)
    return found


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise LayoutError("", f"has the key {shown(key)} twice in one mapping")
        found[key] = value
    return found


def _check_depth(value: Any, levels: int) -> None:
    if not isinstance(value, (dict, list)):
        return
    if not levels:
        raise LayoutError("", f"is nested deeper than {DEEPEST}")
    for part in value.values() if isinstance(value, dict) else value:
        _check_depth(part, levels - 1)


def _from_yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise LayoutError(
            "", "is YAML, which needs PyYAML: `pip install pyyaml`, or write it as JSON"
        ) from error
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's parser, if it is built in
    try:
        events = iter(yaml.parse(text, Loader=loader))
        return _Builder(yaml, events).document()
    except (yaml.YAMLError, ValueError, RecursionError, IndexError) as error:
        # not only YAMLError: the parser raises a ValueError at an invalid escape
        raise LayoutError("", f"is not YAML: {_one_line(error)}") from error


class _Builder:
    """Makes plain data from YAML events, at most `DEEPEST` levels deep."""

    def __init__(self, yaml: Any, events: Iterator[Any]) -> None:
        self.yaml, self.events = yaml, events

    def document(self) -> Any:
        next(self.events)  # the stream's start
        if isinstance(next(self.events), self.yaml.StreamEndEvent):
            return None
        found = self._value(next(self.events), DEEPEST)
        next(self.events)  # the document's end
        if not isinstance(next(self.events), self.yaml.StreamEndEvent):
            raise LayoutError("", "has a second document; accepted: one")
        return found

    def _value(self, event: Any, levels: int) -> Any:
        yaml = self.yaml
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise LayoutError("", f"has an anchor or alias{_place(event)}; accepted: none")
        if getattr(event, "tag", None) not in (None, "!"):
            raise LayoutError("", f"has the tag {shown(event.tag)}{_place(event)}; accepted: none")
        if isinstance(event, yaml.ScalarEvent):
            plain = event.implicit[0] and event.style in (None, "")
            return _scalar(event.value) if plain else event.value
        if not levels:
            raise LayoutError("", f"is nested deeper than {DEEPEST}{_place(event)}")
        if isinstance(event, yaml.SequenceStartEvent):
            return [self._value(part, levels - 1) for part in self._until(yaml.SequenceEndEvent)]
        return _mapping([self._pair(key, levels) for key in self._until(yaml.MappingEndEvent)])

    def _pair(self, event: Any, levels: int) -> tuple[str, Any]:
        if not isinstance(event, self.yaml.ScalarEvent):
            raise LayoutError("", f"has a key that is not a text{_place(event)}; accepted: texts")
        self._value(event, levels)  # refuses anchors and tags
        return event.value, self._value(next(self.events), levels - 1)

    def _until(self, end: type) -> Iterator[Any]:
        while not isinstance(event := next(self.events), end):
            yield event


def _scalar(text: str) -> Any:
    """A plain scalar in the core schema of YAML 1.2, without octal and hexadecimal numbers."""
    if text in _WORDS:
        return _WORDS[text]
    if _WHOLE.fullmatch(text):
        return int(text)
    return float(text) if _REAL.fullmatch(text) else text


def _place(event: Any) -> str:
    mark = getattr(event, "start_mark", None)
    return f" in line {mark.line + 1}" if mark is not None else ""


def _one_line(error: Exception) -> str:
    """The first line of an error, and its place in the file."""
    problem = getattr(error, "problem", None) or str(error).splitlines()[0] if str(error) else ""
    mark = getattr(error, "problem_mark", None)
    place = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
    return f"{ascii(str(problem))[1:-1][:160]}{place}"
