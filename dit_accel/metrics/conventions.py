"""Computes the numbers of other tools, for a comparison with published numbers; never the default.

In: two clips. Out: `CONVENTIONS`: for each tool, rows under our names that give its scores.
Knows the arithmetic on given frames. Does not know how a tool crops, resizes, pairs or batches.
Source: each tool's code, at the version that its row names.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from dit_accel.metrics import METRICS, yuv
from dit_accel.metrics.accumulate import Accumulator
from dit_accel.metrics.clips import Clip, Scores, Unavailable, check_pair
from dit_accel.metrics.lpips import lpips, start_lpips
from dit_accel.metrics.mae import mean
from dit_accel.metrics.psnr import EXACT_DB, psnr_frames, psnr_pooled_mean
from dit_accel.metrics.row import FramesFunction, Metric
from dit_accel.metrics.ssim import WINDOW, gaussian, windowed_frames


def teacache_psnr_frames(reference: Clip, test: Clip, *, data_range: float) -> Scores:
    """PSNR of each frame `(T,)`. An error below 1e-10 of the squared range counts as 100 dB."""
    frames = psnr_frames(reference, test, data_range=data_range)
    return np.where(frames > EXACT_DB, EXACT_DB, frames)


def cache_dit_psnr_frames(reference: Clip, test: Clip, *, data_range: float) -> Scores:
    """PSNR of each frame `(T,)` from differences and squares that wrap around in uint8.

    The square of a difference of 16 or more is taken modulo 256, so bad clips get too high scores.
    """
    check_pair(reference, test, data_range=data_range)
    if reference.dtype != np.uint8:
        raise ValueError(f"reference has dtype {reference.dtype}; accepted by cache-dit: uint8")
    with np.errstate(divide="ignore", over="ignore"):
        errors = [((x - y) ** 2).mean() for x, y in zip(reference, test, strict=True)]
        return 20.0 * np.log10(255.0 / np.sqrt(errors))


def cache_dit_psnr_mean(frames: Scores) -> float:
    """Mean of frame scores `(T,)` without exact frames.

    Raises:
        Unavailable: if every frame is exact.
    """
    inexact = frames[np.isfinite(frames)]
    if not len(inexact):
        raise Unavailable("cache-dit reports None where every frame is exact")
    return float(inexact.mean())


def cache_dit_ssim_frames(reference: Clip, test: Clip, *, data_range: float) -> Scores:
    """SSIM of each frame `(T,)`: 7x7 box, sample covariance, valid region."""
    check_pair(reference, test, data_range=data_range, smallest=7)
    return windowed_frames(
        reference, test, data_range=data_range, kernel=_box(7), unbias=49.0 / 48.0
    )


def easycache_ssim_frames(reference: Clip, test: Clip, *, data_range: float) -> Scores:
    """SSIM of each frame `(T,)`: our Gaussian, over the whole frame, with mirrored borders."""
    check_pair(reference, test, data_range=data_range, smallest=WINDOW)
    pair = (_padded(clip, "reflect") for clip in (reference, test))
    return windowed_frames(*pair, data_range=data_range, kernel=gaussian())


def svg_ssim_frames(reference: Clip, test: Clip, *, data_range: float) -> Scores:
    """SSIM of each frame `(T,)`: 11x11 box, over the whole frame, with zeros around it."""
    check_pair(reference, test, data_range=data_range, smallest=WINDOW)
    pair = (_padded(clip, "constant") for clip in (reference, test))
    return windowed_frames(*pair, data_range=data_range, kernel=_box(WINDOW))


def _box(width: int) -> npt.NDArray[np.float64]:
    return np.full((width, 1), 1.0 / width)


def _padded(clip: Clip, mode: Any) -> Clip:
    border = (WINDOW // 2,) * 2
    padded: Clip = np.pad(clip, ((0, 0), border, border, (0, 0)), mode=mode)
    return padded


def _unavailable(reason: str) -> Callable[[float], Accumulator]:
    def start(data_range: float) -> Accumulator:
        raise Unavailable(reason)

    return start


def _row(
    name: str,
    convention: str,
    frames: FramesFunction,
    mean: Callable[[Scores], float] = mean,
    range: tuple[float, float] | None = None,
) -> Metric:
    """Our row with that name, with another function."""
    own = METRICS[name]

    def function(reference: Clip, test: Clip, *, data_range: float) -> float:
        return mean(frames(reference, test, data_range=data_range))

    return dataclasses.replace(
        own,
        convention=convention,
        version=1,
        range=range or own.range,
        function=function,
        frames=frames,
        mean=mean,
    )


def _lpips_row(convention: str, start: Callable[[float], Accumulator], function: Any) -> Metric:
    return dataclasses.replace(
        METRICS["lpips"], convention=convention, version=1, accumulator=start, function=function
    )


def _spatial_lpips(tool: str) -> Metric:
    return _lpips_row(
        f"{tool}: AlexNet v0.1, maps enlarged to the frame's size, mean over frames",
        functools.partial(start_lpips, spatial=True),
        functools.partial(lpips, spatial=True),
    )


CONVENTIONS: dict[str, dict[str, Metric]] = {
    "teacache": {
        "psnr_db": _row("psnr_db",
                        "teacache: rgb, mean over frames, errors below 1e-10 count as 100 dB",
                        teacache_psnr_frames, range=(0.0, EXACT_DB)),
        "ssim": _row("ssim", "teacache: gauss11-rgb, sigma 1.5, valid region, as ours",
                     METRICS["ssim"].frames),  # type: ignore[arg-type]
        "lpips": _spatial_lpips("teacache"),
    },
    "cache-dit": {
        "psnr_db": _row("psnr_db",
                        "cache-dit 1.5.3: rgb, uint8 differences WRAP AROUND (reads too high), "
                        "mean over frames, exact frames left out",
                        cache_dit_psnr_frames, cache_dit_psnr_mean),
        "ssim": _row("ssim",
                     "cache-dit 1.5.3: scikit-image's default, 7x7 box, sample covariance, rgb",
                     cache_dit_ssim_frames),
        "lpips": _lpips_row(
            "cache-dit 1.5.3",
            _unavailable("cache-dit 1.5.3 looks for LPIPS in the wrong module and reports none"),
            lpips),
    },
    "easycache": {
        "psnr_db": _row("psnr_db", "easycache: rgb, of one error pooled over the clip",
                        psnr_frames, psnr_pooled_mean),
        "ssim": _row("ssim",
                     "easycache: torchmetrics 1.9, gauss11-rgb, whole frame, mirrored borders",
                     easycache_ssim_frames),
        "lpips": _spatial_lpips("easycache"),
    },
    "svg": {
        "ssim": _row("ssim", "svg (Sparse-VideoGen): box11-rgb, whole frame, zeros around it",
                     svg_ssim_frames),
        "lpips": _lpips_row(
            "svg (Sparse-VideoGen): VGG fed [0, 1] instead of [-1, 1]",
            _unavailable("Sparse-VideoGen's LPIPS reads VGG16, which is not built in"), lpips),
    },
    "ffmpeg": {
        "psnr_db": _row("psnr_db",
                        "ffmpeg: `average` of yuv420p planes, one error pooled over the clip",
                        yuv.psnr_frames, psnr_pooled_mean),
        "ssim": _row("ssim",
                     "ffmpeg: `All` of yuv420p planes, 8x8 windows every 4 pixels, mean over "
                     "frames",
                     yuv.ssim_frames),
    },
}  # fmt: skip
