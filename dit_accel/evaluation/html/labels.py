"""Places the texts of a plot so that none covers another or a point.

In: texts at points. Out: the texts, drawn beside their points on matplotlib's axes.
Knows: pixels. It is greedy: the first text gets the best place.
Source: ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]
Box = tuple[float, float, float, float]
_PLACES = (
    (1, 0, "left", "center"),
    (0, 1, "center", "bottom"),
    (0, -1, "center", "top"),
    (-1, 0, "right", "center"),
    (0.7, 0.7, "left", "bottom"),
    (0.7, -0.7, "left", "top"),
    (-0.7, 0.7, "right", "bottom"),
    (-0.7, -0.7, "right", "top"),
)
_REACH = 9.0  # distance from a point to its label, in pixels
_TOO_MUCH = 60.0


@dataclass(frozen=True)
class Label:
    """A text at a point in data coordinates. An `optional` one is left out if it would cover
    something."""

    x: float
    y: float
    text: str
    colour: str
    size: float
    bold: bool = False
    optional: bool = False


def place(axes: Any, labels: Sequence[Label], lines: Sequence[Points]) -> None:
    """Write labels beside their points.

    Args:
        axes: matplotlib's, with its limits set.
        labels: the first one gets the best place.
        lines: lines that should stay uncovered, `(n, 2)` in data coordinates.
    """
    inner = axes.get_window_extent()
    solid = _solid([axes.transData.transform(line) for line in lines if len(line)])
    taken: list[Box] = []
    for label in labels:
        x, y = axes.transData.transform((label.x, label.y))
        best: tuple[float, Box, tuple[float, float, str, str]] | None = None
        for distance in (_REACH, 2.2 * _REACH, 3.6 * _REACH):
            for order, (dx, dy, ha, va) in enumerate(_PLACES):
                at = x + dx * distance, y + dy * distance
                box = _box(*at, ha, va, label)
                outside = (
                    max(0, inner.x0 - box[0])
                    + max(0, box[2] - inner.x1)
                    + max(0, inner.y0 - box[1])
                    + max(0, box[3] - inner.y1)
                )
                cost = order + 2 * (distance - _REACH) + 40 * outside
                cost += 8 * _inside(solid, box) + 5 * sum(_overlap(box, other) for other in taken)
                if best is None or cost < best[0]:
                    best = cost, box, (*at, ha, va)
        if best is None or (label.optional and best[0] > _TOO_MUCH):
            continue
        taken.append(best[1])
        px, py, ha, va = best[2]
        where = axes.transData.inverted().transform((px, py))
        axes.text(
            *where, label.text, color=label.colour, ha=ha, va=va, fontsize=label.size,
            fontweight="bold" if label.bold else "normal", zorder=6,
        )  # fmt: skip


def _solid(lines: Sequence[Points]) -> Points:
    """Points along the lines, some pixels apart."""
    found = [np.zeros((0, 2))]
    for line in lines:
        found.append(line)
        for start, end in pairwise(line):
            steps = int(np.hypot(*(end - start)) // 5)
            if 1 < steps < 1000:
                found.append(start + (end - start) * np.linspace(0, 1, steps)[:, None])
    return np.concatenate(found)


def _box(x: float, y: float, ha: str, va: str, label: Label) -> Box:
    width = (0.6 if label.bold else 0.54) * label.size * len(label.text)
    height = 1.1 * label.size
    left = x - {"left": 0.0, "center": 0.5, "right": 1.0}[ha] * width
    bottom = y - {"bottom": 0.0, "center": 0.5, "top": 1.0}[va] * height
    return left - 1, bottom - 1, left + width + 1, bottom + height + 1


def _inside(points: Points, box: Box) -> int:
    x, y = points[:, 0], points[:, 1]
    return int(((x > box[0]) & (x < box[2]) & (y > box[1]) & (y < box[3])).sum())


def _overlap(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0
