"""One row of the METRICS table: what a metric is called, what it means, and how it is computed.

A metric over pixels is two halves: `frames` turns two clips into one number for each frame (or,
where it reads `span` = 2 frames at once, for each pair of neighbours), and `mean` turns those
numbers into the clip's score. So a clip can be scored in chunks, and the numbers can be plotted.
What has no such halves brings its own `accumulator`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from dit_accel.metrics.accumulate import Accumulator, FrameScores
from dit_accel.metrics.clips import Unavailable

Clip = npt.NDArray[Any]
Scores = npt.NDArray[np.float64]


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
    """One row: what is measured, how, and which way is better.

    Attributes:
        name: the stable key in every result.
        unit: of the score; empty where it has none.
        range: least and largest possible score.
        direction: which scores are better.
        convention: how exactly it is computed, for people.
        version: raised whenever the same clips score differently than before.
        function: two whole clips, or two latents, -> the score.
        frames: its first half; None where there are no halves.
        mean: its second half.
        span: frames that one number of `frames` reads.
        per_frame: whether the numbers of `frames` are scores of their own, worth a plot.
        counts_exact: whether an infinite number of `frames` says that the frame is exact.
        accumulator: for metrics that are not a mean over `frames`.
        family: what it reads. Scores of latents are never averaged with scores of pixels.
        needs: what it needs beside the core packages; empty for most.
    """

    name: str
    unit: str
    range: tuple[float, float]
    direction: Literal["higher", "lower"]
    convention: str
    version: int
    function: ClipFunction | LatentFunction
    frames: FramesFunction | None = None
    mean: Callable[[Scores], float] | None = None
    span: int = 1
    per_frame: bool = False
    counts_exact: bool = False
    accumulator: Callable[[float], Accumulator] | None = None
    family: Literal["pixels", "latents"] = "pixels"
    needs: str = ""

    def start(self, *, data_range: float) -> Accumulator:
        """An empty accumulator: `update` with chunks of both clips, then `compute`.

        Args:
            data_range: largest minus smallest possible value; 255 for uint8.

        Raises:
            Unavailable: if what the metric needs is not here, with the reason.
        """
        if self.accumulator is not None:
            return self.accumulator(data_range)
        if self.frames is None or self.mean is None:
            raise Unavailable(f"{self.name} scores latents, not clips")
        return FrameScores(self.frames, self.mean, span=self.span, data_range=data_range)
