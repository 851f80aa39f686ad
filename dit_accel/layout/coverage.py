"""Which share of every token each subject of a shot covers: from boxes, exactly, or from masks.

A latent frame stands for several pixel frames (`TokenGrid.pixel_frames`), and a token for a square
of pixels; its share is the mean over all of them. A box that lies between pixels counts by its
area. What the model's strides are is the grid's business.

Shapes: `core/tokens.py`; S subjects, T pixel frames.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from dit_accel.core.tokens import TokenGrid
from dit_accel.core.video import stream_video
from dit_accel.layout.errors import LayoutError
from dit_accel.layout.model import Box, Reference, Shot, Subject


def coverage(shot: Shot, grid: TokenGrid) -> torch.Tensor:
    """The share of every token that each subject covers.

    Args:
        shot: mask videos as long as the clip; their frames may have any size.
        grid: of the clip.

    Returns:
        `(S, F, rows, columns)` float32 in [0, 1].

    Raises:
        LayoutError: a mask video cannot be read, or has another number of frames.
    """
    shares = []
    for index, subject in enumerate(shot.subjects):
        try:
            shares.append(_subject(subject, grid))
        except LayoutError as error:
            raise error.inside(f"subjects[{index}]") from error
    return torch.stack(shares)


def reference_coverage(reference: Reference, grid: TokenGrid) -> torch.Tensor:
    """The same of one subject in the image or clip that it refers to.

    Args:
        reference: to a file.
        grid: of the file as it is read: an image has one latent frame.

    Returns:
        `(F, rows, columns)` float32 in [0, 1].

    Raises:
        LayoutError: the mask video cannot be read, or has another number of frames.
    """
    if reference.mask is not None:
        return _from_mask(reference.mask, grid)
    return _from_boxes([reference.box_at(u) for u in moments(grid)], grid)


def moments(grid: TokenGrid) -> list[float]:
    """The share of the clip at which each pixel frame is: 0 to 1."""
    frames = grid.num_frames
    return [frame / max(frames - 1, 1) for frame in range(frames)]


def _subject(subject: Subject, grid: TokenGrid) -> torch.Tensor:
    if subject.mask is not None:
        return _from_mask(subject.mask, grid)
    return _from_boxes([subject.box_at(u) for u in moments(grid)], grid)


def _from_boxes(boxes: list[Box], grid: TokenGrid) -> torch.Tensor:
    x0, y0, x1, y1 = torch.tensor(boxes, dtype=torch.float64).T
    across, down = _shares(x0, x1, grid.width), _shares(y0, y1, grid.height)
    return _by_latent_frame(down[:, :, None] * across[:, None, :], grid)


def _from_mask(path: Path, grid: TokenGrid) -> torch.Tensor:
    """A pixel is the subject's where its mean over the channels is above half."""
    frames = grid.num_frames
    rows: list[torch.Tensor] = []
    try:
        for chunk in stream_video(path):
            white = torch.from_numpy((chunk.mean(-1, dtype=np.float32) > 127.5).astype(np.float64))
            rows.extend(_pooled(white, grid))
            if len(rows) > frames:
                break
    except (ValueError, OSError) as error:
        raise LayoutError("mask", f"is {path.name!r}, which cannot be read: {error}") from error
    if len(rows) != frames:
        found = f"more than {frames}" if len(rows) > frames else str(len(rows))
        raise LayoutError("mask", f"has {found} frames; accepted: {frames}, as the clip")
    return _by_latent_frame(torch.stack(rows), grid)


def _pooled(frames: torch.Tensor, grid: TokenGrid) -> torch.Tensor:
    """`(T, rows, columns)`: the mean of pixels `(T, H, W)` over each token, whatever their size."""
    height, width = frames.shape[1:]
    down, across = _shares(*_edges(height), grid.height), _shares(*_edges(width), grid.width)
    return down.T @ frames @ across  # the weights of a token's pixels sum to 1


def _edges(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    edges = torch.arange(count + 1, dtype=torch.float64) / count
    return edges[:-1], edges[1:]


def _shares(start: torch.Tensor, end: torch.Tensor, cells: int) -> torch.Tensor:
    """`(n, cells)`: which share of each of `cells` equal parts of [0, 1] n intervals cover."""
    low, high = _edges(cells)
    reach = torch.minimum(end[:, None], high) - torch.maximum(start[:, None], low)
    return (reach * cells).clamp(0, 1)


def _by_latent_frame(shares: torch.Tensor, grid: TokenGrid) -> torch.Tensor:
    """`(F, rows, columns)`: the mean of `(T, rows, columns)` over each latent frame's frames."""
    spans = [grid.pixel_frames(frame) for frame in range(grid.frames)]
    means = torch.stack([shares[first:end].mean(0) for first, end in spans])
    return means.clamp(0, 1).float()
