"""Measures the overhead of acceleration: (wall - ideal) / wall of the denoising loop.

OMP_NUM_THREADS=1 python scripts/experiments/measure_overhead.py --pairs 5 --speedup 2.5

Uncached and accelerated runs of the miniature alternate, so that the machine's load affects both.
The ideal is the share of computed steps, times the seconds of the uncached loop before it. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics

import torch
from diffusers import WanPipeline

from dit_accel import accelerate
from dit_accel.core.generation import ClipSpec, generate, warm_up
from dit_accel.models import miniature


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--speedup", type=float, default=2.5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    pipe = WanPipeline.from_pretrained(str(miniature.path()))
    pipe.set_progress_bar_config(disable=True)
    given = miniature.call_defaults(miniature.path())
    clip = ClipSpec(
        prompt="a red circle moving right on a plain gray background", negative=None, seed=0,
        steps=int(given["num_inference_steps"]), guidance=float(given["guidance_scale"]),
        height=int(given["height"]), width=int(given["width"]), frames=int(given["num_frames"]),
        max_sequence_length=int(given["max_sequence_length"]),
    )  # fmt: skip
    warm_up(pipe, clip)
    overheads, reads = [], []
    for pair in range(args.pairs):
        stock = generate(pipe, clip, device="cpu").denoising_seconds
        with accelerate(pipe, speedup=args.speedup) as handle:
            wall = generate(pipe, clip, device="cpu").denoising_seconds
            report = handle.report()
        ideal = stock * report.steps_computed / report.steps
        overheads.append((wall - ideal) / wall)
        reads.append(report.host_syncs)
        print(f"{pair}: uncached {stock:.2f} s, wall {wall:.2f} s, overhead {overheads[-1]:+.1%}")
    found = {
        "computed": report.steps_computed,
        "steps": report.steps,
        "overhead_median": round(statistics.median(overheads), 4),
        "overheads": [round(o, 4) for o in overheads],
        "host_syncs": max(reads),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
