"""Measures the drift of every attention between adjacent steps, to see whether it is U-shaped.

    python scripts/experiments/measure_drift.py --prompts 8 --plot assets/mini-wan-drift.png

Runs the miniature with threshold 0 (nothing is reused, everything is measured) and plots the drift
of each block's self-attention output, the mean of both branches. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from diffusers import WanPipeline

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "miniature"))

from check_miniature import choose
from output import sample

from dit_accel import accelerate


def measure(model: Path, prompts: int, steps: int) -> np.ndarray:
    """Mean drift (blocks, steps - 1), relative L1 between each step's output and the one before."""
    pipe = WanPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    drifts = defaultdict(list)
    for i, scene in enumerate(choose(prompts, 1, 3)):
        with accelerate(pipe, threshold=0.0, site="attention") as handle:
            sample(pipe, [scene.caption()], i, num_inference_steps=steps, output_type="latent")
            for site in handle.report().sites:
                drifts[int(site.name.split(".")[1])].append(
                    [site.drift[s] for s in range(1, steps)]
                )
    return np.array([np.mean(drifts[block], 0) for block in sorted(drifts)])


def draw(path: Path, drift: np.ndarray) -> None:
    figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
    steps = np.arange(1, drift.shape[1] + 1)
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(drift)))
    for block, (row, color) in enumerate(zip(drift, colors, strict=True)):
        axis.plot(steps, row, color=color, linewidth=1, label=f"block {block}")
    axis.plot(steps, drift.mean(0), color="black", linewidth=2.2, label="mean")
    axis.set(xlabel="step", ylabel="drift from the step before (relative L1)", yscale="log")
    axis.set_title("Self-attention outputs of the miniature", fontsize=10)
    axis.grid(alpha=0.3, which="both", linewidth=0.4)
    figure.legend(loc="outside right center", fontsize=7, frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path("assets/mini-wan"))
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--plot", type=Path, default=Path("assets/mini-wan-drift.png"))
    args = parser.parse_args()
    drift = measure(args.model, args.prompts, args.steps)
    draw(args.plot, drift)
    mean = drift.mean(0)
    third = len(mean) // 3
    middle = slice(third, 2 * third)
    figures = {
        "first_5": mean[:5].mean(),
        "middle_third": mean[middle].mean(),
        "last_5": mean[-5:].mean(),
        "lowest": mean.min(),
        "lowest_at_step": int(mean.argmin()) + 1,
        "block_lowest": drift.mean(1).min(),
        "block_highest": drift.mean(1).max(),
        "blocks_first_5": drift[:, :5].mean(1),
        "blocks_middle_third": drift[:, middle].mean(1),
    }
    print(json.dumps({key: np.round(value, 4).tolist() for key, value in figures.items()}))


if __name__ == "__main__":
    main()
