"""What the miniature's VAE leaves of the world's shapes: the templates of `scene_checks.py`.

    python scripts/scenes/scene_shapes.py --write      about two minutes on one core

A VAE that keeps 8 x 8 pixels in one latent cell rounds off small shapes: of a star of 6 pixels it
leaves a blob. So shapes are not compared with drawings but with what came through the VAE: every
shape at eight sizes, three motions, random colours and backgrounds, as masks at one size and place.
They are kept in `assets/mini-wan-shapes.npz`, as uint8.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "miniature"))

from world import BACKGROUNDS, COLORS, DEFAULT, SHAPES, Scene, Subject, _tones, render

FILE = Path(__file__).resolve().parents[2] / "assets" / "mini-wan-shapes.npz"
RADII = (4.5, 5.2, 6.0, 7.0, 8.0, 9.3, 10.8, 12.5)  # pixels
SIDE = 32  # of a mask
NEAR = 1.25  # sizes are compared up to this ratio
VOTES = 3  # of the templates of a shape that fit best


class Templates:
    """Masks by shape and size; `name` says which shape a mask is."""

    def __init__(self, path: Path = FILE) -> None:
        with np.load(path) as found:
            self.masks = found["masks"].astype(np.float32) / 255
            self.reach, self.shapes = found["reach"], found["shapes"]

    def name(self, mask: np.ndarray, reach: float) -> tuple[str | None, float]:
        """The shape of a mask of `normalised` and of an rms distance in pixels, and its overlap."""
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
    scale = SIDE / (6.4 * reach)  # an outline lies at 1.3 to 2 times the rms distance
    half = SIDE / 2 - 0.5
    move = np.array([[scale, 0, half - scale * x], [0, scale, half - scale * y]])
    return cv2.warpAffine(alpha, move, (SIDE, SIDE), flags=cv2.INTER_LINEAR)


def mean_mask(alphas: np.ndarray) -> tuple[np.ndarray, float] | None:
    """The mean mask of frames (T, h, w), and the mean rms distance; None where nothing is."""
    found = [(alpha, at) for alpha in alphas if (at := moments(alpha)) is not None]
    if not found:
        return None
    masks = [normalised(alpha, at) for alpha, at in found]
    return np.mean(masks, axis=0), float(np.mean([at[2] for _, at in found]))


def drawn(seed: str = "templates") -> tuple[list[Scene], list[str]]:
    """Scenes of two subjects each, left and right, and the shapes in order."""
    rng = random.Random(seed)
    kinds = [(s, r, m) for m in ("still", "right", "down") for r in RADII for s in SHAPES]
    rng.shuffle(kinds)
    scenes = []
    for first in range(0, len(kinds), 2):
        colors = rng.sample(sorted(COLORS), 2)
        subjects = []
        for side, (shape, radius, motion) in enumerate(kinds[first : first + 2]):
            x = 0.25 + 0.5 * side + rng.uniform(-0.5, 0.5) / 64
            travel = 0.2 if motion == "down" else 0.04
            subjects.append(
                Subject(
                    colors[side], shape, motion, "", "",
                    (x, 0.5 + rng.uniform(-2, 2) / 64), radius / 64, travel, 0.0,
                )
            )  # fmt: skip
        background = rng.choice(BACKGROUNDS)
        texture = rng.random(), rng.random(), 0.0
        scenes.append(Scene(tuple(subjects), background, "", _tones(rng, background), texture))
    return scenes, [shape for shape, _, _ in kinds]


def through_vae(vae: torch.nn.Module, clips: torch.Tensor, batch: int = 6) -> np.ndarray:
    """Clips (B, 3, T, H, W) in [-1, 1], encoded and decoded: (B, T, H, W, 3) in [0, 1]."""
    parts = []
    with torch.no_grad():
        for part in clips.split(batch):
            latents = vae.encode(part).latent_dist.mode()
            parts.append(vae.decode(latents).sample.clamp(-1, 1))
    return (torch.cat(parts).permute(0, 2, 3, 4, 1).cpu().numpy() + 1) / 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path("assets/mini-wan"))
    parser.add_argument("--write", action="store_true", help=f"to {FILE.name}")
    args = parser.parse_args()

    from diffusers import AutoencoderKLWan
    from scene_checks import own_alpha

    scenes, shapes = drawn()
    vae = AutoencoderKLWan.from_pretrained(args.model / "vae").float()
    clips = through_vae(vae, render(scenes, *DEFAULT))
    masks, reach, kinds = [], [], []
    for index, shape in enumerate(shapes):
        left = 0.5 * (index % 2)
        found = mean_mask(own_alpha(clips[index // 2], (left, 0.0, left + 0.5, 1.0))[1])
        if found is not None:
            masks.append((found[0] * 255).round().astype(np.uint8))
            reach.append(found[1])
            kinds.append(SHAPES.index(shape))
    print(f"{len(masks)} templates of {len(shapes)}")
    if args.write:
        np.savez_compressed(
            FILE, masks=np.stack(masks), reach=np.float32(reach), shapes=np.int8(kinds)
        )
        print(f"wrote {FILE}: {FILE.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
