"""Finds the shape of a mask, by comparison with the world's shapes after the miniature's VAE.

In: a mask at one size and place, and its extent in pixels. Out: the shape whose templates overlap
it best. A VAE with 8 x 8 pixels in one latent cell rounds small shapes off: a star of 6 pixels
becomes a blob. So a mask is compared with shapes that went through the VAE (`make_shapes.py` writes
them to `assets/mini-wan-shapes.npz`), not with drawings. Source: ours.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "miniature"))

from world import SHAPES

FILE = Path(__file__).resolve().parents[2] / "assets" / "mini-wan-shapes.npz"
SIDE = 32  # side of a mask
NEAR = 1.25  # sizes are compared up to this ratio
VOTES = 3  # best templates of a shape that count


class Templates:
    """Masks by shape and size. `name` finds the shape of a mask."""

    def __init__(self, path: Path = FILE) -> None:
        with np.load(path) as found:
            self.masks = found["masks"].astype(np.float32) / 255
            self.reach, self.shapes = found["reach"], found["shapes"]

    def name(self, mask: np.ndarray, reach: float) -> tuple[str | None, float]:
        """The shape of a mask from `normalised` with an rms distance in pixels, and its overlap."""
        ratio = self.reach / reach
        near = (ratio < NEAR) & (ratio > 1 / NEAR)
        over = np.minimum(self.masks, mask).sum((1, 2)) / np.maximum(self.masks, mask).sum((1, 2))
        scores = {}
        for index, shape in enumerate(SHAPES):
            mine = np.sort(over[near & (self.shapes == index)])[-VOTES:]
            if len(mine):
                scores[shape] = float(mine.mean())
        best = max(scores, key=scores.__getitem__, default=None)
        return best, scores[best] if best is not None else 0.0


def moments(alpha: np.ndarray) -> tuple[float, float, float] | None:
    """Centre x and y and rms distance from it, in pixels; None under 8 pixels of area."""
    mass = float(alpha.sum())
    if mass < 8:
        return None
    rows, columns = np.indices(alpha.shape)
    x, y = float((columns * alpha).sum() / mass), float((rows * alpha).sum() / mass)
    spread = ((columns - x) ** 2 + (rows - y) ** 2) * alpha
    return x, y, float(np.sqrt(spread.sum() / mass))


def normalised(alpha: np.ndarray, at: tuple[float, float, float]) -> np.ndarray:
    """An alpha (h, w) at one size and place: (SIDE, SIDE)."""
    x, y, reach = at
    scale = SIDE / (6.4 * reach)  # an outline is at 1.3 to 2 times the rms distance
    half = SIDE / 2 - 0.5
    move = np.array([[scale, 0, half - scale * x], [0, scale, half - scale * y]])
    return cv2.warpAffine(alpha, move, (SIDE, SIDE), flags=cv2.INTER_LINEAR)


def mean_mask(alphas: np.ndarray) -> tuple[np.ndarray, float] | None:
    """The mean mask of frames (T, h, w), and the mean rms distance; None if the frames are
    empty."""
    found = [(alpha, at) for alpha in alphas if (at := moments(alpha)) is not None]
    if not found:
        return None
    masks = [normalised(alpha, at) for alpha, at in found]
    return np.mean(masks, axis=0), float(np.mean([at[2] for _, at in found]))


def through_vae(vae: torch.nn.Module, clips: torch.Tensor, batch: int = 6) -> np.ndarray:
    """Clips (B, 3, T, H, W) in [-1, 1], encoded and decoded: (B, T, H, W, 3) in [0, 1]."""
    parts = []
    with torch.no_grad():
        for part in clips.split(batch):
            latents = vae.encode(part).latent_dist.mode()
            parts.append(vae.decode(latents).sample.clamp(-1, 1))
    return (torch.cat(parts).permute(0, 2, 3, 4, 1).cpu().numpy() + 1) / 2
