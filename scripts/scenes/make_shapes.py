"""Makes `assets/mini-wan-shapes.npz`: the world's shapes after the miniature's VAE.

    python scripts/scenes/make_shapes.py --write      # about two minutes on one core

Every shape at eight sizes, with three motions, random colours and backgrounds, is rendered, encoded
and decoded. The file has one mask of each, at one size and place, as uint8. `scene_shapes.py`
compares with them.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "miniature"))

from scene_checks import own_alpha
from scene_shapes import FILE, mean_mask, through_vae
from world import BACKGROUNDS, COLORS, DEFAULT, SHAPES, Scene, Subject, _tones, render

RADII = (4.5, 5.2, 6.0, 7.0, 8.0, 9.3, 10.8, 12.5)  # pixels


def template_scenes() -> tuple[list[Scene], list[str]]:
    """Scenes of two subjects each, left and right, and the shapes in order."""
    rng = random.Random("templates")
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path("assets/mini-wan"))
    parser.add_argument("--write", action="store_true", help=f"to {FILE.name}")
    args = parser.parse_args()

    from diffusers import AutoencoderKLWan

    scenes, shapes = template_scenes()
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
