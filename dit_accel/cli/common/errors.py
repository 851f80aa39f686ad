"""How a command ends when it cannot go on: one message on stderr, and an exit code.

In: an exception. Out: the message and 2 (the input is wrong, another one would do), 1 (the input is
right, but the run failed), 130 (Ctrl-C) or 143 (SIGTERM, as of `kill` and of job schedulers).
Knows which option gives which argument of the library (`OPTIONS`); the library knows no option.
Ours.
"""

from __future__ import annotations

import contextlib
import re
import signal
import textwrap
import threading
import traceback
from collections.abc import Iterator

import typer

from dit_accel.core.files import reason_of
from dit_accel.models.loading import ModelError, ModelLoadError

INTERRUPTED = "no half-written file is left"
MOST_SIGNS = 400  # of an unexpected error
RESUMABLE = "what is done is saved; run the same command again to continue"

# Argument of the library -> option of the command.
_SAME = (
    "model device dtype steps guidance seed height width fps layout alpha background quality "
    "speedup threshold site accel profile reposition work batch probes speedups minutes metrics "
    "methods lora offload compile attention_backend scheduler quantize vae_tiling revision variant "
    "cache_memory lpips_weights allow_trim allow_mixed_codecs allow_unpaired"
)
OPTIONS = {name: f"--{name.replace('_', '-')}" for name in _SAME.split()} | {
    "isolate": "--isolation",
    "num_frames": "--frames",
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance",
    "guidance_scale_2": "--guidance-2",
    "guidance_2": "--guidance-2",
    "negative_prompt": "--negative",
    "guard": "--no-guard",
    "learn": "--no-learn",
    "no_learn": "--no-learn",
    "force": "--force-profile",
    "static": "--deterministic",
    "allow_mixed": "--allow-mixed-codecs",
}
_PHRASES = {"without a model": "without --model", "learn=True": "no --no-learn"}
_NAMES = "|".join(OPTIONS)
_BEFORE = "|".join(f"(?<={text})" for text in ("^", "with ", "without ", "pass ", " or ", " and "))
_AFTER = r" is | are | has | with| without| alone| and | or | \(|:|,|;|$"
# Names with an underscore are arguments wherever they stand. The others are words as well: they are
# arguments where a value follows, where a message begins, and in lists ("with quality or site").
_ARGUMENT = re.compile(
    rf"\b(?P<value>{_NAMES})=(?P<of>[\w.]+)\b(?!\()"
    rf"|\b(?P<sure>{'|'.join(name for name in OPTIONS if '_' in name)})\b"
    rf"|(?:{_BEFORE}|(?<=another ))(?P<name>{_NAMES})(?={_AFTER})"
)


def as_option(message: str) -> str:
    """The library's message with options in the place of arguments.

    Example:
        >>> as_option("quality=30 and site=block are given; accepted: with profile or cache_memory")
        '--quality 30 and --site block are given; accepted: with --profile or --cache-memory'
    """

    def option(found: re.Match[str]) -> str:
        name, value = found["value"], found["of"]
        if name is None:
            return OPTIONS[found["sure"] or found["name"]]
        return OPTIONS[name] if value == "True" else f"{OPTIONS[name]} {value}"

    for phrase, words in _PHRASES.items():
        message = message.replace(phrase, words)
    return _ARGUMENT.sub(option, message)


@contextlib.contextmanager
def reported(*, verbose: bool = False, interrupted: str = INTERRUPTED) -> Iterator[None]:
    """Turn whatever ends the body into a message and an exit code.

    Args:
        verbose: also print the traceback of an unexpected error.
        interrupted: what becomes of the work when Ctrl-C is pressed, or SIGTERM comes.
    """
    try:
        with _terminable():
            yield
    except Terminated as end:
        say(f"stopped by SIGTERM; {interrupted}", style="yellow")
        raise typer.Exit(128 + signal.SIGTERM) from end
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
        say(_unexpected(error, verbose))
        raise typer.Exit(1) from error


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the body as Ctrl-C does: what is open is closed, and scratch files are removed.
    In a thread, which gets no signals, nothing changes."""

    def end(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the way out is not interrupted again
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


@contextlib.contextmanager
def refused(prefix: str = "", kinds: tuple[type[Exception], ...] = (ValueError,)) -> Iterator[None]:
    """Turn an error of the library into one of the input, with options for arguments.

    Args:
        prefix: the option and its value, where the message does not name them.
        kinds: of errors.

    Raises:
        BadInput: the body raised one of them.
    """
    try:
        yield
    except kinds as error:
        raise BadInput(prefix + as_option(str(error))) from error


def say(message: str, *, style: str = "bold red") -> None:
    """One message on stderr. It is not wrapped and has one colour, so that it can be searched."""
    from rich.console import Console

    console = Console(stderr=True)
    label = {"bold red": "error", "yellow": "note", "cyan": "plan", "blue": "memory"}[style]
    console.print(f"[{style}]{label}:[/] ", end="", soft_wrap=True)
    console.print(message, soft_wrap=True, markup=False, highlight=False)


def _unexpected(error: Exception, verbose: bool) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        return where + reason_of(error)
    text = f"{type(error).__name__}: {error}".strip()
    # torch is not imported here, so its error is known by name only
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"MemoryError", "OutOfMemoryError"} or "can't allocate memory" in str(error):
        first_line = text.splitlines()[0]
        return f"out of memory; try a smaller --height, --width or --frames ({first_line})"
    # a compiler's error has all of its output
    first = textwrap.shorten(text.splitlines()[0], MOST_SIGNS, placeholder=" ...")
    return text if verbose else f"{first} (--verbose shows where)"


class Terminated(BaseException):
    """SIGTERM came."""


class CommandError(Exception):
    """An end that is reported in words, without a traceback."""

    exit_code = 1


class BadInput(CommandError):
    """An option or argument that is not accepted. Names it, its value, and what is accepted.

    Every function of the command that refuses something raises it.
    """

    exit_code = 2


class RunFailed(CommandError):
    """The input was right, and yet the run failed."""
