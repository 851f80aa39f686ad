"""Is every subject of a clip itself? Colour, shape, motion and identity, by OpenCV and maths.

The miniature's world paints flat colours over greys. So the part of a pixel's colour that is not
grey says what covers it and how much: `alpha` of a palette colour is exact on a true rendering, at
edges too. Shapes are told by laying the world's own seven shapes over that alpha, at the best place
and size, and adding up over frames; the one that overlaps most is named.

A verdict on a subject asks its own region only (where the layout puts it): is its colour the one
that covers most there, and does that have its shape? A verdict on a clip adds what went wrong:
colours or shapes that changed places (`swapped`), and fewer subjects than asked (`merged`).

How far the judge can be trusted: `python scripts/scene_checks.py` runs it on true renderings, and
on renderings of scenes with exchanged colours or shapes, which it must call wrong.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from check_miniature import moves_as
from miniature_world import (
    CHECK_STREAM,
    COLORS,
    DEFAULT,
    SHAPES,
    Scene,
    _signed_distance,
    render,
    scene_at,
)

NAMES = tuple(COLORS)
PALETTE = np.array([COLORS[name] for name in NAMES], np.float32) / 255
LEAST_SHARE, LEAST_FRAMES = 0.003, 0.8  # of the frame, of the frames: as in check_miniature
CHROMA = 22.0  # in CIELAB: greyer pixels have no colour
SIDE = 32  # of a scale-normalised mask

Region = tuple[float, float, float, float]  # x0, y0, x1, y1 in shares of the frame


@dataclass(frozen=True)
class Expected:
    """What a subject should be: the words of its caption, and the region that is its own."""

    color: str
    shape: str
    motion: str
    region: Region


@dataclass(frozen=True)
class Seen:
    """What is in a region: None where nothing is. `overlap`: of the shape that fits best."""

    color: str | None
    shape: str | None
    overlap: float
    lab: tuple[float, float, float] | None
    mask: np.ndarray | None = dataclasses.field(repr=False, default=None)
    path: np.ndarray | None = dataclasses.field(repr=False, default=None)


@dataclass(frozen=True)
class Verdict:
    """Of a clip: colour, shape and motion right, subject by subject; and what went wrong."""

    color: tuple[bool, ...]
    shape: tuple[bool, ...]
    motion: tuple[bool, ...]
    swapped: bool
    merged: bool

    @property
    def right(self) -> bool:
        """Every subject has its own colour and shape in its own region."""
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


def look(clip: np.ndarray, region: Region) -> Seen:
    """What is in a region of a clip (T, H, W, 3) in [0, 1]."""
    inside = _window(clip.shape[1:3], region)
    colors = colors_of(clip)[(slice(None), *inside)]
    counts = np.stack([(colors == i).sum((1, 2)) for i in range(len(NAMES))])  # (8, T)
    best = int(counts.sum(1).argmax())
    area = clip.shape[1] * clip.shape[2]
    present = counts[best] >= LEAST_SHARE * area
    if present.mean() < LEAST_FRAMES:
        return Seen(None, None, 0.0, None)
    own = colors == best
    part = clip[(slice(None), *inside)]
    alpha = np.where(_near(own), alpha_of(part, best), 0)
    shape, overlap = shape_of(alpha[present])
    core = part[own & (alpha > 0.85)]
    lab = cv2.cvtColor(core.mean(0)[None, None].astype(np.float32), cv2.COLOR_RGB2LAB)[0, 0]
    lab = None if not len(core) else tuple(float(value) for value in lab)
    masks = [m for m in map(normalised, alpha[present]) if m is not None]
    mask = np.mean(masks, axis=0) if masks else None
    return Seen(NAMES[best], shape, overlap, lab, mask, _path(alpha, inside, clip.shape[1:3]))


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
    """Separate one-coloured subjects in a frame of `colors_of`, specks aside."""
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
    """Whether a subject moves as in the other shot and not as its own caption says."""
    if second.path is None or own == other:
        return None
    return bool(moves_as(second.path, other) and not moves_as(second.path, own))


def shape_of(alpha: np.ndarray) -> tuple[str | None, float]:
    """The world's shape that fits alphas (T, h, w) best, and its mean overlap over frames."""
    frames = alpha[:: max(1, len(alpha) // 6)]
    scores = [fit for fit in map(_fits, frames) if fit is not None]
    if not scores:
        return None, 0.0
    mean = np.mean(scores, axis=0)
    return SHAPES[int(mean.argmax())], float(mean.max())


def normalised(alpha: np.ndarray) -> np.ndarray | None:
    """An alpha (h, w) at one size and place: (SIDE, SIDE); None where there is next to nothing."""
    at = _moments(alpha)
    if at is None:
        return None
    x, y, reach = at
    scale = SIDE / (6.4 * reach)  # reach is the rms distance; an outline lies at 1.3 to 2 of it
    move = np.array(
        [[scale, 0, SIDE / 2 - 0.5 - scale * x], [0, scale, SIDE / 2 - 0.5 - scale * y]]
    )
    return cv2.warpAffine(alpha, move, (SIDE, SIDE), flags=cv2.INTER_LINEAR)


def _fits(alpha: np.ndarray) -> np.ndarray | None:
    """The best overlap of each shape over places and sizes near the one that moments give."""
    at = _moments(alpha)
    if at is None:
        return None
    target = torch.from_numpy(alpha)
    rows = torch.arange(alpha.shape[0], dtype=torch.float32)[None, :, None]
    columns = torch.arange(alpha.shape[1], dtype=torch.float32)[None, None, :]
    scores = []
    for shape in SHAPES:
        x, y, r = at[0], at[1], at[2] / _REACH[shape]
        best = -1.0
        for step in (1.0, 0.4):
            grid = torch.cartesian_prod(*[torch.tensor([-step, 0, step])] * 2)
            sizes = r * (1 + step * torch.tensor([-0.16, -0.08, 0, 0.08, 0.16]))
            tries = torch.cat([torch.cat([grid, s.expand(9, 1)], 1) for s in sizes])
            dx, dy, radius = (tries[:, i, None, None] for i in range(3))
            off = torch.broadcast_tensors(columns - x - dx, rows - y - dy)
            cover = (0.5 - _signed_distance(shape, *off, radius)).clamp(0, 1)
            over = torch.minimum(cover, target).sum((1, 2)) / torch.maximum(cover, target).sum(
                (1, 2)
            )
            top = int(over.argmax())
            best = max(best, float(over[top]))
            x, y, r = x + float(tries[top, 0]), y + float(tries[top, 1]), float(tries[top, 2])
        scores.append(best)
    return np.array(scores)


def _moments(alpha: np.ndarray) -> tuple[float, float, float] | None:
    """Centre x and y and rms distance from it, in pixels; None under 8 pixels of area."""
    mass = float(alpha.sum())
    if mass < 8:
        return None
    rows, columns = np.indices(alpha.shape)
    x, y = float((columns * alpha).sum() / mass), float((rows * alpha).sum() / mass)
    spread = ((columns - x) ** 2 + (rows - y) ** 2) * alpha
    return x, y, float(np.sqrt(spread.sum() / mass))


def _reaches() -> dict[str, float]:
    """The rms distance of each shape of radius 1; the triangle's centre is off its mass's."""
    span = torch.linspace(-1.6, 1.6, 201)
    y, x = torch.meshgrid(span, span, indexing="ij")
    one = torch.ones(())
    found = {}
    for shape in SHAPES:
        cover = (_signed_distance(shape, x, y, one) < 0).float()
        cx, cy = (x * cover).sum() / cover.sum(), (y * cover).sum() / cover.sum()
        spread = ((x - cx) ** 2 + (y - cy) ** 2) * cover
        found[shape] = float((spread.sum() / cover.sum()).sqrt())
    return found


_REACH = _reaches()


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
    """(T', 3): centre and area in short sides, in the frames where it is there."""
    unit = min(size)
    rows = []
    for frame in alpha:
        at = _moments(frame)
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
    """Whether some subject has what another should have, in colour or shape, and not its own."""
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
    """What a scene's caption asks for, each subject in the part of the frame that it names."""
    count = len(scene.subjects)
    places = [cell(s.place, count) if count > 1 else (0.0, 0.0, 1.0, 1.0) for s in scene.subjects]
    return [
        Expected(s.color, s.shape, s.motion, place)
        for s, place in zip(scene.subjects, places, strict=True)
    ]


def exchanged(scene: Scene, field: str) -> Scene:
    """The same scene with one property passed on from each subject to the next."""
    values = [getattr(subject, field) for subject in scene.subjects]
    moved = values[1:] + values[:1]
    subjects = [
        dataclasses.replace(s, **{field: value})
        for s, value in zip(scene.subjects, moved, strict=True)
    ]
    return dataclasses.replace(scene, subjects=tuple(subjects))


def trust(count: int, seed: int = 0) -> dict[str, float]:
    """How often the judge is right on true renderings with and without an exchange."""
    stream = (scene_at(CHECK_STREAM, 900_000 + 10_000 * seed + i) for i in range(50 * count))
    several = [
        s for s in stream
        if len({x.color for x in s.subjects}) == len({x.shape for x in s.subjects})
        == len(s.subjects) > 1
    ][:count]  # fmt: skip
    found = {"scenes": float(len(several))}
    for field in ("", "color", "shape"):
        drawn = [exchanged(scene, field) if field else scene for scene in several]
        clips = (render(drawn, *DEFAULT).permute(0, 2, 3, 4, 1).numpy() + 1) / 2
        verdicts = [judge(c, expected_of(s)) for c, s in zip(clips, several, strict=True)]
        if not field:
            found["right"] = float(np.mean([v.right for v in verdicts]))
            found["color"] = float(np.mean([x for v in verdicts for x in v.color]))
            found["shape"] = float(np.mean([x for v in verdicts for x in v.shape]))
            found["motion"] = float(np.mean([x for v in verdicts for x in v.motion]))
            found["merged"] = float(np.mean([v.merged for v in verdicts]))
            found["swapped"] = float(np.mean([v.swapped for v in verdicts]))
        else:
            found[f"{field}_wrong"] = float(np.mean([not v.right for v in verdicts]))
            found[f"{field}_swapped"] = float(np.mean([v.swapped for v in verdicts]))
    return {name: round(value, 4) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(json.dumps(trust(args.scenes, args.seed)))


if __name__ == "__main__":
    main()
