"""Shared by the page's plots: names and decimals of metrics, sizes, and positions of scores.

In: a metric, a value or a size. Out: texts, numbers and margins.
Source: ours.
"""

from __future__ import annotations

import math
from typing import Any

from dit_accel.evaluation.html.svg import Size
from dit_accel.metrics import METRICS

CEILING = {"psnr_db": 60.0}  # scores above are drawn at the edge: 100 dB would flatten the rest
_RIGHT = 14  # pixels beside the axes
_NAMES = {
    "psnr_db": "PSNR",
    "psnr_pooled_db": "PSNR of the pooled error",
    "ssim": "SSIM",
    "mae": "MAE",
    "tdiff": "temporal difference",
    "tof": "tOF",
    "jod": "JOD",
    "lpips": "LPIPS",
    "st_lpips": "ST-LPIPS",
    "latent_rel_l2": "latents, relative L2",
    "latent_cosine": "latents, cosine",
}
WIDE, NARROW = (1040, 13.0), (358, 11.5)


def title(metric: str) -> str:
    """A metric's name with its unit, for an axis."""
    name = _NAMES.get(metric, metric.replace("_", " "))
    unit = METRICS[metric].unit if metric in METRICS else ""
    return f"{name}, {unit}" if unit and unit not in name else name


def shown_at(metric: str, value: float) -> float:
    """The value at which a score is drawn: at most the ceiling."""
    return min(value, CEILING.get(metric, math.inf))


def end_at(metric: str, value: float | None) -> float | None:
    """`shown_at` for the end of an interval."""
    return None if value is None else shown_at(metric, value)


def score_ticks(axis: Any, metric: str) -> None:
    """Label an axis of scores. The tick of the ceiling has a "+"."""
    ceiling = CEILING.get(metric, math.inf)
    axis.set_major_formatter(lambda value, _: f"{value:g}" + ("+" if value >= ceiling else ""))


def margins(
    size: Size, *, left: float, bottom: float, top: float = 30
) -> tuple[float, float, float, float]:
    """The margins of axes, in shares of the figure; on the right it is always the same."""
    return (
        left / size.width,
        bottom / size.height,
        1 - (left + _RIGHT) / size.width,
        1 - (top + bottom) / size.height,
    )


def kind(size: Size) -> str:
    """A part of the ids in a figure of this size."""
    return "narrow" if size.narrow else "wide"
