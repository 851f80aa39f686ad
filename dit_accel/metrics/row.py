"""The parts of a row of the table METRICS: the meaning of a metric, and its computation.

In: two clips. Out: a score, or an accumulator for chunks of them.
Knows: a metric over pixels has two parts. `frames` gives one number for each frame (or each pair of
neighbours, `span` = 2), and `mean` makes the clip's score of them. Other metrics have an
`accumulator`.
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
    """A function from two clips `(T, H, W, C)` to one score."""

    def __call__(self, reference: Clip, test: Clip, *, data_range: float) -> float: ...


class FramesFunction(Protocol):
    """A function from two clips `(T, H, W, C)` to scores `(T - span + 1,)`."""

    def __call__(self, reference: Clip, test: Clip, *, data_range: float) -> Scores: ...


class LatentFunction(Protocol):
    """A function from two arrays of equal shape to one score."""

    def __call__(self, reference: Clip, test: Clip) -> float: ...


@dataclass(frozen=True)
class Metric:
    """One row: what is measured, how, and which direction is better.

    Attributes:
        name: the stable key in every result.
        unit: the unit of the score; empty if it has none.
        range: least and largest possible score.
        direction: which scores are better.
        convention: how exactly it is computed, as text.
        function: the score of two whole clips, or of two latents.
        version: incremented whenever a change gives the same clips another score.
        frames: the scores of the frames of two clips; None if there are none.
        mean: the score, from the scores of the frames.
        span: number of frames that one number of `frames` depends on.
        per_frame: whether the numbers of `frames` are stored and plotted.
        counts_exact: whether an infinite number of `frames` means an exact frame.
        accumulator: for metrics that are not a mean over `frames`.
        timed: whether the score depends on the frames per second; then `accumulator` takes `fps`.
        seconds: CPU-seconds for a frame of 480x832, as measured by `bench_metrics.py`; None if not
            measured.
        family: whether it reads pixels or latents. Their scores are never averaged.
        needs: what it needs in addition to the core packages; empty for most metrics.
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
        """Whether it takes much longer than reading the frames. It is then measured only on
        request."""
        return self.seconds is not None and self.seconds > _SLOW

    def start(self, *, data_range: float, fps: float | None = None) -> Accumulator:
        """An empty accumulator: `update` with chunks of both clips, then `compute`.

        Args:
            data_range: largest minus smallest possible value; 255 for uint8.
            fps: frames per second of the clips; None if unknown.

        Raises:
            Unavailable: a requirement of the metric is missing here; the message is the reason.
        """
        if self.accumulator is not None:
            timing = {"fps": fps} if self.timed else {}
            return self.accumulator(data_range, **timing)
        if self.frames is None or self.mean is None:
            raise Unavailable(f"{self.name} scores latents, not clips")
        return FrameScores(self.frames, self.mean, span=self.span, data_range=data_range)
