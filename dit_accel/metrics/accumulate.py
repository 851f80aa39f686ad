"""Scores clips chunk by chunk. The result is the same as for whole clips.

In: chunks of two clips. Out: the scores of the frames and of the clip.
Knows one number for each frame, and the last frame if a metric needs two neighbours. Does not know
how clips are read, and knows no metric.
Source: ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from dit_accel.metrics.clips import Clip, Scores, Unavailable, check_pair


class Accumulator(Protocol):
    """Takes two clips in chunks, and scores them at the end."""

    def update(self, reference: Clip, test: Clip) -> None:
        """Take the next frames of both clips, `(T, H, W, C)` each, T at least 1."""
        ...

    def frames(self) -> Scores | None:
        """The scores of the frames so far; None if the metric has none."""
        ...

    def compute(self) -> float:
        """The score of all frames so far."""
        ...


class FrameScores:
    """Accumulates a metric that is a mean over frames, or over pairs of neighbours."""

    def __init__(
        self,
        frames: Callable[..., Scores],
        mean: Callable[[Scores], float],
        *,
        span: int,
        data_range: float,
    ) -> None:
        self._score, self._mean = frames, mean
        self._span, self._data_range = span, data_range
        self._scores: list[Scores] = []
        self._tail: tuple[Clip, Clip] | None = None

    def update(self, reference: Clip, test: Clip) -> None:
        """Score the next frames.

        Args:
            reference: `(T, H, W, C)`, T at least 1; size and dtype are those of the earlier chunks.
            test: same shape.

        Raises:
            ValueError: the chunks cannot be compared, or differ in size or dtype from earlier ones.
        """
        check_pair(reference, test, data_range=self._data_range)
        if self._tail is not None:
            check_follows(self._tail[0], reference)
        if self._span > 1:
            reference, test = self._with_tail(reference, test)
        elif self._tail is None:
            self._tail = reference[:0], test[:0]
        if len(reference) >= self._span:
            self._scores.append(self._score(reference, test, data_range=self._data_range))

    def frames(self) -> Scores:
        """The numbers so far: `(T - span + 1,)`."""
        return np.concatenate(self._scores) if self._scores else np.empty(0)

    def compute(self) -> float:
        """The score of all frames so far.

        Raises:
            Unavailable: if there are fewer frames than the metric needs.
        """
        if not self._scores:
            count = 0 if self._tail is None else len(self._tail[0])
            raise Unavailable(f"needs at least {self._span} frames, and has {count}")
        return self._mean(self.frames())

    def _with_tail(self, reference: Clip, test: Clip) -> tuple[Clip, Clip]:
        """The chunk, with the last frames of the chunk before it at its beginning."""
        if self._tail is not None:
            reference = np.concatenate([self._tail[0], reference])
            test = np.concatenate([self._tail[1], test])
        keep = self._span - 1
        self._tail = reference[-keep:].copy(), test[-keep:].copy()
        return reference, test


def check_follows(before: Clip, chunk: Clip) -> None:
    """Refuse a chunk whose size or dtype differs from earlier ones."""
    if before.shape[1:] != chunk.shape[1:] or before.dtype != chunk.dtype:
        raise ValueError(
            f"reference has {chunk.dtype} frames of shape {chunk.shape[1:]}; "
            f"accepted: {before.dtype} of {before.shape[1:]}, as in the chunks before"
        )
