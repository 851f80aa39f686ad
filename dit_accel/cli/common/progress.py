"""Shows progress on stderr: of a calibration, of an evaluation and of one run.

In: events when pieces begin and end. Out: a bar with the remaining time; where it does not fit (in
a file, in a pipe, below 80 columns), a line for each piece.
Knows what calibration's pieces cost, in computed steps; knows no model. Ours.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

BAR_WIDTH = 80  # columns that a bar with its counts and times needs


@dataclass
class _Stage:
    """Pieces of one kind, and the computed steps of each."""

    pieces: int
    steps: float

    @property
    def total(self) -> float:
        return self.pieces * self.steps


class Pace:
    """The progress of a calibration, in computed steps, and the remaining time.

    Pieces that an earlier call made count as done, but not for the pace.

    Args:
        clips: number of clips in the calibration.
        steps: number of steps in an uncached run.
        probes: computed steps of every probe.
        candidates: computed steps of the runs that each clip has after its uncached one.
        batch: number of pieces that are done together, in all stages except the search.
    """

    def __init__(
        self, clips: int, steps: int, probes: Sequence[int], candidates: Sequence[int],
        batch: int = 1,
    ) -> None:  # fmt: skip
        mean, self._batch = sum(candidates) / max(len(candidates), 1), batch
        probe = sum(probes) / max(len(probes), 1)
        self._stages = {
            "uncached": _Stage(clips, steps),
            "probe": _Stage(len(probes), probe),
            "search": _Stage(1, steps if candidates else 0),
            "candidates": _Stage(clips * len(candidates), mean),
        }
        self._began: float | None = None
        self._now = 0.0
        self._worked = self._current = 0.0  # computed steps in this call, and in this piece
        self.position = 0.0

    @property
    def total(self) -> float:
        """The work of all stages, in computed steps."""
        return sum(stage.total for stage in self._stages.values())

    def begin(self, what: str, done: int, total: int, now: float) -> None:
        """A piece begins.

        Args:
            what: the stage of the piece.
            done: number of pieces of this stage before it.
            total: number of pieces in the stage; 0 if unknown.
            now: seconds, by any clock.
        """
        stage = self._stages[what]
        if total and total != stage.pieces:  # there are more or fewer than planned
            stage.steps, stage.pieces = stage.total / total, total
        before = list(self._stages).index(what)
        earlier = sum(part.total for part in list(self._stages.values())[:before])
        self._began = now if self._began is None else self._began
        self._worked += self._current
        together = min(self._batch, stage.pieces) if what != "search" else 1
        self._current, self._now = stage.steps * together, now
        self.position = min(earlier + done * stage.steps, self.total)

    def remaining(self, now: float) -> float | None:
        """Seconds until the end; None before anything is done."""
        if self._began is None or not self._worked:
            return None
        seconds = (self._now - self._began) / self._worked
        return max((self.total - self.position) * seconds - (now - self._now), 0.0)


class TimeLeft(Protocol):
    """A time limit in minutes, and how much of it is spent."""

    @property
    def left(self) -> float:
        """The remaining seconds."""


_TITLES = {"uncached": "uncached runs", "probe": "probes", "search": "searching plans",
           "candidates": "running candidate plans"}  # fmt: skip


@contextlib.contextmanager
def pace_bar(pace: Pace, *, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Show the bar of a calibration. Yields the callback for the beginning of each piece."""
    if not quiet and not _fits_bar():
        yield _pace_lines(pace)
        return
    columns = (TextColumn("{task.description:<28}"), BarColumn(bar_width=24),
               TextColumn("{task.percentage:>3.0f}%"))  # fmt: skip
    with _progress(*columns, remaining=_Remaining(pace), quiet=quiet) as progress:
        task = progress.add_task("starting", total=pace.total)

        def on_progress(what: str, done: int, total: int) -> None:
            pace.begin(what, done, total, time.monotonic())
            text = _piece(what, done, total)
            progress.update(task, completed=pace.position, total=pace.total, description=text)

        yield on_progress
        progress.update(task, completed=pace.total, description="done")


@contextlib.contextmanager
def minutes_bar(
    minutes: float, budget: TimeLeft, *, quiet: bool
) -> Iterator[Callable[[str, int, int], None]]:
    """Show the bar of a calibration with a time limit. Yields the callback for the beginning of
    each piece."""
    if not quiet and not _fits_bar():
        yield lambda what, done, total: _line(
            f"{minutes - budget.left / 60:4.1f} of {minutes:g} min  {_piece(what, done, total)}"
        )
        return
    columns = (TextColumn("{task.description:<28}"), BarColumn(bar_width=24))
    with _progress(*columns, remaining=TimeRemainingColumn(), quiet=quiet) as progress:
        task = progress.add_task("starting", total=60 * minutes)

        def on_progress(what: str, done: int, total: int) -> None:
            spent = min(60 * minutes - budget.left, 60 * minutes)
            progress.update(task, completed=spent, description=_piece(what, done, total))

        yield on_progress
        progress.update(task, description="done")


