"""What a row of the METRICS table is made of: what a metric means and how it is computed.

In: two clips. Out: a score, or an accumulator for chunks of them.
Knows: a metric over pixels has two parts: `frames` gives one number for each frame (or each pair of
neighbours, `span` = 2), `mean` makes them the clip's score. Other metrics bring an `accumulator`.
Source: ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from dit_accel.metrics.accumulate import Accumulator, FrameScores
from dit_accel.metrics.clips import Clip, Scores, Unavailable

_SLOW = 0.1  # CPU-seconds for a frame of 480x832


class ClipFunction(Protocol):
    """Two clips `(T, H, W, C)` -> one score."""

    def __call__(self, reference: Clip, test: Clip, *, data_range: float) -> float: ...


class FramesFunction(Protocol):
    """Two clips `(T, H, W, C)` -> scores `(T - span + 1,)`."""

    def __call__(self, reference: Clip, test: Clip, *, data_range: float) -> Scores: ...


class LatentFunction(Protocol):
    """Two arrays of equal shape -> one score."""

    def __call__(self, reference: Clip, test: Clip) -> float: ...


@dataclass(frozen=True)
class Metric:
    """One row: what is measured, how, and which direction is better.

    Attributes:
        name: the stable key in every result.
        unit: of the score; empty where it has none.
        range: least and largest possible score.
        direction: which scores are better.
        convention: how exactly it is computed, for people.
        function: two whole clips, or two latents, -> the score.
        version: raised whenever the same clips get another score than before.
        frames: two clips -> scores of the frames; None where there are none.
        mean: scores of the frames -> the score.
        span: frames that one number of `frames` reads.
        per_frame: whether the numbers of `frames` are stored and plotted.
        counts_exact: whether an infinite number of `frames` means an exact frame.
        accumulator: for metrics that are not a mean over `frames`.
        timed: whether the score depends on the frames a second; `accumulator` then takes `fps`.
        seconds: CPU-seconds for a frame of 480x832, as `bench_metrics.py` measured it; None
            where it was not measured.
        family: what it reads. Scores of latents are never averaged with scores of pixels.
        needs: what it needs beside the core packages; empty for most.
    """

    name: str
    unit: str
    range: tuple[float, float]
    direction: Literal["higher", "lower"]
    convention: str
    function: ClipFunction | LatentFunction
    version: int = 1
    frames: FramesFunction | None = None
    mean: Callable[[Scores], float] | None = None
    span: int = 1
    per_frame: bool = False
    counts_exact: bool = False
    accumulator: Callable[..., Accumulator] | None = None
    timed: bool = False
    seconds: float | None = None
    family: Literal["pixels", "latents"] = "pixels"
    needs: str = ""

    @property
    def slow(self) -> bool:
        """Whether it takes much longer than reading the frames: it is measured when asked for."""
        return self.seconds is not None and self.seconds > _SLOW

    def start(self, *, data_range: float, fps: float | None = None) -> Accumulator:
        """An empty accumulator: `update` with chunks of both clips, then `compute`.

        Args:
            data_range: largest minus smallest possible value; 255 for uint8.
            fps: frames a second of the clips; None where that is not known.

        Raises:
            Unavailable: if what the metric needs is not here, with the reason.
        """
        if self.accumulator is not None:
            timing = {"fps": fps} if self.timed else {}
            return self.accumulator(data_range, **timing)
        if self.frames is None or self.mean is None:
            raise Unavailable(f"{self.name} scores latents, not clips")
        return FrameScores(self.frames, self.mean, span=self.span, data_range=data_range)
