"""A progress bar over the steps of one clip: on stderr, with time gone and time left."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


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

    def begin(self) -> None:
        """The denoising loop starts."""
        self._progress.update(self._task, description=self._says("denoising"))

    def reach(self, done: int) -> None:
        """So many steps are done; after the last one the frames are decoded."""
        text = self._says("denoising" if done < self._steps else "decoding")
        self._progress.update(self._task, completed=min(done, self._steps), description=text)

    def _says(self, phase: str) -> str:
        return f"{self._label}: {phase}"
