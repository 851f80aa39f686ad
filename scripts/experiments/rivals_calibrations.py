"""The calibrations of `table_rivals.py`: a file for each, and a file with the seconds it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rivals_tables import read_json, write_json

from dit_accel.evaluation.methods import MethodContext, trained


class Calibrations:
    """The files of a folder. `used` has the names that were asked for since it was emptied."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.used: set[str] = set()

    def measured(self, name: str, measure: Callable[[], Any]) -> Any:
        """The value of a calibration, which is measured unless its file is there."""
        path, begun = self._file(name), time.monotonic()
        self.used.add(name)
        if not path.exists():
            value = measure()
            write_json(self._seconds(name), time.monotonic() - begun)
            write_json(path, value)
        return read_json(path)

    def spent(self) -> float:
        """Seconds of all calibrations in `used`, also if they were measured earlier."""
        return sum(map(self._spent, self.used))

    def has(self, name: str) -> bool:
        return self._file(name).exists()

    def train(
        self, pipe: Any, context: MethodContext, wanted: Sequence[tuple[str, int]], *,
        seconds: float,
    ) -> None:  # fmt: skip
        """Train the samplers (variant, k) that have no file yet, all together, so that they share
        launches."""
        missing = [(v, k) for v, k in wanted if not self.has(trained.name_of(v, k))]
        if not missing:
            return
        begun = time.monotonic()
        found = trained.train(pipe, context, missing, seconds=seconds)
        share = (time.monotonic() - begun) / len(missing)
        for variant, k in missing:  # for a continued training, the seconds add up
            name = trained.name_of(variant, k)
            write_json(self._seconds(name), self._spent(name) + share)
            if (variant, k) in found:
                write_json(self._file(name), found[variant, k])

    def _spent(self, name: str) -> float:
        file = self._seconds(name)
        return float(read_json(file)) if file.exists() else 0.0

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _seconds(self, name: str) -> Path:
        return self._file(name).with_suffix(".seconds")
