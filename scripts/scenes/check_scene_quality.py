"""Checks a quality target for scenes, against the uncached scene, with several seeds.

    OMP_NUM_THREADS=1 python scripts/scenes/check_scene_quality.py --quality 32 --seeds 4

The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from diffusers import WanPipeline
from draw_scene import clips

from dit_accel import accelerate, layout
from dit_accel.metrics import psnr
from dit_accel.models import miniature

FOLDER = Path("assets/layouts")


def made(pipe: Any, scene: layout.Layout, seed: int, **target: Any) -> tuple[Any, Any]:
    """Frames of all shots `(S, T, H, W, 3)`, and the report."""
    with accelerate(pipe, layout=scene, **target) as handle:
        frames = clips(pipe, scene, seed)
    return frames, handle.report()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quality", type=float, default=32.0)
    parser.add_argument("--seeds", type=int, default=4)
    args = parser.parse_args()
    pipe = WanPipeline.from_pretrained(miniature.path())
    pipe.set_progress_bar_config(disable=True)
    found = []
    for path in sorted(FOLDER.glob("*.yaml")):
        scene = layout.load(path)
        for seed in range(args.seeds):
            stock, _ = made(pipe, scene, seed)
            ours, report = made(pipe, scene, seed, quality=args.quality)
            for shot, pair in enumerate(zip(stock, ours, strict=True)):
                score = min(float(psnr(*pair, data_range=1.0)), 100.0)
                found.append((path.stem, seed, shot, score, report.steps_computed))
                print(*found[-1], flush=True)
    reached = sum(row[3] >= args.quality for row in found)
    computed = sum(row[4] for row in found) / len(found)
    result = {
        "quality": args.quality,
        "clips": len(found),
        "reached": reached,
        "computed": computed,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
