"""Measures how close a clip is to its reference: one file for each metric family, and one table.

In: two clips `(T, H, W, C)`, uint8 or float, and a mandatory `data_range`; or two latents. Out: a
score; `METRICS` names its unit, range, direction, convention and version.
Knows: tools that report "SSIM" differ in the first digit, so every result states its convention and
version. Does not know whether a clip looks good: a sharp clip that is shifted by one pixel scores
below a blurred one. A new metric is one file with its functions, and one row here.
Source: in each file.
"""

from __future__ import annotations

import math

from dit_accel.metrics.clips import Unavailable

# Some modules and their main function share a name: with these lines, the package's
# attribute is the function.
from dit_accel.metrics.jod import jod, start_jod
from dit_accel.metrics.latents import LatentSums, latent_cosine, latent_rel_l2
from dit_accel.metrics.lpips import lpips, lpips_frames, start_lpips
from dit_accel.metrics.mae import mae, mae_frames
from dit_accel.metrics.mae import mean as _mean
from dit_accel.metrics.psnr import psnr, psnr_frames, psnr_mean, psnr_pooled, psnr_pooled_mean
from dit_accel.metrics.row import Metric
from dit_accel.metrics.ssim import ssim, ssim_frames
from dit_accel.metrics.st_lpips import st_lpips, st_lpips_frames, start_st_lpips
from dit_accel.metrics.temporal import (
    SPAN,
    flicker,
    flicker_frames,
    flicker_mean,
    tdiff,
    tdiff_frames,
    tof,
    tof_frames,
)
from dit_accel.metrics.vmaf import VmafSpool, vmaf

__all__ = [
    "METRICS",
    "Metric",
    "Unavailable",
    "flicker",
    "flicker_frames",
    "jod",
    "latent_cosine",
    "latent_rel_l2",
    "lpips",
    "lpips_frames",
    "mae",
    "mae_frames",
    "psnr",
    "psnr_frames",
    "psnr_mean",
    "psnr_pooled",
    "ssim",
    "ssim_frames",
    "st_lpips",
    "st_lpips_frames",
    "tdiff",
    "tdiff_frames",
    "tof",
    "tof_frames",
    "vmaf",
]

METRICS: dict[str, Metric] = {
    row.name: row
    for row in (
        Metric("psnr_db", "dB", (0.0, math.inf), "higher",
               "rgb, mean over frames, exact frames count as 100 dB",
               psnr, frames=psnr_frames, mean=psnr_mean, per_frame=True, counts_exact=True,
               seconds=0.0001),
        Metric("psnr_pooled_db", "dB", (0.0, math.inf), "higher",
               "rgb, of one error pooled over the clip",
               psnr_pooled, frames=psnr_frames, mean=psnr_pooled_mean, counts_exact=True,
               seconds=0.0001),
        Metric("ssim", "", (-1.0, 1.0), "higher",
               "gauss11-rgb, sigma 1.5, valid region, mean over frames",
               ssim, frames=ssim_frames, mean=_mean, per_frame=True, seconds=0.011),
        Metric("mae", "levels", (0.0, math.inf), "lower",
               "rgb, mean over frames, in levels of 255",
               mae, frames=mae_frames, mean=_mean, per_frame=True, seconds=0.0001),
        Metric("tdiff", "levels", (0.0, math.inf), "lower",
               "rgb, mean error of frame differences, in levels of 255",
               tdiff, frames=tdiff_frames, mean=_mean, span=SPAN, per_frame=True, seconds=0.0007),
        Metric("flicker", "", (0.0, 1.0), "lower",
               "distance of VBench's temporal_flickering, as a share of 1",
               flicker, frames=flicker_frames, mean=flicker_mean, span=SPAN, seconds=0.0001),
        Metric("tof", "px", (0.0, math.inf), "lower",
               "mean length of the flows' difference, DIS fast on 8-bit luma, a frame",
               tof, frames=tof_frames, mean=_mean, span=SPAN, per_frame=True, seconds=0.015),
        Metric("lpips", "", (0.0, math.inf), "lower",
               "AlexNet v0.1, mean over the frame and over frames",
               lpips, frames=lpips_frames, mean=_mean, per_frame=True,
               accumulator=start_lpips, needs="AlexNet's weights", seconds=0.15),
        Metric("jod", "JOD", (-math.inf, 10.0), "higher",
               "ColorVideoVDP 0.5.7: 30-inch 4K display of 200 cd/m² in an office, seen from "
               "0.75 m, unscaled; at 16 frames a second where a clip states none",
               jod, per_frame=True, accumulator=start_jod, timed=True, seconds=0.25),
        Metric("st_lpips", "", (0.0, math.inf), "lower",
               "shift-tolerant AlexNet vST0.0, mean over the frame and over frames",
               st_lpips, frames=st_lpips_frames, mean=_mean, per_frame=True,
               accumulator=start_st_lpips, needs="the extra `st-lpips`", seconds=1.9),
        Metric("vmaf", "", (0.0, 100.0), "higher",
               "vmaf_v0.6.1 of yuv420p, mean over frames",
               vmaf, per_frame=True, accumulator=VmafSpool, needs="an ffmpeg with libvmaf"),
        Metric("latent_rel_l2", "", (0.0, math.inf), "lower",
               "error over reference, L2 norms of the whole latents",
               latent_rel_l2, accumulator=lambda _: LatentSums("rel_l2"), family="latents"),
        Metric("latent_cosine", "", (-1.0, 1.0), "higher",
               "of the whole latents, not centred",
               latent_cosine, accumulator=lambda _: LatentSums("cosine"), family="latents"),
    )
}  # fmt: skip
