"""The bar of a calibration: what is being done, and how long the rest of it takes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from dit_accel.cli.pace import Pace

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
