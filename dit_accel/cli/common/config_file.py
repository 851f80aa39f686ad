"""Reads options from a file: `--config FILE`, with the names of the options.

In: a YAML or JSON file, and the verb's parameters. Out: their defaults for this call. Typed options
override them.
Knows no verb: the names are those of the parsed command. Ours.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, ClassVar

import typer
import yaml

from dit_accel.cli.common.errors import BadInput, reported
from dit_accel.core.document import is_printable, shown
from dit_accel.core.files import reason_of

MOST_BYTES = 1_000_000  # bytes
_FLAGS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NULL = "tag:yaml.org,2002:null"


class _Texts(yaml.SafeLoader):
    """Reads every value as the text that is written there, but null as None.

    YAML's own types would change what is meant: `negative: no` is false, `010` is 8, `1:30` is 90.
    """

    yaml_implicit_resolvers: ClassVar = {
        first: [one for one in found if one[0] == _NULL]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """As of YAML, but a name that occurs twice is an error."""
        found = super().construct_mapping(node, deep)
        if len(found) < len(node.value):
            names = [self.construct_object(key, deep=True) for key, _ in node.value]
            twice = next(name for name in names if names.count(name) > 1)
            raise _TwiceError(f"it has {shown(twice)} twice; accepted: once")
        return found


class _TwiceError(Exception):
    """A name occurs twice in a file. Of its values, YAML would use the last."""


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
    source = f"--config is {str(path)!r}"
    names = {
        option.lstrip("-").replace("_", "-"): one
        for one in parameters
        for option in (*one.opts, one.name)
        if one.name not in ("config", "help")
    }
    found = {}
    for name, value in _read(path, source).items():
        one = names.get(str(name).replace("_", "-"))
        if one is None:
            near = difflib.get_close_matches(str(name), names, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise BadInput(f"{source}: it has {shown(name)}, which is no option of this verb{hint}")
        if one.name in found:
            raise BadInput(f"{source}: it has {shown(name)} under two names; accepted: one")
        if value is not None:
            found[one.name] = _value(value, f"{source}: {name}", one)
    return found


def _read(path: Path, source: str) -> dict[Any, Any]:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise BadInput(f"{source}: it has more than {MOST_BYTES} bytes")
        content = yaml.load(path.read_text(encoding="utf-8-sig"), _Texts)
    except OSError as error:
        raise BadInput(f"{source}: {reason_of(error)}") from error
    except _TwiceError as error:
        raise BadInput(f"{source}: {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"{source}, which is neither YAML nor JSON: {error}") from error
    if not isinstance(content, dict):
        raise BadInput(f"{source}; accepted: a file of names and values, such as `steps: 30`")
    return content


def _value(value: Any, where: str, parameter: Any) -> Any:
    """The value as it would be typed: a text, which the option's type parses; a flag is true or
    false."""
    several = getattr(parameter, "multiple", False)
    if several:
        entries = value if isinstance(value, list) else [value]
        return [_value(entry, where, None) for entry in entries]
    if getattr(parameter, "is_flag", False):
        if not isinstance(value, str) or value.lower() not in _FLAGS:
            raise BadInput(f"{where} is {shown(value)}; accepted: true or false")
        return _FLAGS[value.lower()]
    if not isinstance(value, str) or not is_printable(value):
        raise BadInput(f"{where} is {shown(value)}; accepted: one value")
    return value
