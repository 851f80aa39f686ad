"""A verb of the command from a dataclass: each field is an option.

In: a dataclass of `options.option` fields, and a function of one such object. Out: the function
that typer registers.
Knows how typer reads a signature, and how a verb ends; knows no option. Ours: so an option is
written down once, and reaches the code as a typed attribute.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, get_type_hints

from dit_accel.cli.common.errors import INTERRUPTED, reported
from dit_accel.cli.common.options import PANELS

Options = TypeVar("Options")
Body = Callable[[Options], None]


def verb(
    kind: type[Options], *, interrupted: str = INTERRUPTED
) -> Callable[[Body[Options]], Callable[..., None]]:
    """Make a verb of a function of its options.

    Args:
        kind: a dataclass of options.
        interrupted: what becomes of the work when Ctrl-C is pressed.
    """
    parameters = _parameters(kind)

    def decorate(body: Body[Options]) -> Callable[..., None]:
        def command(**given: Any) -> None:
            with reported(verbose=given.get("verbose", False), interrupted=interrupted):
                body(kind(**given))

        command.__name__, command.__doc__ = body.__name__, body.__doc__
        # typer reads these two instead of the code
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        return command

    return decorate


def _parameters(kind: Any) -> list[inspect.Parameter]:
    """A parameter a field, in the order of the panels of the help."""
    hints, empty = get_type_hints(kind), inspect.Parameter.empty
    parameters = []
    for one in sorted(dataclasses.fields(kind), key=_panel):
        annotation: Any = Annotated[hints[one.name], _typer(one)]
        default = empty if one.default is dataclasses.MISSING else one.default
        kind_of = inspect.Parameter.KEYWORD_ONLY
        parameters.append(
            inspect.Parameter(one.name, kind_of, default=default, annotation=annotation)
        )
    return parameters


def _typer(field: dataclasses.Field[Any]) -> Any:
    """Typer's description of an option; a flag that is off by default has no `--no-` form."""
    info = field.metadata["typer"]
    if field.default is False and info.default is ...:  # typer keeps the first flag as the default
        info.param_decls = (f"--{field.name.replace('_', '-')}",)
    return info


def _panel(field: dataclasses.Field[Any]) -> int:
    """The place of an option's panel; what has none comes first."""
    panel = field.metadata["typer"].rich_help_panel
    return PANELS.index(panel) + 1 if panel in PANELS else 0
