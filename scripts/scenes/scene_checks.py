"""Judges a clip of the miniature's world: colour, shape, motion and identity of every subject.

In: a clip (T, H, W, 3) in [0, 1], and for each subject its colour, shape, motion and region of the
frame. Out: a `Verdict`, subject by subject, and whether subjects were `swapped` or `merged`.

The world paints flat colours on greys. So the part of a pixel's colour that is not grey shows which
colour covers it and how much: `alpha` is exact on a true rendering, also at edges. The mean alpha
over the frames, at one size and place, is compared with each shape of about that size after the VAE
(`scene_shapes.py`). The best overlap decides the shape. A subject is judged in its own region only.
`check_judge.py` measures how often the judge is right. Source: ours, with OpenCV.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "miniature"))

from check_miniature import moves_as
from scene_shapes import Templates, mean_mask, moments
from world import (
    COLORS,
    Scene,
)

NAMES = tuple(COLORS)
PALETTE = np.array([COLORS[name] for name in NAMES], np.float32) / 255
# share of the frame, and of the frames: as in check_miniature
LEAST_SHARE, LEAST_FRAMES = 0.003, 0.8
CHROMA = 22.0  # in CIELAB: greyer pixels have no colour

Region = tuple[float, float, float, float]  # x0, y0, x1, y1 in shares of the frame


@dataclass(frozen=True)
class Expected:
    """The expected subject: the words of its caption, and its own region."""

    color: str
    shape: str
    motion: str
    region: Region


@dataclass(frozen=True)
class Seen:
    """The content of a region; None if it is empty. `overlap`: that of the best shape."""

    color: str | None
    shape: str | None
    overlap: float
    lab: tuple[float, float, float] | None
    mask: np.ndarray | None = dataclasses.field(repr=False, default=None)
    path: np.ndarray | None = dataclasses.field(repr=False, default=None)


@dataclass(frozen=True)
class Verdict:
    """The verdict on a clip: whether colour, shape and motion of each subject are right, and what
    is wrong."""

    color: tuple[bool, ...]
    shape: tuple[bool, ...]
    motion: tuple[bool, ...]
    swapped: bool
    merged: bool

    @property
    def right(self) -> bool:
        """Whether every subject has its own colour and shape in its own region."""
        return all(self.color) and all(self.shape)


def colors_of(clip: np.ndarray) -> np.ndarray:
    """Index of the palette colour of each pixel, -1 for greys: (T, H, W); clip in [0, 1]."""
    palette = cv2.cvtColor(PALETTE[None], cv2.COLOR_RGB2LAB)[0]
    found = np.empty(clip.shape[:3], np.int8)
    for index, frame in enumerate(clip.astype(np.float32)):
        lab = cv2.cvtColor(frame, cv2.COLOR_RGB2LAB)
        gaps = (lab[:, :, None] - palette) * np.array([0.5, 1, 1], np.float32)
        nearest = np.square(gaps).sum(-1).argmin(-1)
        found[index] = np.where(np.hypot(lab[..., 1], lab[..., 2]) > CHROMA, nearest, -1)
    return found


def alpha_of(clip: np.ndarray, color: int) -> np.ndarray:
    """How much of each pixel a palette colour covers, over greys: (T, H, W) in [0, 1]."""
    own = PALETTE[color] - PALETTE[color].mean()
    chroma = clip - clip.mean(-1, keepdims=True)
    return np.clip(chroma @ own / (own @ own), 0, 1).astype(np.float32)


def own_alpha(clip: np.ndarray, region: Region) -> tuple[int, np.ndarray]:
    """The colour that covers most of a region, and the alpha (T, h, w) of its largest piece."""
    inside = _window(clip.shape[1:3], region)
    colors = colors_of(clip)[(slice(None), *inside)]
    best = int(np.bincount(colors[colors >= 0], minlength=len(NAMES)).argmax())
    alpha = alpha_of(clip[(slice(None), *inside)], best)
    return best, np.where(_near(colors == best), alpha, 0).astype(np.float32)


def look(clip: np.ndarray, region: Region) -> Seen:
    """The content of a region of a clip (T, H, W, 3) in [0, 1]."""
    best, alpha = own_alpha(clip, region)
    area = clip.shape[1] * clip.shape[2]
    present = (alpha > 0.5).sum((1, 2)) >= LEAST_SHARE * area
    found = mean_mask(alpha[present]) if present.any() else None
    if found is None or present.mean() < LEAST_FRAMES:
        return Seen(None, None, 0.0, None)
    mask, reach = found
    inside = _window(clip.shape[1:3], region)
    core = clip[(slice(None), *inside)][alpha > 0.85]
    lab = None
    if len(core):
        mean = core.mean(0)[None, None].astype(np.float32)
        lab = tuple(float(value) for value in cv2.cvtColor(mean, cv2.COLOR_RGB2LAB)[0, 0])
    shape, overlap = templates().name(mask, reach)
    return Seen(NAMES[best], shape, overlap, lab, mask, _path(alpha, inside, clip.shape[1:3]))


@functools.cache
def templates() -> Templates:
    """The templates in `assets/mini-wan-shapes.npz`, read once."""
    return Templates()


def judge(clip: np.ndarray, expected: Sequence[Expected]) -> Verdict:
    """The verdict on a clip (T, H, W, 3) in [0, 1]."""
    seen = [look(clip, one.region) for one in expected]
    pairs = list(zip(seen, expected, strict=True))
    color = tuple(s.color == e.color for s, e in pairs)
    shape = tuple(s.shape == e.shape for s, e in pairs)
    motion = tuple(s.path is not None and moves_as(s.path, e.motion) for s, e in pairs)
    count = np.mean([pieces(frame) for frame in colors_of(clip)])
    return Verdict(color, shape, motion, _swapped(pairs), merged=bool(count < len(expected) - 0.5))


def pieces(colors: np.ndarray) -> int:
    """Separate subjects of one colour in a frame of `colors_of`, without specks."""
    least = LEAST_SHARE * colors.size
    count = 0
    for index in range(len(NAMES)):
        mask = (colors == index).astype(np.uint8)
        if mask.sum() >= least:
            stats = cv2.connectedComponentsWithStats(mask, connectivity=8)[2]
            count += int((stats[1:, cv2.CC_STAT_AREA] >= least).sum())
    return count


def identity(a: Seen, b: Seen) -> tuple[float, float] | None:
    """Between two shots: distance in CIELAB, and 1 - overlap of the masks at one size."""
    if a.lab is None or b.lab is None or a.mask is None or b.mask is None:
        return None
    color = float(np.linalg.norm(np.subtract(a.lab, b.lab)))
    return color, 1 - _overlap(a.mask, b.mask)


def copies(second: Seen, own: str, other: str) -> bool | None:
    """Whether a subject moves as in the other shot, and not as in its own caption."""
    if second.path is None or own == other:
        return None
    return bool(moves_as(second.path, other) and not moves_as(second.path, own))


def _near(own: np.ndarray) -> np.ndarray:
    """The largest piece of a colour in each frame (T, h, w), and the pixel around it."""
    found = np.zeros(own.shape, bool)
    for index, frame in enumerate(own.astype(np.uint8)):
        grown = cv2.dilate(frame, np.ones((3, 3), np.uint8))
        _, labels, stats, _ = cv2.connectedComponentsWithStats(grown, connectivity=8)
        if len(stats) > 1:
            found[index] = labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()
    return found


def _path(
    alpha: np.ndarray, inside: tuple[slice, slice], size: tuple[int, int]
) -> np.ndarray | None:
    """(T', 3): centre and area in short sides, in the frames with the subject."""
    unit = min(size)
    rows = []
    for frame in alpha:
        at = moments(frame)
        if at is not None:
            x, y = at[0] + 0.5 + inside[1].start, at[1] + 0.5 + inside[0].start
            rows.append((x / unit, y / unit, float(frame.sum()) / unit**2))
    return np.array(rows) if len(rows) >= max(LEAST_FRAMES * len(alpha), 6) else None


def _window(size: tuple[int, int], region: Region) -> tuple[slice, slice]:
    height, width = size
    x0, y0, x1, y1 = region
    return (
        slice(int(np.floor(y0 * height)), max(int(np.ceil(y1 * height)), 1)),
        slice(int(np.floor(x0 * width)), max(int(np.ceil(x1 * width)), 1)),
    )


def _swapped(pairs: Sequence[tuple[Seen, Expected]]) -> bool:
    """Whether some subject has the colour or shape of another one instead of its own."""
    for name in ("color", "shape"):
        wanted = [getattr(e, name) for _, e in pairs]
        for i, (seen, expected) in enumerate(pairs):
            value = getattr(seen, name)
            others = wanted[:i] + wanted[i + 1 :]
            if value is not None and value != getattr(expected, name) and value in others:
                return True
    return False


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.minimum(a, b).sum() / max(float(np.maximum(a, b).sum()), 1e-6))


def cell(place: str, count: int) -> Region:
    """The part of the frame that a place of the world's captions names."""
    if place == "on the left":
        return (0.0, 0.0, 1 / count, 1.0)
    if place == "on the right":
        return (1 - 1 / count, 0.0, 1.0, 1.0)
    if place == "in the middle" and count == 3:
        return (1 / 3, 0.0, 2 / 3, 1.0)
    return (0.0, 0.0, 1.0, 1.0)


def expected_of(scene: Scene) -> list[Expected]:
    """The content that a scene's caption describes, with each subject in the part of the frame that
    it names."""
    count = len(scene.subjects)
    places = [cell(s.place, count) if count > 1 else (0.0, 0.0, 1.0, 1.0) for s in scene.subjects]
    return [
        Expected(s.color, s.shape, s.motion, place)
        for s, place in zip(scene.subjects, places, strict=True)
    ]
