"""Ends a command that cannot go on, with one message on stderr and an exit code.

In: an exception. Out: the message, and 2 (the input is wrong), 1 (the input is right, but the run
failed), 130 (Ctrl-C) or 143 (SIGTERM, from `kill` or a job scheduler).
Knows which option sets which argument of the library (`OPTIONS`). The library knows no option.
Ours.
"""

from __future__ import annotations

import contextlib
import re
import signal
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import typer

from dit_accel.core.document import visible
from dit_accel.core.files import reason_of
from dit_accel.models.folder import ModelError, ModelLoadError

INTERRUPTED = "no half-written file is left"
MOST_SIGNS = 400  # shown of an unexpected error
_COLOURS = {"error": "bold red", "note": "yellow", "plan": "cyan", "memory": "blue"}
RESUMABLE = "what is done is saved; run the same command again to continue"


def flag(name: str) -> str:
    """An option as it is typed, by its name in Python."""
    return f"--{name.replace('_', '-')}"


# Options of the command, by the arguments of the library.
_SAME = (
    "model device dtype steps guidance seed height width fps layout alpha background quality "
    "speedup threshold site accel profile reposition work batch probes speedups minutes metrics "
    "methods lora offload compile attention_backend scheduler quantize vae_tiling revision variant "
    "cache_memory lpips_weights allow_trim allow_mixed_codecs allow_unpaired"
)
OPTIONS = {name: flag(name) for name in _SAME.split()} | {
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
# Names with an underscore are always arguments. The others are also words. They are
# arguments before a value, at the beginning of a message, and in lists ("with quality or site").
_ARGUMENT = re.compile(
    rf"\b(?P<value>{_NAMES})=(?P<of>[\w.]+)\b(?!\()"
    rf"|\b(?P<sure>{'|'.join(name for name in OPTIONS if '_' in name)})\b"
    rf"|(?:{_BEFORE}|(?<=another ))(?P<name>{_NAMES})(?={_AFTER})"
)


def as_option(message: str) -> str:
    """The library's message, with options instead of arguments.

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
    """Turn any error or signal in the body into a message and an exit code.

    Args:
        verbose: also print the traceback of an unexpected error.
        interrupted: what happens to the work at Ctrl-C or SIGTERM, as text.
    """
    try:
        with _terminable():
            yield
    except Terminated as end:
        say(f"stopped by SIGTERM; {interrupted}", kind="note")
        raise typer.Exit(128 + signal.SIGTERM) from end
    except KeyboardInterrupt as interrupt:
        say(f"stopped by Ctrl-C; {interrupted}", kind="note")
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
    """Let SIGTERM end the body as Ctrl-C does: open files are closed, and scratch files removed. In
    a thread, which gets no signals, nothing changes."""

    def end(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the cleanup is not interrupted again
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
def refused(
    prefix: str = "", kinds: tuple[type[Exception], ...] = (ValueError,),
    text_of: Callable[[str], str] = as_option,
) -> Iterator[None]:  # fmt: skip
    """Turn an error of the library into an error of the input, with options instead of arguments.

    Args:
        prefix: the option and its value, if the message does not name them.
        kinds: the kinds of errors.
        text_of: what becomes of the error's message.

    Raises:
        BadInput: the body raised one of them.
    """
    try:
        yield
    except kinds as error:
        raise BadInput(prefix + text_of(str(error))) from error


def unreadable(
    prefix: str, kinds: tuple[type[Exception], ...] = (ValueError, OSError)
) -> AbstractContextManager[None]:
    """As `refused`, for an error about the content of a file.

    The names in its message are those of the file's fields, so they are not replaced by options.
    """
    return refused(prefix, kinds, text_of=str)


def say(message: str, *, kind: str = "error") -> None:
    """Print one message on stderr, after its kind (see `_COLOURS`). It is not wrapped, so that it
    can be searched."""
    from rich.console import Console
    from rich.text import Text

    text = Text.assemble((f"{kind}:", _COLOURS[kind]), f" {visible(message)}")
    Console(stderr=True).print(text, soft_wrap=True)


def _unexpected(error: Exception, verbose: bool) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        return where + reason_of(error)
    text = f"{type(error).__name__}: {error}".strip()
    # torch is not imported here, so its error is recognised by name
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"MemoryError", "OutOfMemoryError"} or "can't allocate memory" in str(error):
        first_line = text.splitlines()[0]
        return f"out of memory; try a smaller --height, --width or --frames ({first_line})"
    # A compiler's error contains all of its output. An import's error ends with its reason.
    first, *rest = [line.strip() for line in text.splitlines() if line.strip()]
    if first.endswith(":") and rest:
        first = f"{first} {rest[-1]}"
    first = textwrap.shorten(first, MOST_SIGNS, placeholder=" ...")
    return text if verbose else f"{first} (--verbose shows where)"


class Terminated(BaseException):
    """SIGTERM was received."""


class CommandError(Exception):
    """An error that is reported as a message, without a traceback."""

    exit_code = 1


class BadInput(CommandError):
    """An option or argument that is not accepted. The message names it, its value, and what is
    accepted.

    All functions of the command that refuse a value raise this error.
    """

    exit_code = 2


class RunFailed(CommandError):
    """The input was right, but the run failed."""
