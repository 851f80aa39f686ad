"""Measures whether a clip moves like its reference, which single frames do not show.

- `tdiff`: mean |Δtest - Δreference|, Δ the difference of neighbouring frames; in 8-bit levels.
- `flicker`: |difference of the clips' temporal_flickering|, VBench's (255 - mean|Δ|) / 255. It
  compares amounts of change, not places; frozen motion is as wrong as added flicker.
- `tof`: mean length of flow(test) - flow(reference), pixels a frame, by OpenCV's DIS flow on luma.

In: two clips `(T, H, W, C)`, T of at least 2. Out: one number. Does not know frame rates: all
values are per frame. Does not notice an error that does not change over time.
Source: VBench, arXiv 2311.17982; tOF of TecoGAN, arXiv 1811.09393, section 4, which uses another
flow and L1.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from dit_accel.metrics.clips import Clip, Scores, check_pair, to_levels
from dit_accel.metrics.mae import LEVELS, mean, mean_abs

SPAN = 2
SMALLEST_FLOW = 12
"""Least H and W that OpenCV's DIS flow takes."""


def tdiff(reference: Clip, test: Clip, *, data_range: float) -> float:
    """Mean absolute error of the differences between neighbouring frames.

    Args:
        reference: `(T, H, W, C)`, uint8 or float, T of at least 2.
        test: same shape and kind of dtype.
        data_range: largest minus smallest possible value; 255 for uint8.

    Returns:
        Levels of 255; 0 if both clips change equally.

    Raises:
        ValueError: if the clips cannot be compared; see `clips.check_pair`.

    Example:
        >>> still = np.zeros((2, 8, 8, 3), np.uint8)
        >>> blink = np.stack([still[0], still[1] + 5])
        >>> tdiff(still, blink, data_range=255)
        5.0
    """
    return mean(tdiff_frames(reference, test, data_range=data_range))


def tdiff_frames(reference: Clip, test: Clip, *, data_range: float) -> Scores:
    """`tdiff` of each pair of neighbours, `(T - 1,)`. Arguments and errors: see `tdiff`."""
    check_pair(reference, test, data_range=data_range, fewest=SPAN)
    changes = zip(_changes(reference), _changes(test), strict=True)
    errors = [mean_abs(expected, actual) for expected, actual in changes]
    return np.array(errors) * (LEVELS / data_range)


def flicker(reference: Clip, test: Clip, *, data_range: float) -> float:
    """Difference of the two clips' `temporal_flickering`. Arguments and errors: see `tdiff`.

    Returns:
        In [0, 1]; 0 if both clips change by the same amount.
    """
    return flicker_mean(flicker_frames(reference, test, data_range=data_range))


def flicker_frames(reference: Clip, test: Clip, *, data_range: float) -> Scores:
    """How much more the test changes than the reference, for each pair of neighbours; negative if
    it changes less.

    Arguments and errors: see `tdiff`. Returns `(T - 1,)`, as shares of `data_range`.
    """
    check_pair(reference, test, data_range=data_range, fewest=SPAN)
    pairs = zip(_amounts(reference), _amounts(test), strict=True)
    return np.array([actual - expected for expected, actual in pairs]) / data_range


def flicker_mean(frames: Scores) -> float:
    """The size of the mean of `flicker_frames`."""
    return abs(float(frames.mean()))


def tof(reference: Clip, test: Clip, *, data_range: float) -> float:
    """Distance of the two clips' optical flows.

    Arguments and errors: see `tdiff`; floats in [0, data_range], H and W at least 12.

    Returns:
        Pixels per frame; 0 if both clips move equally.
    """
    return mean(tof_frames(reference, test, data_range=data_range))


def tof_frames(reference: Clip, test: Clip, *, data_range: float) -> Scores:
    """`tof` of each pair of neighbours, `(T - 1,)`. Arguments and errors: see `tof`."""
    check_pair(reference, test, data_range=data_range, fewest=SPAN, smallest=SMALLEST_FLOW)
    flows = zip(
        _flows("reference", reference, data_range), _flows("test", test, data_range), strict=True
    )
    return np.array(
        [np.sqrt(((actual - expected) ** 2).sum(axis=-1)).mean() for expected, actual in flows],
        dtype=np.float64,
    )


def _amounts(clip: Clip) -> list[float]:
    return [mean_abs(before, after) for before, after in itertools.pairwise(clip)]


def _changes(clip: Clip) -> Iterator[Clip]:
    wide = np.int16 if clip.dtype == np.uint8 else np.float64
    for before, after in itertools.pairwise(clip):
        yield np.subtract(after, before, dtype=wide)


def _flows(name: str, clip: Clip, data_range: float) -> Iterator[npt.NDArray[np.float32]]:
    """The flow from each frame to the next, `(H, W, 2)` in pixels."""
    import cv2

    dis: Any = cv2  # its type stubs lack the function
    estimate = dis.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    lumas = (_luma(frame) for frame in to_levels(name, clip, data_range))
    for before, after in itertools.pairwise(lumas):
        yield estimate.calc(before, after, None)


def _luma(frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    import cv2

    if frame.shape[-1] == 1:
        return np.ascontiguousarray(frame[..., 0])
    return cast("npt.NDArray[np.uint8]", cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY))
