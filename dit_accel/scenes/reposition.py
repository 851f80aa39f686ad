"""Reposition: where the tokens of a reference stand when its box is laid onto the target's box.

Tokens prefer those that are near, so that a reference that stands elsewhere or is of another size
is read too little. A map from box to box, along each axis and for each latent frame, says where in
the target each token of the reference belongs:

    p' = (p + 1/2 - r0) (t1 - t0) / (r1 - r0) + t0 - 1/2

and rotary embeddings are taken at those real-valued positions. "Key-side": the reference's keys are
rotated at p'. "Query-side": the keys stay where they are and the queries that read them are rotated
at the inverse of the map, in a part of its own (`attention/lse_merge.py`). Both are the same for
translations;
where sizes differ distances are measured in the target's tokens or in the reference's. A box that
moves otherwise than its reference's is for the query-side: each latent frame has a map of its own.

Positions are in tokens: latent frame, row, column; a token's centre is half a token further. Knows
no model but the convention of Wan's rotary table, and nothing of attention.

Source: IR-Diffusion (arXiv 2411.19261), reposition attention, whose code resamples tokens of a
model without positions. That the positions are moved instead is our reading.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dit_accel.core.tokens import TokenGrid

SCALES = (0.5, 2.0)  # beyond, tokens would stand too far apart to be neighbours, or too close
THETA = 10_000.0

Rotary = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class BoxMap:
    """An affine map of rows and columns for each latent frame: p' = p + gain p + offset.

    In this form the map of equal boxes adds exactly 0.

    Args:
        gain, offset: `(F, 2)` float64: of rows and of columns.
    """

    gain: torch.Tensor
    offset: torch.Tensor

    @property
    def static(self) -> bool:
        """Whether all latent frames have the same map, to a thousandth of a token."""
        both = torch.cat([self.gain, self.offset], dim=1)
        return bool(torch.allclose(both, both[:1].expand_as(both), rtol=0.0, atol=1e-3))

    @property
    def identity(self) -> bool:
        """Whether nothing moves."""
        return not bool(self.gain.any()) and not bool(self.offset.any())

    def inverse(self) -> BoxMap:
        """The map back."""
        return BoxMap(-self.gain / (1 + self.gain), -self.offset / (1 + self.gain))

    def __call__(self, places: torch.Tensor) -> torch.Tensor:
        """Places `(n, 3)` float64 of latent frame, row and column, mapped; frames stay."""
        frames = places[:, 0].long()
        moved = places[:, 1:] * self.gain[frames] + self.offset[frames]
        return torch.cat([places[:, :1], places[:, 1:] + moved], dim=1)


def box_map(
    source: torch.Tensor,
    target: torch.Tensor,
    alpha: float = 1.0,
    scales: tuple[float, float] = SCALES,
) -> BoxMap:
    """The map that lays one box onto another, frame by frame.

    Args:
        source, target: `(F, 4)`, x0 y0 x1 y1 in tokens, x0 < x1 and y0 < y1.
        alpha: strength: 0 leaves all where it is, 1 is the whole map.
        scales: the least and the largest scale; beyond, the box's centre is laid onto the other's.

    Raises:
        ValueError: alpha is outside 0 to 1, or a box is empty or not finite.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha!r}; accepted: from 0 to 1")
    (r0, r1), (t0, t1) = _edges("source", source), _edges("target", target)
    scale = ((t1 - t0) / (r1 - r0)).clamp(*scales)
    from_centre, to_centre = (r0 + r1) / 2, (t0 + t1) / 2
    shift = (to_centre - from_centre) + (scale - 1) * (0.5 - from_centre)
    return BoxMap(alpha * (scale - 1), alpha * shift)


def _edges(name: str, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First and last edges `(F, 2)`, of rows and columns."""
    boxes = boxes.to("cpu", torch.float64)
    first, last = boxes[:, [1, 0]], boxes[:, [3, 2]]
    if not bool((first < last).all()) or not bool(boxes.isfinite().all()):
        raise ValueError(f"{name} has an empty box; accepted: finite, x0 < x1 and y0 < y1")
    return first, last


def subject_boxes(coverage: torch.Tensor) -> torch.Tensor:
    """The box that a subject fills in each latent frame, from the shares of tokens it covers.

    A box that lies on a raster comes back as it was: a token at its edge tells by its share where
    the edge runs (one that lies within a token takes all of it). A frame without the subject takes
    the box of the nearest frame that has it.

    Args:
        coverage: `(F, rows, columns)`, shares from 0 to 1.

    Returns:
        `(F, 4)` float64: x0 y0 x1 y1 in tokens.

    Raises:
        ValueError: no frame has the subject.
    """
    shares = coverage.detach().to("cpu", torch.float64)
    present = shares.flatten(1).amax(1) > 0
    if not bool(present.any()):
        raise ValueError("coverage is 0 everywhere; accepted: a subject that is seen")
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


def rotary(places: torch.Tensor, width: int, theta: float = THETA) -> Rotary:
    """Wan's rotary embedding at real-valued places; at whole ones exactly the values of its table.

    Args:
        places: `(n, 3)` float64: latent frame, row, column.
        width: D, even: its channels are shared out to time, rows and columns as Wan does.
        theta: base of the frequencies.

    Returns:
        cosines and sines, `(1, n, 1, D)` float32, every angle twice.
    """
    angles = torch.cat(
        [torch.outer(places[:, axis], _frequencies(n, theta)) for axis, n in _axes(width)], dim=1
    )
    cos, sin = (x.repeat_interleave(2, dim=1).float() for x in (angles.cos(), angles.sin()))
    return cos[None, :, None], sin[None, :, None]


def _axes(width: int) -> tuple[tuple[int, int], ...]:
    """Axis and channels: time has what rows and columns leave."""
    side = 2 * (width // 6)
    return (0, width - 2 * side), (1, side), (2, side)


def _frequencies(channels: int, theta: float) -> torch.Tensor:
    return 1.0 / (theta ** (torch.arange(0, channels, 2, dtype=torch.float64) / channels))
