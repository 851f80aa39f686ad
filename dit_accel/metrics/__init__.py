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

from dit_accel.metrics.clips import Unavailable

# Some modules and their main function share a name: these lines make the package attribute the
# function.
from dit_accel.metrics.latents import LatentSums, latent_cosine, latent_rel_l2
from dit_accel.metrics.lpips import lpips, lpips_frames, start_lpips
from dit_accel.metrics.mae import mae, mae_frames
from dit_accel.metrics.mae import mean as _mean
from dit_accel.metrics.psnr import psnr, psnr_frames, psnr_mean, psnr_pooled, psnr_pooled_mean
from dit_accel.metrics.row import Metric
from dit_accel.metrics.ssim import ssim, ssim_frames, ssim_mean
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
    "ssim_mean",
    "tdiff",
    "tdiff_frames",
    "tof",
    "tof_frames",
    "vmaf",
]

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
            per_frame=True,
            counts_exact=True,
        ),
        Metric(
            name="psnr_pooled_db",
            unit="dB",
            range=(0.0, math.inf),
            direction="higher",
            convention="rgb, of one error pooled over the clip",
            version=1,
            function=psnr_pooled,
            frames=psnr_frames,
            mean=psnr_pooled_mean,
            counts_exact=True,
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
            per_frame=True,
        ),
        Metric(
            name="mae",
            unit="levels",
            range=(0.0, math.inf),
            direction="lower",
            convention="rgb, mean over frames, in levels of 255",
            version=1,
            function=mae,
            frames=mae_frames,
            mean=_mean,
            per_frame=True,
        ),
        Metric(
            name="tdiff",
            unit="levels",
            range=(0.0, math.inf),
            direction="lower",
            convention="rgb, mean error of frame differences, in levels of 255",
            version=1,
            function=tdiff,
            frames=tdiff_frames,
            mean=_mean,
            span=SPAN,
            per_frame=True,
        ),
        Metric(
            name="flicker",
            unit="",
            range=(0.0, 1.0),
            direction="lower",
            convention="distance of VBench's temporal_flickering, as a share of 1",
            version=1,
            function=flicker,
            frames=flicker_frames,
            mean=flicker_mean,
            span=SPAN,
        ),
        Metric(
            name="tof",
            unit="px",
            range=(0.0, math.inf),
            direction="lower",
            convention="mean length of the flows' difference, DIS fast on 8-bit luma, a frame",
            version=1,
            function=tof,
            frames=tof_frames,
            mean=_mean,
            span=SPAN,
            per_frame=True,
        ),
        Metric(
            name="lpips",
            unit="",
            range=(0.0, math.inf),
            direction="lower",
            convention="AlexNet v0.1, mean over the frame and over frames",
            version=1,
            function=lpips,
            frames=lpips_frames,
            mean=_mean,
            per_frame=True,
            accumulator=start_lpips,
            needs="AlexNet's weights",
        ),
        Metric(
            name="vmaf",
            unit="",
            range=(0.0, 100.0),
            direction="higher",
            convention="vmaf_v0.6.1 of yuv420p, mean over frames",
            version=1,
            function=vmaf,
            per_frame=True,
            accumulator=VmafSpool,
            needs="an ffmpeg with libvmaf",
        ),
        Metric(
            name="latent_rel_l2",
            unit="",
            range=(0.0, math.inf),
            direction="lower",
            convention="error over reference, L2 norms of the whole latents",
            version=1,
            function=latent_rel_l2,
            accumulator=lambda _: LatentSums("rel_l2"),
            family="latents",
        ),
        Metric(
            name="latent_cosine",
            unit="",
            range=(-1.0, 1.0),
            direction="higher",
            convention="of the whole latents, not centred",
            version=1,
            function=latent_cosine,
            accumulator=lambda _: LatentSums("cosine"),
            family="latents",
        ),
    )
}
