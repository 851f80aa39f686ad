"""Measures errors of the denoised latents: relative L2, and cosine.

    rel_l2 = ‖test - reference‖ / ‖reference‖
    cosine = <test, reference> / (‖test‖ ‖reference‖)

In: two arrays of any equal shape, summed in float64. Out: one number.
Decoder, codec and 8-bit rounding have no influence. Does not know what is visible: never average it
with pixel metrics.
Source: ours.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from dit_accel.metrics.clips import Clip, Unavailable


def latent_rel_l2(reference: Clip, test: Clip) -> float:
    """Relative error ‖test - reference‖ / ‖reference‖ in the L2 norm.

    Args:
        reference: any shape, float, finite.
        test: same shape.

    Returns:
        At least 0, which only exact latents reach.

    Raises:
        ValueError: if the arrays cannot be compared.
        Unavailable: if the reference is all zero.

    Example:
        >>> latent_rel_l2(np.full(4, 2.0), np.full(4, 3.0))
        0.5
    """
    sums = LatentSums("rel_l2")
    sums.update(reference, test)
    return sums.compute()


def latent_cosine(reference: Clip, test: Clip) -> float:
    """Cosine of the angle between two latents, each as one vector.

    Args:
        reference: any shape, float, finite.
        test: same shape.

    Returns:
        In [-1, 1]; 1 where one is a positive multiple of the other.

    Raises:
        ValueError: if the arrays cannot be compared.
        Unavailable: if either is all zero.

    Example:
        >>> latent_cosine(np.array([1.0, 0.0]), np.array([0.0, 5.0]))
        0.0
    """
    sums = LatentSums("cosine")
    sums.update(reference, test)
    return sums.compute()


class LatentSums:
    """Accumulates both metrics from parts of latents of any shape, with four sums."""

    def __init__(self, of: str) -> None:
        self._of = of
        self._reference = self._test = self._product = self._error = 0.0

    def update(self, reference: Clip, test: Clip) -> None:
        """Take the next part of both latents; both parts have the same shape.

        Raises:
            ValueError: naming the argument, its value and what is accepted.
        """
        x, y = _vector("reference", reference), _vector("test", test)
        if np.shape(reference) != np.shape(test):
            raise ValueError(
                f"test has shape {np.shape(test)}, reference has {np.shape(reference)}; "
                "accepted: equal shapes"
            )
        self._reference += float(x @ x)
        self._test += float(y @ y)
        self._product += float(x @ y)
        self._error += float((y - x) @ (y - x))

    def frames(self) -> None:
        """None: latents have no pixel frames."""

    def compute(self) -> float:
        """The score of all parts so far.

        Raises:
            Unavailable: if it would be a division by zero.
        """
        if self._reference == 0:
            raise Unavailable("the reference latents are all zero")
        if self._of == "rel_l2":
            return math.sqrt(self._error / self._reference)
        if self._test == 0:
            raise Unavailable("the test latents are all zero")
        cosine = self._product / math.sqrt(self._reference) / math.sqrt(self._test)
        return max(-1.0, min(1.0, cosine))


def _vector(name: str, latents: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    array = np.asarray(latents)
    if array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}; accepted: at least one value")
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{name} has dtype {array.dtype}; accepted: float")
    vector = array.astype(np.float64).ravel()
    if not np.isfinite(vector).all():
        raise ValueError(f"{name} has NaN or infinite values; accepted: finite values")
    return vector
