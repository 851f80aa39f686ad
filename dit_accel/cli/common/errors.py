"""How a command ends when it cannot go on: one clean message on stderr, and an exit code.

2: the input is wrong, and another one would do. 1: the input is right, but the run failed.
130: the user pressed Ctrl-C.
"""

from __future__ import annotations

import contextlib
import re
import traceback
from collections.abc import Iterator

import typer
from rich.console import Console

from dit_accel.models.loading import ModelError, ModelLoadError

INTERRUPTED = "no half-written file is left"
_REWORDED = (  # how the library names an argument, and the option that it came from
    (r"^(model|device)(?= is )", r"--\1"),
    (r"\bwithout a model\b", "without --model"),
    (r"\ballow_(trim|unpaired)=True", r"--allow-\1"),
    (r"\ballow_mixed=True", "--allow-mixed-codecs"),
    (r"\blpips_weights\b", "--lpips-weights"),
)


def as_option(message: str) -> str:
    """The library's message with the name of an argument as the option that it was given by."""
    for argument, option in _REWORDED:
        message = re.sub(argument, option, message)
    return message


@contextlib.contextmanager
def reported(*, verbose: bool = False, interrupted: str = INTERRUPTED) -> Iterator[None]:
    """Turn whatever ends the body into a message and an exit code.

    Args:
        interrupted: what becomes of the work when Ctrl-C is pressed.
        verbose: also print the traceback of an error that nobody foresaw.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        say(f"stopped by Ctrl-C; {interrupted}", style="yellow")
        raise typer.Exit(130) from interrupt
    except CommandError as error:
        say(str(error))
        raise typer.Exit(error.exit_code) from error
    except (ModelError, ModelLoadError) as error:
        say(as_option(str(error)))
        raise typer.Exit(2 if isinstance(error, ModelError) else 1) from error
    except Exception as error:
        if verbose:
            traceback.print_exc()
        say(_unforeseen(error, verbose))
        raise typer.Exit(1) from error


def say(message: str, *, style: str = "bold red") -> None:
    """One message on stderr, never wrapped or coloured inside, so that it can be searched."""
    console = Console(stderr=True)
    label = {"bold red": "error", "yellow": "note", "cyan": "plan"}[style]
    console.print(f"[{style}]{label}:[/] ", end="", soft_wrap=True)
    console.print(message, soft_wrap=True, markup=False, highlight=False)


def _unforeseen(error: Exception, verbose: bool) -> str:
    text = f"{type(error).__name__}: {error}".strip()
    if _is_out_of_memory(error):
        first_line = text.splitlines()[0]
        return f"out of memory; try a smaller --height, --width or --frames ({first_line})"
    return text if verbose else f"{text} (--verbose shows where)"


def _is_out_of_memory(error: Exception) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    return (
        isinstance(error, MemoryError)
        or "OutOfMemoryError" in names
        or "can't allocate memory" in str(error)
    )


class CommandError(Exception):
    """An end that the user is told of in words, without a traceback."""

    exit_code = 1


class BadInput(CommandError):
    """An option or argument that is not accepted: names it, its value, and what is."""

    exit_code = 2


class RunFailed(CommandError):
    """The input was right, and yet it went wrong."""
