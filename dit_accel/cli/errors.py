"""How a command ends when it cannot go on: one clean message on stderr, and an exit code.

2: the input is wrong, and another one would do. 1: the input is right, but the run failed.
130: the user pressed Ctrl-C.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator

import typer
from rich.console import Console

from dit_accel.errors import BadInput, CommandError, RunFailed

INTERRUPTED = "no half-written file is left"


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


__all__ = ["BadInput", "CommandError", "RunFailed", "reported", "say"]
