"""Reposition: move the positions of a reference's tokens from its box to the target's box.

Coverage and boxes come in; box maps and rotary embeddings at real-valued positions go out. Along
each axis and for each latent frame, a box map [r0, r1] -> [t0, t1] gives new positions:

    p' = (p + 1/2 - r0) (t1 - t0) / (r1 - r0) + t0 - 1/2

"Key-side": the reference's keys are rotated at p'. "Query-side", for boxes that move differently
from their references: the keys stay. The queries that read them are rotated at the inverse map, in
a separate part (`attention/lse_merge.py`). For translations both are equal. Positions are latent
frame, row and column, in tokens. It knows Wan's rotary table, and no attention.

Source: IR-Diffusion (arXiv 2411.19261), reposition attention, whose code resamples the tokens of a
model without positions. In our reading, the positions move instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dit_accel.core.checks import require
from dit_accel.core.tokens import TokenGrid

SCALES = (0.5, 2.0)  # outside of these, neighbouring tokens would be too far apart, or too close
THETA = 10_000.0

Rotary = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class BoxMap:
    """An affine map of rows and columns per latent frame: p' = p + gain p + offset.

    `gain`, `offset`: `(F, 2)` float64. In this form equal boxes add exactly 0.
    """

    gain: torch.Tensor
    offset: torch.Tensor

    @property
    def static(self) -> bool:
        """Whether all latent frames have the same map, within 0.001 token."""
        both = torch.cat([self.gain, self.offset], dim=1)
        return bool(torch.allclose(both, both[:1].expand_as(both), rtol=0.0, atol=1e-3))

    def inverse(self) -> BoxMap:
        """The inverse map."""
        return BoxMap(-self.gain / (1 + self.gain), -self.offset / (1 + self.gain))

    def __call__(self, positions: torch.Tensor) -> torch.Tensor:
        """Map positions `(n, 3)` float64; latent frames stay."""
        frames = positions[:, 0].long()
        moved = positions[:, 1:] * self.gain[frames] + self.offset[frames]
        return torch.cat([positions[:, :1], positions[:, 1:] + moved], dim=1)


def box_map(source: torch.Tensor, target: torch.Tensor, alpha: float = 1.0) -> BoxMap:
    """The map from one box to another, per latent frame; beyond `SCALES`, only centres coincide.

    Args:
        source, target: `(F, 4)`, x0 y0 x1 y1 in tokens, x0 < x1 and y0 < y1.
        alpha: strength in [0, 1]: 0 moves nothing, 1 is the whole map.

    Raises:
        ValueError: alpha is out of range, or a box is empty or not finite.

    Example:
        >>> moved = box_map(torch.tensor([[0, 0, 2, 2]]), torch.tensor([[3, 0, 5, 2]]))
        >>> moved(torch.tensor([[0.0, 1.0, 1.0]], dtype=torch.float64)).tolist()
        [[0.0, 1.0, 4.0]]
    """
    require(0 <= alpha <= 1, "alpha", alpha, "from 0 to 1")
    (r0, r1), (t0, t1) = _edges("source", source), _edges("target", target)
    scale = ((t1 - t0) / (r1 - r0)).clamp(*SCALES)
    from_centre, to_centre = (r0 + r1) / 2, (t0 + t1) / 2
    shift = (to_centre - from_centre) + (scale - 1) * (0.5 - from_centre)
    return BoxMap(alpha * (scale - 1), alpha * shift)


def _edges(name: str, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First and last edges of rows and columns, `(F, 2)` each."""
    boxes = boxes.to("cpu", torch.float64)
    first, last = boxes[:, [1, 0]], boxes[:, [3, 2]]
    if not bool((first < last).all()) or not bool(boxes.isfinite().all()):
        raise ValueError(f"{name} has an empty box; accepted: finite, x0 < x1 and y0 < y1")
    return first, last


def subject_boxes(coverage: torch.Tensor) -> torch.Tensor:
    """The box of a subject in each latent frame, `(F, 4)` float64: x0 y0 x1 y1 in tokens.

    The coverage of a token at the edge gives the edge's position within it. A frame without the
    subject gets the box of the nearest frame with it.

    Args:
        coverage: `(F, rows, columns)`, fractions from 0 to 1.

    Raises:
        ValueError: no frame has the subject.
    """
    shares = coverage.detach().to("cpu", torch.float64)
    present = shares.flatten(1).amax(1) > 0
    if not bool(present.any()):
        raise ValueError("coverage is 0 everywhere; accepted: a value above 0 somewhere")
    boxes = torch.zeros(len(shares), 4, dtype=torch.float64)
    for frame in present.nonzero().flatten().tolist():
        y0, y1 = _extent(shares[frame].amax(1))
        x0, x1 = _extent(shares[frame].amax(0))
        boxes[frame] = torch.tensor([x0, y0, x1, y1])
    frames = torch.arange(len(shares))
    gaps = (frames[:, None] - frames[None]).abs().double()
    gaps[:, ~present] = torch.inf
    return boxes[gaps.argmin(1)]


def _extent(shares: torch.Tensor) -> tuple[float, float]:
    """First and last edge along one axis."""
    shares = shares / shares.max()
    covered = shares.nonzero().flatten()
    first, last = int(covered[0]), int(covered[-1])
    if first == last:
        return float(first), float(first + 1)
    return first + 1 - float(shares[first]), last + float(shares[last])


def token_positions(grid: TokenGrid) -> torch.Tensor:
    """Latent frame, row and column of every video token: `(N, 3)` float64."""
    axes = (torch.arange(n, dtype=torch.float64) for n in (grid.frames, grid.height, grid.width))
    return torch.cartesian_prod(*axes).view(-1, 3)


def rotary(positions: torch.Tensor, width: int) -> Rotary:
    """Wan's rotary embedding at real positions: cosines and sines, `(1, n, 1, D)` float32.

    Every angle comes twice; integer positions give exactly the values of Wan's table.

    Args:
        positions: `(n, 3)` float64: latent frame, row, column.
        width: D, even; its channels are split among time, rows and columns as Wan does.
    """
    parts = [torch.outer(positions[:, axis], _frequencies(n)) for axis, n in _axes(width)]
    angles = torch.cat(parts, dim=1)
    cos, sin = (x.repeat_interleave(2, dim=1).float() for x in (angles.cos(), angles.sin()))
    return cos[None, :, None], sin[None, :, None]


def _axes(width: int) -> tuple[tuple[int, int], ...]:
    """Axis and its channels: rows and columns have a third each, rounded down; time the rest."""
    side = 2 * (width // 6)
    return (0, width - 2 * side), (1, side), (2, side)


def _frequencies(channels: int) -> torch.Tensor:
    return 1.0 / (THETA ** (torch.arange(0, channels, 2, dtype=torch.float64) / channels))
