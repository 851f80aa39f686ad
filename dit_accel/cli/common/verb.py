"""Makes a verb of the command from a dataclass: each field is an option.

In: a dataclass of `options.option` fields, and a function of one such object. Out: the function
that typer registers.
Knows how typer reads a signature, which values no option accepts (numbers that are not finite, text
that cannot be written), and how a verb ends. Knows no option. Ours: an option is written once, and
the code gets it as a typed attribute.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import typer
from rich.console import Console
from typer.core import TyperArgument, TyperCommand, TyperGroup
from typer.models import ArgumentInfo

from dit_accel.cli.common import config_file
from dit_accel.cli.common.errors import INTERRUPTED, BadInput, flag, reported
from dit_accel.cli.common.options import MACHINE, PANELS
from dit_accel.core.document import is_printable, shown

Options = TypeVar("Options")
Body = Callable[[Options], None]
LARGEST = 2**63  # whole numbers stay below it
PANELS_WIDTH = 80  # columns; in fewer, the panels of the help cut the names of options
_CONFIG = inspect.Parameter(  # an option of every verb; its values are defaults of the others
    "config", inspect.Parameter.KEYWORD_ONLY, default=None,
    annotation=Annotated[
        Path | None,
        typer.Option(
            help="A YAML or JSON file of options; the command line overrides it.",
            rich_help_panel=MACHINE, metavar="FILE", callback=config_file.use, is_eager=True,
        ),
    ],
)  # fmt: skip
NUMBERS = {int: "a whole number", float: "a number"}
_OLDER_KINDS = {  # names of an option's type before typer 0.27
    "integer": int, "integer range": int, "float": float, "float range": float,
}  # fmt: skip
METAVARS = {bool: "", int: "N", float: "X", str: "TEXT", Path: "PATH"}  # in the help


class Verb(TyperCommand):
    """A verb whose help names values instead of Python types, and whose errors name the value."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for one in self.params:
            older = getattr(one, "type", None)
            kind = getattr(getattr(one, "type_descriptor", None), "annotation", None)
            kind = kind or _OLDER_KINDS.get(getattr(older, "name", ""))
            if kind in NUMBERS:
                least = getattr(one, "min", getattr(older, "min", None))
                accepted = NUMBERS[kind] + ("" if least is None else f", at least {least:g}")
                named = functools.partial(_process_number, one, accepted, one.process_value)
                one.process_value = named  # type: ignore[method-assign]
            if isinstance(one, TyperArgument):  # its name is enough
                one.display_type_rich = lambda ctx: ""  # type: ignore[method-assign]

    def get_help_option(self, ctx: Any) -> Any:
        """`-h`, `--help`: without a type."""
        return _plain(super().get_help_option(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The help in panels; in a narrow terminal as a plain list, which cuts no name."""
        if Console().width < PANELS_WIDTH:
            self.rich_markup_mode = None
        super().format_help(ctx, formatter)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """`[OPTIONS] RUN [PROMPT]`: brackets are around what may be left out, alone."""
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]


def _process_number(
    option: Any, accepted: str, process: Callable[[Any, Any], Any], ctx: Any, value: Any
) -> Any:
    """The number of an option. The error for another text names option, value and what is
    accepted."""
    try:
        return process(ctx, value)
    except typer.BadParameter as error:
        if type(error) is not typer.BadParameter:  # the option is missing
            raise
        with reported():
            raise BadInput(f"{option.opts[0]} is {shown(value)}; accepted: {accepted}") from error


class Verbs(TyperGroup):
    """A group of verbs, with the same help."""

    def get_params(self, ctx: Any) -> Any:
        """Shell completion's options, without a type."""
        found = super().get_params(ctx)
        for one in found:
            if str(one.name).endswith("_completion"):
                _plain(one)
        return found

    def get_help_option(self, ctx: Any) -> Any:
        """See `Verb`."""
        return _plain(super().get_help_option(ctx))


def _plain(option: Any) -> Any:
    if option is not None:
        option.metavar = ""
    return option


def verb(
    kind: type[Options], *, interrupted: str = INTERRUPTED
) -> Callable[[Body[Options]], Callable[..., None]]:
    """Make a verb of a function of its options.

    Args:
        kind: a dataclass of options.
        interrupted: what happens to the work at Ctrl-C, as text.
    """
    parameters = [*_parameters(kind), _CONFIG]

    def decorate(body: Body[Options]) -> Callable[..., None]:
        def command(config: Path | None = None, **given: Any) -> None:
            with reported(verbose=given.get("verbose", False), interrupted=interrupted):
                options = kind(**given)
                _check_values(options)
                body(options)

        command.__name__, command.__doc__ = body.__name__, body.__doc__
        # typer reads these two instead of the code
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        return command

    return decorate


def _parameters(kind: Any) -> list[inspect.Parameter]:
    """A parameter for each field, in the order of the help's panels."""
    hints, empty = get_type_hints(kind), inspect.Parameter.empty
    parameters = []
    for one in sorted(dataclasses.fields(kind), key=_panel):
        annotation: Any = Annotated[hints[one.name], _typer(one, hints[one.name])]
        default = empty if one.default is dataclasses.MISSING else one.default
        kind_of = inspect.Parameter.KEYWORD_ONLY
        parameters.append(
            inspect.Parameter(one.name, kind_of, default=default, annotation=annotation)
        )
    return parameters


def _typer(field: dataclasses.Field[Any], hint: Any) -> Any:
    """Typer's description of an option; a flag that is off by default has no `--no-` form."""
    info = field.metadata["typer"]
    if info.metavar is None:
        info.metavar = METAVARS.get(_kind(hint))
    if field.default is False and info.default is ...:  # typer keeps the first flag as the default
        info.param_decls = (flag(field.name),)
    return info


def _kind(hint: Any) -> Any:
    """The type of an optional option: for `int | None`, `int`."""
    if get_origin(hint) in (Union, types.UnionType):
        return next(kind for kind in get_args(hint) if kind is not type(None))
    return hint


def _check_values(options: Any) -> None:
    """Refuse values that no option of any verb accepts."""
    for field in dataclasses.fields(options):
        for value in _single(getattr(options, field.name)):
            accepted = _refusal(value)
            if accepted is not None:
                named = _name(field)
                raise BadInput(f"{named} is {shown(_text(value))}; accepted: {accepted}")


def _refusal(value: Any) -> str | None:
    """What is accepted instead of a value; None if the value may be right."""
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    if isinstance(value, int) and not abs(value) < LARGEST:
        return "a whole number below 2**63"
    if isinstance(value, (str, Path)) and not is_printable(str(value)):
        return "text without NUL and bytes that are not UTF-8"
    return None


def _single(value: Any) -> Iterator[Any]:
    yield from value if isinstance(value, (list, tuple)) else (value,)


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _name(field: dataclasses.Field[Any]) -> str:
    """An option as it is typed; an argument by its name in the help."""
    info = field.metadata["typer"]
    flags = [one for one in info.param_decls or () if one.startswith("--")]
    if isinstance(info, ArgumentInfo):
        return str(info.metavar)
    return flags[0].split("/")[0] if flags else flag(field.name)


def _panel(field: dataclasses.Field[Any]) -> int:
    """The place of an option's panel. Options without a panel come first."""
    panel = field.metadata["typer"].rich_help_panel
    return PANELS.index(panel) + 1 if panel in PANELS else 0
