"""Mean absolute error of a clip against its reference, in 8-bit levels.

    mae = mean over frames of mean |test - reference| * 255 / data_range

In: two clips `(T, H, W, C)`. Out: levels; 1.0 is one level of 255 at every value.
Does not know perception, structure or time.
Source: the definition.
"""

from __future__ import annotations

import numpy as np

from dit_accel.metrics.clips import Clip, Scores, check_pair

LEVELS = 255.0


def mae(reference: Clip, test: Clip, *, data_range: float) -> float:
    """Mean absolute error of a clip: the mean over frames.

    Args:
        reference: `(T, H, W, C)`, uint8 or float.
        test: same shape and kind of dtype.
        data_range: largest minus smallest possible value; 255 for uint8.

    Returns:
        Levels of 255; 0 where the clips are exact.

    Raises:
        ValueError: if the clips cannot be compared; see `clips.check_pair`.

    Example:
        >>> black = np.zeros((2, 8, 8, 3), np.uint8)
        >>> mae(black, black + 3, data_range=255)
        3.0
    """
    return mean(mae_frames(reference, test, data_range=data_range))


def mae_frames(reference: Clip, test: Clip, *, data_range: float) -> Scores:
    """Mean absolute error of each frame, `(T,)`. Arguments and errors: see `mae`."""
    check_pair(reference, test, data_range=data_range)
    errors = [mean_abs(expected, actual) for expected, actual in zip(reference, test, strict=True)]
    return np.array(errors) * (LEVELS / data_range)


def mean(frames: Scores) -> float:
    """Mean of frame scores `(T,)`."""
    return float(frames.mean())


def mean_abs(one: Clip, other: Clip) -> float:
    """The mean of |one - other|. It is exact for integers, because no dtype overflows."""
    import cv2

    if one.dtype in (np.uint8, np.int16):
        return float(cv2.norm(one, other, cv2.NORM_L1)) / one.size
    return float(np.abs(one.astype(np.float64) - other.astype(np.float64)).mean())
