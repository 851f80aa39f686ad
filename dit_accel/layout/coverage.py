"""Rasterises a shot: computes exactly which fraction of each token each subject covers.

A shot, or a reference file, and a token grid come in; coverage goes out: the mean over a token's
pixels and over its latent frame's pixel frames. A box between pixels counts by its area. It knows
no model's strides; the grid has them. Shapes as in `core/tokens.py`; S subjects, T pixel frames.
Source: ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from dit_accel.core.tokens import TokenGrid
from dit_accel.core.video import stream_video
from dit_accel.layout.errors import LayoutError
from dit_accel.layout.model import Box, Reference, Shot, Subject

HALF = 127.5  # half of the largest value: a mask has its subject where it is above


def coverage(shot: Shot, grid: TokenGrid) -> torch.Tensor:
    """The fraction of every token that each subject covers: `(S, F, rows, columns)` float32.

    Args:
        shot: its mask videos must be as long as the clip; their frames may have any size.
        grid: the token grid of the clip.

    Raises:
        LayoutError: a mask video cannot be read, or has another number of frames.

    Example:
        >>> from dit_accel.layout import Keyframe
        >>> left = Subject("a", "a cat", (Keyframe(0, (0, 0, 0.75, 1)),))
        >>> coverage(Shot("s", "a room", (left,)), TokenGrid(1, 1, 2)).tolist()
        [[[[1.0, 0.5]]]]
    """
    shares = []
    for index, subject in enumerate(shot.subjects):
        try:
            shares.append(_coverage(subject, grid))
        except LayoutError as error:
            raise error.inside(f"subjects[{index}]") from error
    return torch.stack(shares)


def reference_coverage(reference: Reference, grid: TokenGrid) -> torch.Tensor:
    """The coverage by a subject in its reference file: `(F, rows, columns)` float32 in [0, 1].

    `grid` is the token grid of the file; an image has one latent frame.

    Raises:
        LayoutError: the mask video cannot be read, or has another number of frames.
    """
    return _coverage(reference, grid)


def mask_chunks(path: Path) -> Iterator[npt.NDArray[np.bool_]]:
    """Where a mask has its subject: `(t, H, W)`, some frames at a time.

    Raises:
        LayoutError: the mask cannot be read, or the subject is in no frame.
    """
    brightest, seen = 0.0, False
    try:
        for chunk in stream_video(path):
            grey = chunk.mean(-1, dtype=np.float32)
            white = grey > HALF
            brightest, seen = max(brightest, float(grey.max())), seen or bool(white.any())
            yield white
    except (ValueError, OSError) as error:
        raise LayoutError("mask", f"is {path.name!r}, which cannot be read: {error}") from error
    if not seen:
        raise LayoutError(
            "mask", f"is {path.name!r}, whose brightest pixel is {brightest:.0f}, so the subject "
            "is nowhere; accepted: 255 where the subject is, 0 elsewhere",
        )  # fmt: skip


def moments(grid: TokenGrid) -> list[float]:
    """The time of each pixel frame, 0 (first) to 1 (last)."""
    frames = grid.num_frames
    return [frame / max(frames - 1, 1) for frame in range(frames)]


def _coverage(subject: Subject | Reference, grid: TokenGrid) -> torch.Tensor:
    if subject.mask is not None:
        return _from_mask(subject.mask, grid)
    return _from_boxes([subject.box_at(time) for time in moments(grid)], grid)


def _from_boxes(boxes: list[Box], grid: TokenGrid) -> torch.Tensor:
    x0, y0, x1, y1 = torch.tensor(boxes, dtype=torch.float64).T
    across, down = _shares(x0, x1, grid.width), _shares(y0, y1, grid.height)
    return _by_latent_frame(down[:, :, None] * across[:, None, :], grid)


def _from_mask(path: Path, grid: TokenGrid) -> torch.Tensor:
    """The coverage from a mask. A pixel belongs to the subject if the mean of its channels is above
    one half."""
    frames = grid.num_frames
    rows: list[torch.Tensor] = []
    for white in mask_chunks(path):
        rows.extend(_pooled(torch.from_numpy(white.astype(np.float64)), grid))
        if len(rows) > frames:
            break
    if len(rows) != frames:
        found = f"more than {frames}" if len(rows) > frames else str(len(rows))
        raise LayoutError("mask", f"has {found} frames; accepted: {frames}, as many as the clip")
    return _by_latent_frame(torch.stack(rows), grid)


def _pooled(frames: torch.Tensor, grid: TokenGrid) -> torch.Tensor:
    """The mean of pixels `(T, H, W)` over each token: `(T, rows, columns)`."""
    height, width = frames.shape[1:]
    down, across = _shares(*_edges(height), grid.height), _shares(*_edges(width), grid.width)
    return down.T @ frames @ across  # the weights of a token's pixels sum to 1


def _edges(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    edges = torch.arange(count + 1, dtype=torch.float64) / count
    return edges[:-1], edges[1:]


def _shares(start: torch.Tensor, end: torch.Tensor, cells: int) -> torch.Tensor:
    """The share of each of `cells` equal parts of [0, 1] that n intervals cover: `(n, cells)`."""
    low, high = _edges(cells)
    overlap = torch.minimum(end[:, None], high) - torch.maximum(start[:, None], low)
    return (overlap * cells).clamp(0, 1)


def _by_latent_frame(shares: torch.Tensor, grid: TokenGrid) -> torch.Tensor:
    """The mean of `(T, rows, columns)` over each latent frame's frames: `(F, rows, columns)`."""
    spans = [grid.pixel_frames(frame) for frame in range(grid.frames)]
    means = torch.stack([shares[first:end].mean(0) for first, end in spans])
    return means.clamp(0, 1).float()
