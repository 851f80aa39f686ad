"""Reads options from a file: `--config FILE`, with the names of the options.

In: a YAML or JSON file, and the verb's parameters. Out: their defaults for this call. Typed options
override them.
Knows no verb: the names are those of the parsed command. Ours.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import typer
import yaml

from dit_accel.cli.common.errors import BadInput, reported
from dit_accel.core.document import is_printable
from dit_accel.core.files import reason_of

MOST_BYTES = 1_000_000  # bytes


def use(ctx: typer.Context, path: Path | None) -> Path | None:
    """The callback of `--config`; it runs before the other options are read."""
    if path is not None and not ctx.resilient_parsing:
        with reported():
            ctx.default_map = defaults_of(path, ctx.command.params)
    return path


def defaults_of(path: Path, parameters: Any) -> dict[str, Any]:
    """The values of a file, by the names of parameters.

    Raises:
        BadInput: the file cannot be read, or has a name that is not an option of this verb; the
            message has it.
    """
    shown = f"--config is {str(path)!r}"
    names = {
        option.lstrip("-").replace("_", "-"): one
        for one in parameters
        for option in (*one.opts, one.name)
        if one.name not in ("config", "help")
    }
    found = {}
    for name, value in _read(path, shown).items():
        one = names.get(str(name).replace("_", "-"))
        if one is None:
            near = difflib.get_close_matches(str(name), names, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise BadInput(f"{shown}: it has {name!r:.80}, which is no option of this verb{hint}")
        if value is not None:
            found[one.name] = _value(value, f"{shown}: {name}", one)
    return found


def _read(path: Path, shown: str) -> dict[Any, Any]:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise BadInput(f"{shown}: it has more than {MOST_BYTES} bytes")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{shown}: {reason_of(error)}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"{shown}, which is neither YAML nor JSON: {error}") from error
    if not isinstance(content, dict):
        raise BadInput(f"{shown}; accepted: a file of names and values, such as `steps: 30`")
    return content


def _value(value: Any, where: str, parameter: Any) -> Any:
    """The value as if it was typed: a text, which the option's type parses; a flag is true or
    false."""
    several = getattr(parameter, "multiple", False)
    if several:
        entries = value if isinstance(value, list) else [value]
        return [_value(entry, where, None) for entry in entries]
    if getattr(parameter, "is_flag", False):
        if not isinstance(value, bool):
            raise BadInput(f"{where} is {value!r:.80}; accepted: true or false")
        return value
    if isinstance(value, (dict, list)) or not is_printable(str(value)):
        raise BadInput(f"{where} is {value!r:.80}; accepted: one value")
    return str(value)
