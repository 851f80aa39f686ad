"""How far a calibration is, counted in computed steps, and how long the rest of it takes.

What was kept from an earlier call is skipped: it counts as done, and says nothing of the pace.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


@dataclass
class _Stage:
    """Pieces of one kind, and what each weighs."""

    pieces: int
    weight: float

    @property
    def whole(self) -> float:
        return self.pieces * self.weight


class Pace:
    """Hears what is begun, and foresees the end.

    Args:
        clips: that are calibrated on.
        steps: of an uncached run.
        probes: runs of all probes together.
        rungs: computed steps of the runs that each clip has after its uncached one.
        batch: pieces that are done together, of all stages but the search.
    """

    def __init__(
        self, clips: int, steps: int, probes: int, candidates: Sequence[int], batch: int = 1,
    ) -> None:  # fmt: skip
        each, self._batch = sum(candidates) / max(len(candidates), 1), batch
        self._stages = {
            "uncached": _Stage(clips, steps),
            "probe": _Stage(probes, steps),
            "search": _Stage(1, steps if candidates else 0),
            "rungs": _Stage(clips * len(candidates), each),
        }
        self._began: float | None = None
        self._now = 0.0
        self._worked = self._doing = 0.0
        self.position = 0.0

    @property
    def total(self) -> float:
        """Of all stages, in computed steps."""
        return sum(stage.whole for stage in self._stages.values())

    def begin(self, what: str, done: int, total: int, now: float) -> None:
        """A piece is begun.

        Args:
            what: its stage.
            done: pieces of this stage before it.
            total: pieces of the stage; 0 where that is not known better.
            now: seconds, by any clock.
        """
        stage = self._stages[what]
        if total and total != stage.pieces:  # as many rungs as there really are, of equal weight
            stage.weight, stage.pieces = stage.whole / total, total
        before = list(self._stages).index(what)
        whole = sum(part.whole for part in list(self._stages.values())[:before])
        self._began = now if self._began is None else self._began
        self._worked += self._doing
        together = min(self._batch, stage.pieces) if what != "search" else 1
        self._doing, self._now = stage.weight * together, now
        self.position = min(whole + done * stage.weight, self.total)

    def left(self, now: float) -> float | None:
        """Seconds until the end; None before anything is done."""
        if self._began is None or not self._worked:
            return None
        seconds = (self._now - self._began) / self._worked
        return max((self.total - self.position) * seconds - (now - self._now), 0.0)


_SAYS = {"uncached": "uncached runs", "probe": "probes", "search": "searching plans",
         "rungs": "carrying out plans"}  # fmt: skip


@contextlib.contextmanager
def pace_bar(pace: Pace, *, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on the error stream; yields what is to be told of each piece that begins."""
    columns = (TextColumn("{task.description:<28}"), BarColumn(bar_width=24),
               TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(), TextColumn("gone,"),
               _Left(pace), TextColumn("left"))  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        task = progress.add_task("starting", total=pace.total)

        def told(what: str, done: int, total: int) -> None:
            pace.begin(what, done, total, time.monotonic())
            of = f" {done + 1}" + (f" of {total}" if total else "")
            text = _SAYS.get(what, what) + ("" if what == "search" else of)
            progress.update(task, completed=pace.position, total=pace.total, description=text)

        yield told
        progress.update(task, completed=pace.total, description="done")


class _Left(TextColumn):
    """Time until the end, running down between two pieces."""

    def __init__(self, pace: Pace) -> None:
        super().__init__("")
        self._pace = pace

    def render(self, task: Task) -> Text:
        left = self._pace.left(time.monotonic())
        if left is None:
            return Text("-:--:--", style="progress.remaining")
        minutes, seconds = divmod(round(left), 60)
        hours, minutes = divmod(minutes, 60)
        return Text(f"{hours}:{minutes:02d}:{seconds:02d}", style="progress.remaining")


class StepBar:
    """Shows which part of the work is under way, and how far the denoising loop is."""

    def __init__(self, label: str, steps: int, *, quiet: bool) -> None:
        self._label = label
        self._steps = steps
        self._quiet = quiet
        self._progress = Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            TextColumn("gone,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=Console(stderr=True),
            disable=quiet,
        )
        self._task = self._progress.add_task(self._says("reading text"), total=steps)

    def __enter__(self) -> Self:
        if not self._quiet:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._progress.update(self._task, description=self._says("done"))
        if not self._quiet:  # a disabled bar still ends its line in older versions of rich
            self._progress.stop()

    def loop_begins(self) -> None:
        """The denoising loop starts."""
        self._progress.update(self._task, description=self._says("denoising"))

    def steps_done(self, done: int) -> None:
        """So many steps are done; after the last one the frames are decoded."""
        text = self._says("denoising" if done < self._steps else "decoding")
        self._progress.update(self._task, completed=min(done, self._steps), description=text)

    def _says(self, phase: str) -> str:
        return f"{self._label}: {phase}"
