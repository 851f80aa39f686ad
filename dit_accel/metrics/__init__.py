"""Fidelity of a clip against its reference: one file per metric family, one row per metric.

Every metric takes two clips `(T, H, W, C)`, uint8 or float, and a mandatory `data_range`: a score
whose scale was guessed is not a score. A row of `METRICS` names the convention and its version
beside the function, because tools that all say "SSIM" differ in the first digit; write both into
every result. A new metric is one file with its functions, and one row here.

What no row here knows: whether a clip looks good. These metrics measure alignment with the
reference: a sharp clip that is shifted by one pixel scores below a blurred one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

# A module and its main function share a name: these lines make the package attribute the function.
from dit_accel.metrics.psnr import psnr, psnr_frames, psnr_mean
from dit_accel.metrics.ssim import ssim, ssim_frames, ssim_mean

__all__ = [
    "METRICS",
    "Metric",
    "psnr",
    "psnr_frames",
    "psnr_mean",
    "ssim",
    "ssim_frames",
    "ssim_mean",
]


class ClipFunction(Protocol):
    """Two clips `(T, H, W, C)` -> one score."""

    def __call__(
        self, reference: npt.NDArray[Any], test: npt.NDArray[Any], *, data_range: float
    ) -> float: ...


class FramesFunction(Protocol):
    """Two clips `(T, H, W, C)` -> scores `(T,)`."""

    def __call__(
        self, reference: npt.NDArray[Any], test: npt.NDArray[Any], *, data_range: float
    ) -> npt.NDArray[np.float64]: ...


@dataclass(frozen=True)
class Metric:
    """One row: what is measured, how, and which way is better.

    Where a metric is a mean over frames, `frames` and `mean` are its two halves, so that a caller
    who keeps the frame scores computes them once: `function(a, b) == mean(frames(a, b))`.
    """

    name: str
    unit: str
    range: tuple[float, float]
    direction: Literal["higher", "lower"]
    convention: str
    version: int
    function: ClipFunction
    frames: FramesFunction | None = None
    mean: Callable[[npt.NDArray[np.float64]], float] | None = None


METRICS: dict[str, Metric] = {
    row.name: row
    for row in (
        Metric(
            name="psnr_db",
            unit="dB",
            range=(0.0, math.inf),
            direction="higher",
            convention="rgb, mean over frames, exact frames count as 100 dB",
            version=1,
            function=psnr,
            frames=psnr_frames,
            mean=psnr_mean,
        ),
        Metric(
            name="ssim",
            unit="",
            range=(-1.0, 1.0),
            direction="higher",
            convention="gauss11-rgb, sigma 1.5, valid region, mean over frames",
            version=1,
            function=ssim,
            frames=ssim_frames,
            mean=ssim_mean,
        ),
    )
}
