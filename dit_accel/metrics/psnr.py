"""Peak signal-to-noise ratio of a clip against its reference, in dB.

One MSE per frame over H, W and C, in float64, so uint8 differences never wrap; the clip's score is
the mean over frames, in which an exact frame counts as 100 dB. That is the convention of the
scripts that TeaCache, PAB and MagCache share. `pooled=True` takes one MSE for the whole clip
instead, as EasyCache does: bad frames weigh more.

It does not know perception: it reads RGB as stored, and a shift by one pixel costs more than blur.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from dit_accel.metrics.clips import check_pair

EXACT_DB = 100.0
"""What an exact frame counts for in a mean, and the most that any frame counts for."""


def psnr(
    reference: npt.NDArray[Any],
    test: npt.NDArray[Any],
    *,
    data_range: float,
    pooled: bool = False,
) -> float:
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
    """
    if not pooled:
        return psnr_mean(psnr_frames(reference, test, data_range=data_range))
    return psnr_pooled_mean(psnr_frames(reference, test, data_range=data_range))


def psnr_pooled(reference: npt.NDArray[Any], test: npt.NDArray[Any], *, data_range: float) -> float:
    """`psnr` with `pooled=True`."""
    return psnr(reference, test, data_range=data_range, pooled=True)


def psnr_frames(
    reference: npt.NDArray[Any], test: npt.NDArray[Any], *, data_range: float
) -> npt.NDArray[np.float64]:
    """PSNR of each frame in dB, infinite where a frame is exact.

    Args:
        reference: `(T, H, W, C)`, uint8 or float.
        test: same shape and kind of dtype.
        data_range: largest minus smallest possible value; 255 for uint8.

    Returns:
        `(T,)` float64.

    Raises:
        ValueError: if the clips cannot be compared; see `clips.check_pair`.
    """
    check_pair(reference, test, data_range=data_range)
    return _decibels(_mean_squared_errors(reference, test), data_range)


def psnr_mean(frames: npt.NDArray[np.float64]) -> float:
    """Mean of frame scores `(T,)` in dB, each at most 100; infinite where every frame is exact."""
    if np.isposinf(frames).all():
        return math.inf
    return float(np.minimum(frames, EXACT_DB).mean())


def psnr_pooled_mean(frames: npt.NDArray[np.float64]) -> float:
    """Frame scores `(T,)` in dB -> the PSNR of the mean of their errors; the range cancels out."""
    error = float((10.0 ** (-frames / 10.0)).mean())
    return -10.0 * math.log10(error) if error > 0 else math.inf


def _mean_squared_errors(
    reference: npt.NDArray[Any], test: npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    pairs = zip(reference, test, strict=True)
    return np.array([_mean_squared_error(expected, actual) for expected, actual in pairs])


def _mean_squared_error(expected: npt.NDArray[Any], actual: npt.NDArray[Any]) -> float:
    import cv2

    if expected.dtype == np.uint8:  # an exact sum of integers
        return float(cv2.norm(expected, actual, cv2.NORM_L2SQR)) / expected.size
    difference = expected.astype(np.float64) - actual.astype(np.float64)
    return float(np.mean(difference * difference))


def _decibels(errors: npt.NDArray[np.float64], data_range: float) -> npt.NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        return 20.0 * math.log10(data_range) - 10.0 * np.log10(errors)
