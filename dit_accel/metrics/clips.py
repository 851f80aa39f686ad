"""Checks the conditions that every metric has for its two clips.

In: two clips `(T, H, W, C)` and their `data_range`. Out: nothing, or an error that names the
argument, its value and what is accepted.
Knows shapes, dtypes and finiteness. Does not know whether floats really span `data_range`: frames
in [0, 255] that are scored with `data_range=1.0` pass.
Source: ours.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Clip = npt.NDArray[Any]  # `(T, H, W, C)`, uint8 or float; or latents of any shape
Scores = npt.NDArray[np.float64]  # one number for each frame, `(T,)`


class Unavailable(Exception):
    """A metric cannot be measured here; the message is the reason."""


class TooSmall(ValueError, Unavailable):
    """A metric needs larger frames, or more of them. Other metrics may score the clips."""


def check_pair(
    reference: Clip, test: Clip, *, data_range: float, smallest: int = 1, fewest: int = 1
) -> None:
    """Refuse a pair of clips that cannot be scored.

    Args:
        reference: `(T, H, W, C)`, uint8 or float, C of 1 or 3, finite.
        test: same shape; uint8 if and only if `reference` is.
        data_range: largest minus smallest possible value; 255 for uint8.
        smallest: least H and W that the metric can score.
        fewest: least T that the metric can score.

    Raises:
        ValueError: naming the argument, its value and what is accepted. It is a `TooSmall` if
            other metrics may score the clips.
    """
    _check_clip("reference", reference, smallest)
    if reference.shape != test.shape:
        raise ValueError(
            f"test has shape {test.shape}, reference has {reference.shape}; accepted: equal shapes"
        )
    _check_clip("test", test, smallest)
    if len(reference) < fewest:
        raise TooSmall(f"reference has {len(reference)} frames; accepted: at least {fewest}")
    if (reference.dtype == np.uint8) != (test.dtype == np.uint8):
        raise ValueError(
            f"reference has dtype {reference.dtype}, test has {test.dtype}; "
            "accepted: both uint8, or both float"
        )
    _check_data_range(data_range, is_uint8=reference.dtype == np.uint8)
    _check_finite("reference", reference)
    _check_finite("test", test)


def to_levels(name: str, clip: Clip, data_range: float) -> npt.NDArray[np.uint8]:
    """A clip in 8-bit levels, as in files and for metrics that use 8-bit code. Values slightly out
    of range are clipped.

    Args:
        name: the name of the clip in error messages.
        clip: `(T, H, W, C)`, uint8 or float in [0, data_range].
        data_range: largest possible value; 255 for uint8.

    Returns:
        `(T, H, W, C)` uint8; the same array if it was uint8 already.

    Raises:
        ValueError: values are out of range, or not finite.
    """
    if clip.dtype == np.uint8:
        return clip
    levels = np.empty(clip.shape, np.uint8)
    for index, frame in enumerate(clip):  # one by one: a copy of all in float needs much memory
        low, high = float(frame.min()), float(frame.max())
        if not (low >= -1e-3 * data_range and high <= (1 + 1e-3) * data_range):
            raise ValueError(
                f"{name} has values from {low} to {high} in frame {index}; accepted: 0 to "
                f"{data_range:g}"
            )
        scaled = frame.astype(np.float32) * np.float32(255 / data_range)
        levels[index] = np.rint(scaled.clip(0, 255))
    return levels


def _check_clip(name: str, clip: Clip, smallest: int) -> None:
    if clip.ndim != 4 or clip.shape[3] not in (1, 3) or len(clip) == 0:
        raise ValueError(
            f"{name} has shape {clip.shape}; accepted: (T, H, W, C) with T at least 1 and C 1 or 3"
        )
    if min(clip.shape[1:3]) < smallest:
        raise TooSmall(
            f"{name} has frames of {clip.shape[1]}x{clip.shape[2]}; "
            f"accepted: at least {smallest}x{smallest}"
        )
    if clip.dtype != np.uint8 and not np.issubdtype(clip.dtype, np.floating):
        raise ValueError(f"{name} has dtype {clip.dtype}; accepted: uint8 or float")


def _check_data_range(data_range: float, *, is_uint8: bool) -> None:
    if not (math.isfinite(data_range) and data_range > 0):
        raise ValueError(f"data_range is {data_range}; accepted: a finite number above 0")
    if is_uint8 and data_range != 255:
        raise ValueError(f"data_range is {data_range}; accepted: 255 for uint8 clips")


def _check_finite(name: str, clip: Clip) -> None:
    if clip.dtype == np.uint8:
        return
    for index, frame in enumerate(clip):
        if not np.isfinite(frame).all():
            raise ValueError(
                f"{name} has NaN or infinite values in frame {index}; accepted: finite values"
            )
