"""Scores a clip by several metrics at once, whole or in chunks.

In: two clips, their latents, names of metrics. Out: a JSON-able `Score` for each metric.
Knows: a metric that cannot be measured here (no latents, one frame instead of two, small frames,
missing weights) is None, with the reason. Clips that cannot be compared at all are an error.
Source: ours.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dit_accel.metrics import METRICS
from dit_accel.metrics.accumulate import Accumulator
from dit_accel.metrics.clips import Clip, Unavailable
from dit_accel.metrics.conventions import CONVENTIONS
from dit_accel.metrics.lpips import start_lpips
from dit_accel.metrics.row import Metric


@dataclass(frozen=True)
class Score:
    """One metric of one clip.

    Attributes:
        value: the score; infinite for the PSNR of an exact clip; None if it was not measured.
        frames: scores of the frames, or of pairs of neighbours; None if there are none.
        reason: why `value` is None.
        exact_frames: number of frames without any error, which count as 100 dB in a mean; None if
            the metric does not count them.
    """

    value: float | None
    frames: tuple[float, ...] | None = None
    reason: str | None = None
    exact_frames: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe: infinity as the string "inf" or "-inf"; NaN is refused.

        Raises:
            ValueError: if a score is NaN.
        """
        return {
            "value": _jsonable(self.value),
            "frames": None if self.frames is None else [_jsonable(x) for x in self.frames],
            "reason": self.reason,
            "exact_frames": self.exact_frames,
        }


class Scorer:
    """Computes several metrics of two clips, which it gets in chunks."""

    def __init__(
        self, rows: Mapping[str, Metric], *, data_range: float, fps: float | None = None
    ) -> None:
        self._rows = rows
        self._running: dict[str, Accumulator] = {}
        self._reasons: dict[str, str] = {}
        for name, row in rows.items():
            try:
                self._running[name] = row.start(data_range=data_range, fps=fps)
            except Unavailable as unavailable:
                self._reasons[name] = str(unavailable)

    def update(self, reference: Clip, test: Clip) -> None:
        """Take the next frames. Arguments and errors: see `accumulate.FrameScores.update`. A metric
        for which the frames are too small has no score."""
        for name, accumulator in [*self._running.items()]:
            try:
                accumulator.update(reference, test)
            except Unavailable as unavailable:
                self._reasons[name] = str(unavailable)
                del self._running[name]

    @property
    def unavailable(self) -> dict[str, str]:
        """The metrics that cannot be measured here, as far as known before the first frame, with
        reasons."""
        return dict(self._reasons)

    def compute(self) -> dict[str, Score]:
        """The score of every metric, in the requested order."""
        return {name: self._score(name) for name in self._rows}

    def _score(self, name: str) -> Score:
        if name in self._reasons:
            return Score(None, reason=self._reasons[name])
        accumulator, row = self._running[name], self._rows[name]
        try:
            value = accumulator.compute()
        except Unavailable as unavailable:
            return Score(None, reason=str(unavailable))
        frames = accumulator.frames()
        if frames is None:
            return Score(value)
        return Score(
            value=value,
            frames=tuple(map(float, frames)) if row.per_frame else None,
            exact_frames=int(np.isposinf(frames).sum()) if row.counts_exact else None,
        )


def score_clips(
    reference: Clip,
    test: Clip,
    *,
    data_range: float,
    metrics: Sequence[str],
    fps: float | None = None,
    latents: tuple[Clip, Clip] | None = None,
    lpips_weights: str | os.PathLike[str] | None = None,
) -> dict[str, Score]:
    """Score a clip against its reference by several metrics.

    Args:
        reference: `(T, H, W, C)`, uint8 or float.
        test: same shape and kind of dtype.
        data_range: largest minus smallest possible value; 255 for uint8.
        metrics: names of rows of `METRICS`.
        fps: frames per second, for the metrics that need it; None if unknown.
        latents: those of the reference and of the test, of equal shape, for the latent metrics.
        lpips_weights: see `lpips.find_weights`.

    Returns:
        The scores by name, in the order of `metrics`.

    Raises:
        ValueError: if a metric is unknown, or the clips or latents cannot be compared.
    """
    rows = rows_of(metrics, lpips_weights=lpips_weights)
    pixels = {name: row for name, row in rows.items() if row.family == "pixels"}
    scorer = Scorer(pixels, data_range=data_range, fps=fps)
    scorer.update(reference, test)
    scores = scorer.compute()
    for name, row in rows.items():
        if row.family == "latents":
            scores[name] = _score_latents(row, latents)
    return {name: scores[name] for name in rows}


def rows_of(
    metrics: Sequence[str],
    *,
    convention: str | None = None,
    lpips_weights: str | os.PathLike[str] | None = None,
) -> dict[str, Metric]:
    """The rows with these names.

    Args:
        metrics: names of rows of `METRICS`, or of those that the convention has.
        convention: a key of `CONVENTIONS`; None: ours.
        lpips_weights: a file for `lpips.find_weights`.

    Raises:
        ValueError: a name is unknown; the message has it, and all known names.
    """
    if convention is not None and convention not in CONVENTIONS:
        accepted = ", ".join(CONVENTIONS)
        raise ValueError(f"convention is {convention!r}; accepted: {accepted}")
    known = METRICS if convention is None else CONVENTIONS[convention]
    whose = "" if convention is None else f" of convention {convention}"
    for name in metrics:
        if name not in known:
            raise ValueError(f"metrics has {name!r}; accepted: {', '.join(known)}{whose}")
    rows = {name: known[name] for name in metrics}
    if lpips_weights is not None and "lpips" in rows:
        rows["lpips"] = _with_weights(rows["lpips"], lpips_weights)
    return rows


def _with_weights(row: Metric, weights: str | os.PathLike[str]) -> Metric:
    start: Any = row.accumulator
    if start is start_lpips or getattr(start, "func", None) is start_lpips:
        row = dataclasses.replace(row, accumulator=functools.partial(start, weights=weights))
    return row


def _score_latents(row: Metric, latents: tuple[Clip, Clip] | None) -> Score:
    if latents is None:
        return Score(None, reason="no latents were given")
    accumulator = row.start(data_range=1.0)
    accumulator.update(*latents)
    try:
        return Score(accumulator.compute())
    except Unavailable as unavailable:
        return Score(None, reason=str(unavailable))


def _jsonable(value: float | None) -> float | str | None:
    if value is None or math.isfinite(value):
        return value
    if math.isnan(value):
        raise ValueError("a score is NaN; accepted: finite numbers, inf and -inf")
    return "inf" if value > 0 else "-inf"
