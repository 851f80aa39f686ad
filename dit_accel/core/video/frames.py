"""Rounds clips in memory to 8 bits.

A clip in floats comes in, one in uint8 goes out. Every file and every score uses this function, so
that equal clips stay equal. Source: ours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dit_accel.metrics.clips import to_levels

Frames = npt.NDArray[np.uint8]


def to_uint8(frames: npt.NDArray[Any], *, name: str = "frames") -> Frames:
    """Round a clip to `(T, H, W, 3)` uint8. An array that is uint8 already is returned itself.

    Args:
        frames: `(T, H, W, 3)` RGB, uint8 or float in [0, 1]; values up to 1e-3 outside are clipped.
        name: the argument's name for error messages.

    Raises:
        ValueError: shape, dtype or range is not as above.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise ValueError(f"{name} has shape {frames.shape}; accepted: (T, H, W, 3), none of them 0")
    if frames.dtype != np.uint8 and not np.issubdtype(frames.dtype, np.floating):
        raise ValueError(f"{name} has dtype {frames.dtype}; accepted: uint8, or float in [0, 1]")
    return to_levels(name, frames, 1.0)
