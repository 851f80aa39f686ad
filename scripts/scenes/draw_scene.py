"""Draws a layout on the miniature beside the stock pipeline, from the same noise: for the README.

python scripts/scenes/draw_scene.py assets/layouts/boxes-decide.yaml --seed 3 \\
    --out assets/readme-scene.png
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cv2
import torch
from diffusers import WanPipeline

from dit_accel import accelerate, layout
from dit_accel.core.video import film_strips
from dit_accel.models import miniature


def clips(pipe: Any, scene: layout.Layout, seed: int) -> Any:
    """All shots: frames (S, T, H, W, 3) in [0, 1]."""
    return pipe(
        prompt=scene.prompts, negative_prompt=[scene.negative_prompt or ""] * len(scene.prompts),
        height=64, width=64, num_frames=17, num_inference_steps=50, guidance_scale=4.0,
        max_sequence_length=64, output_type="np",
        generator=[torch.Generator().manual_seed(seed + i) for i in range(len(scene.prompts))],
    ).frames  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("layout", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    scene = layout.load(args.layout)
    pipe = WanPipeline.from_pretrained(miniature.path())
    stock = clips(pipe, scene, args.seed)[0]
    with accelerate(pipe, layout=scene):
        ours = clips(pipe, scene, args.seed)[0]
    labels = [f"stock: {scene.prompts[0]}", "with the layout: circle left, square right"]
    sheet = film_strips([stock, ours], labels=labels, frames=6)
    cv2.imwrite(str(args.out), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))


if __name__ == "__main__":
    main()
