"""Computes the peak signal-to-noise ratio (PSNR) of a clip against its reference, in dB.

    psnr = mean over frames of min(10 log10(data_range² / MSE), 100)
    pooled: 10 log10(data_range² / mean over frames of MSE)

In: two clips `(T, H, W, C)`. Out: dB; one MSE per frame over H, W and C in float64. Does not know
perception: a shift by one pixel costs more than blur. Pooling gives more weight to bad frames.
Source: the mean is the convention of the scripts that TeaCache, PAB and MagCache share; pooling is
EasyCache's.
"""

from __future__ import annotations

import math

import numpy as np

from dit_accel.metrics.clips import Clip, Scores, check_pair

EXACT_DB = 100.0
"""What an exact frame counts for in a mean, and the most that any frame counts for."""


def psnr(reference: Clip, test: Clip, *, data_range: float, pooled: bool = False) -> float:
    """PSNR of a clip in dB: the mean over frames, or of one MSE for the clip if `pooled`.

    Args:
        reference: `(T, H, W, C)`, uint8 or float.
        test: same shape and kind of dtype.
        data_range: largest minus smallest possible value; 255 for uint8.
        pooled: one MSE for the whole clip instead of one per frame.

    Returns:
        dB; infinite where every frame is exact.

    Raises:
        ValueError: if the clips cannot be compared; see `clips.check_pair`.

    Example:
        >>> black = np.zeros((2, 8, 8, 3), np.uint8)
        >>> round(psnr(black, black + 1, data_range=255), 2)
        48.13
    """
    combine = psnr_pooled_mean if pooled else psnr_mean
    return combine(psnr_frames(reference, test, data_range=data_range))


def psnr_pooled(reference: Clip, test: Clip, *, data_range: float) -> float:
    """`psnr` with `pooled=True`."""
    return psnr(reference, test, data_range=data_range, pooled=True)


def psnr_frames(reference: Clip, test: Clip, *, data_range: float) -> Scores:
    """PSNR of each frame `(T,)`, infinite if it is exact. Arguments and errors: see `psnr`."""
    check_pair(reference, test, data_range=data_range)
    pairs = zip(reference, test, strict=True)
    errors = np.array([_mean_squared_error(expected, actual) for expected, actual in pairs])
    with np.errstate(divide="ignore"):
        return 20.0 * math.log10(data_range) - 10.0 * np.log10(errors)


def psnr_mean(frames: Scores) -> float:
    """Mean of frame scores `(T,)` in dB, each at most 100; infinite where every frame is exact."""
    if np.isposinf(frames).all():
        return math.inf
    return float(np.minimum(frames, EXACT_DB).mean())


def psnr_pooled_mean(frames: Scores) -> float:
    """The PSNR of the mean error, from frame scores `(T,)` in dB; the range cancels out."""
    error = float((10.0 ** (-frames / 10.0)).mean())
    return -10.0 * math.log10(error) if error > 0 else math.inf


def _mean_squared_error(expected: Clip, actual: Clip) -> float:
    import cv2

    if expected.dtype == np.uint8:  # an exact sum of integers
        return float(cv2.norm(expected, actual, cv2.NORM_L2SQR)) / expected.size
    difference = expected.astype(np.float64) - actual.astype(np.float64)
    return float(np.mean(difference * difference))
