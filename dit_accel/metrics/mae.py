"""Mean absolute error of a clip against its reference, in 8-bit levels.

The mean of |test - reference| over H, W and C for each frame, times 255 / `data_range`, then the
mean over frames: 1.0 is one level of 255 at every value. It knows no perception, no structure and
no time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dit_accel.metrics.clips import check_pair

LEVELS = 255.0


def mae(reference: npt.NDArray[Any], test: npt.NDArray[Any], *, data_range: float) -> float:
    """Mean absolute error of a clip: the mean over frames.

    Args:
        reference: `(T, H, W, C)`, uint8 or float.
        test: same shape and kind of dtype.
        data_range: largest minus smallest possible value; 255 for uint8.

    Returns:
        Levels of 255; 0 where the clips are exact.

    Raises:
        ValueError: if the clips cannot be compared; see `clips.check_pair`.
    """
    return mean(mae_frames(reference, test, data_range=data_range))


def mae_frames(
    reference: npt.NDArray[Any], test: npt.NDArray[Any], *, data_range: float
) -> npt.NDArray[np.float64]:
    """Mean absolute error of each frame; arguments and errors as of `mae`. Returns `(T,)`."""
    check_pair(reference, test, data_range=data_range)
    errors = [mean_abs(expected, actual) for expected, actual in zip(reference, test, strict=True)]
    return np.array(errors) * (LEVELS / data_range)


def mean(frames: npt.NDArray[np.float64]) -> float:
    """Mean of frame scores `(T,)`."""
    return float(frames.mean())


def mean_abs(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    """The mean of |one - other|, exact for integers: no dtype wraps."""
    import cv2

    if one.dtype in (np.uint8, np.int16):
        return float(cv2.norm(one, other, cv2.NORM_L1)) / one.size
    return float(np.abs(one.astype(np.float64) - other.astype(np.float64)).mean())
