"""Ways in which a user may choose one of several seeds, each as a score of a clip.

In: a clip `(T, H, W, 3)`. Out: a number; higher is better. `CHOICES` score the clip alone. Each
metric of pixels is one more choice: the best seed is the one whose clip is closest to a wanted
clip.
Knows: these scores are substitutes. None of them is what a person likes, and there is no trained
judge of taste here. A method that preserves the ranking by all of them is likely to preserve a
person's ranking, too.
Source: colour: Hasler and Süsstrunk 2003, "Measuring colourfulness in natural images", section 7;
detail: the variance of the Laplacian, Pech-Pacheco et al. 2000; motion: as VBench's
temporal_flickering, arXiv 2311.17982, counts change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from dit_accel.metrics import METRICS
from dit_accel.metrics.clips import Clip

SHORT_SIDE = 96
"""Clips are made so small before they are scored: a choice among seeds is one at a glance."""


@dataclass(frozen=True)
class SeedChoice:
    """A way to choose a seed: the one with the highest score."""

    name: str
    summary: str
    score: Callable[[Clip], float]


def motion(clip: Clip) -> float:
    """Mean change from frame to frame, in levels of 255; 0 for a single frame."""
    if len(clip) < 2:
        return 0.0
    return float(np.abs(np.diff(clip.astype(np.float64), axis=0)).mean())


def detail(clip: Clip) -> float:
    """Variance of the luma's Laplacian, mean over frames."""
    lumas = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip)
    return float(np.mean([cv2.Laplacian(luma, cv2.CV_64F).var() for luma in lumas]))


def colour(clip: Clip) -> float:
    """Colourfulness: spread and distance from grey of the opponent colours, mean over frames."""
    rgb = clip.astype(np.float64)
    red_green = rgb[..., 0] - rgb[..., 1]
    yellow_blue = (rgb[..., 0] + rgb[..., 1]) / 2 - rgb[..., 2]
    over = (1, 2)
    spread = np.hypot(red_green.std(axis=over), yellow_blue.std(axis=over))
    distance = np.hypot(red_green.mean(axis=over), yellow_blue.mean(axis=over))
    return float((spread + 0.3 * distance).mean())


CHOICES = {
    row.name: row
    for row in (
        SeedChoice("motion", "the most motion", motion),
        SeedChoice("detail", "the most detail", detail),
        SeedChoice("colour", "the most colour", colour),
    )
}


def sign(choice: str) -> int:
    """-1 for metrics of which less is better, because here higher is better; else 1."""
    return -1 if choice in METRICS and METRICS[choice].direction == "lower" else 1


def at_a_glance(clip: Clip) -> Clip:
    """The frames, reduced to at most `SHORT_SIDE` pixels at their short side, by means over
    areas."""
    height, width = clip.shape[1:3]
    factor = SHORT_SIDE / min(height, width)
    if factor >= 1:
        return clip
    size = (round(width * factor), round(height * factor))
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in clip])
