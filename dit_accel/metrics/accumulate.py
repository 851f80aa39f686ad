"""Scores clips chunk by chunk, to the same number as whole clips.

In: chunks of two clips. Out: the scores of the frames, and the clip's.
Knows one number a frame, and the last frame where a metric reads two neighbours at once. Does not
know how clips are read, nor any metric.
Source: ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from dit_accel.metrics.clips import Clip, Scores, Unavailable, check_pair


class Accumulator(Protocol):
    """What takes two clips in chunks, and scores them at the end."""

    def update(self, reference: Clip, test: Clip) -> None:
        """Take the next frames of both clips, `(T, H, W, C)` each, T of at least 1."""
        ...

    def frames(self) -> Scores | None:
        """The numbers of the frames so far; None where there are none."""
        ...

    def compute(self) -> float:
        """The score of all frames so far."""
        ...


class FrameScores:
    """A metric that is a mean over frames, or over pairs of neighbours."""

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
            reference: `(T, H, W, C)`, T of at least 1; size and dtype as in the chunks before.
            test: same shape.

        Raises:
            ValueError: if the chunks cannot be compared, or differ from those before.
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
        """The chunk with the last frames of the one before it in front."""
        if self._tail is not None:
            reference = np.concatenate([self._tail[0], reference])
            test = np.concatenate([self._tail[1], test])
        keep = self._span - 1
        self._tail = reference[-keep:].copy(), test[-keep:].copy()
        return reference, test


def check_follows(before: Clip, chunk: Clip) -> None:
    """Refuse a chunk that is not of the size and dtype of those before it."""
    if before.shape[1:] != chunk.shape[1:] or before.dtype != chunk.dtype:
        raise ValueError(
            f"reference has {chunk.dtype} frames of shape {chunk.shape[1:]}; "
            f"accepted: {before.dtype} of {before.shape[1:]}, as in the chunks before"
        )
