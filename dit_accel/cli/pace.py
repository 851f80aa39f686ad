"""How far a calibration is, counted in computed steps, and how long the rest of it takes.

What was kept from an earlier call is skipped: it counts as done, and says nothing of the pace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


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
        self, clips: int, steps: int, probes: int, rungs: Sequence[int], batch: int = 1,
    ) -> None:  # fmt: skip
        each, self._batch = sum(rungs) / max(len(rungs), 1), batch
        self._stages = {
            "uncached": _Stage(clips, steps),
            "probe": _Stage(probes, steps),
            "search": _Stage(1, steps if rungs else 0),
            "rungs": _Stage(clips * len(rungs), each),
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