def _pace_lines(pace: Pace) -> Callable[[str, int, int], None]:
    def on_progress(what: str, done: int, total: int) -> None:
        now = time.monotonic()
        pace.begin(what, done, total, now)
        left = pace.remaining(now)
        rest = "" if left is None else f", {_clock(left)} left"
        _line(f"{pace.position / pace.total:4.0%}  {_piece(what, done, total)}{rest}")

    return on_progress


def _piece(what: str, done: int, total: int) -> str:
    text = _TITLES.get(what, what)
    return text if what == "search" else f"{text} {done + 1}" + (f" of {total}" if total else "")


@contextlib.contextmanager
def clips_bar(total: int, done: int, *, quiet: bool) -> Iterator[Callable[[int, str], None]]:
    """Show the bar of an evaluation. Yields the callback for finished clips, with a text."""
    if not quiet and not _fits_bar():
        yield _clip_lines(total, done)
        return
    columns = (TextColumn("{task.description:<27}"), BarColumn(bar_width=12), MofNCompleteColumn())
    remaining = TimeRemainingColumn(elapsed_when_finished=False)
    with _progress(*columns, remaining=remaining, quiet=quiet) as progress:
        task = progress.add_task("loading", total=total, completed=done)
        yield lambda count, text: progress.update(task, advance=count, description=_cut(text, 27))


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _clip_lines(total: int, done: int) -> Callable[[int, str], None]:
    began, first = time.monotonic(), done

    def advance(count: int, text: str) -> None:
        nonlocal done
        done += count
        left = (time.monotonic() - began) / (done - first) * (total - done)
        _line(f"{done} of {total}" + (f"  {text}" if text else "") + f", {_clock(left)} left")

    return advance


class StepBar:
    """The bar of one run: the present part, and the steps of its loop."""

    def __init__(self, label: str, steps: int, *, quiet: bool) -> None:
        self._label, self._steps, self._quiet = label, steps, quiet
        columns = (TextColumn("{task.description:<24}"), BarColumn(bar_width=32),
                   MofNCompleteColumn(), TextColumn("steps"))  # fmt: skip
        self._progress = _progress(*columns, remaining=TimeRemainingColumn(), quiet=quiet)
        self._task = self._progress.add_task(f"{label}: reading text", total=steps)
        self._lines = not quiet and not _fits_bar()
        self._shown = ""
        self._quiet = quiet or self._lines

    def __enter__(self) -> Self:
        if not self._quiet:
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._phase("done")
        if not self._quiet:  # a disabled bar still ends its line in older versions of rich
            self._progress.stop()

    def loop_begins(self) -> None:
        """The denoising loop begins."""
        self._phase("denoising")

    def steps_done(self, done: int) -> None:
        """This number of steps is done. After the last one, the frames are decoded."""
        self._progress.update(self._task, completed=min(done, self._steps))
        self._phase("denoising" if done < self._steps else "decoding")

    def _phase(self, phase: str) -> None:
        self._progress.update(self._task, description=f"{self._label}: {phase}")
        if self._lines and phase != self._shown:
            _line(f"{self._label}: {phase}")
        self._shown = phase


class _Remaining(ProgressColumn):
    """The time until the end, which also counts down between two pieces."""

    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self._pace = pace

    def render(self, task: Task) -> Text:
        seconds = self._pace.remaining(time.monotonic())
        if seconds is None:
            return Text("-:--:--", style="progress.remaining")
        return Text(_clock(seconds), style="progress.remaining")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def _fits_bar() -> bool:
    """Whether stderr can show a bar: rich draws none on a terminal without cursor movements, and
    cuts counts and times where the terminal is narrow."""
    console = Console(stderr=True)
    return console.is_interactive and console.width >= BAR_WIDTH


def _line(text: str) -> None:
    """Print a line and flush it, so that a watched file has it at once."""
    print(text, file=sys.stderr, flush=True)


def _progress(*columns: ProgressColumn, remaining: ProgressColumn, quiet: bool) -> Progress:
    """A progress bar with these columns, the elapsed time and the remaining time."""
    times = (TimeElapsedColumn(), TextColumn("elapsed,"), remaining, TextColumn("left"))
    return Progress(*columns, *times, console=Console(stderr=True), disable=quiet)
