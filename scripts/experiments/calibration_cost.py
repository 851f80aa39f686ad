"""Computes the cost of `calibrate --minutes` on large models at 480p, from measured seconds.

python scripts/experiments/calibration_cost.py

In: `research/data/wall.jsonl`, which `table_wall.py` writes. For a model without a run of 50 steps,
the cost is computed from Wan 1.3B and the ratio of FLOPs of a forward, and the table says so.
Decoding and the text are not included. Needs no GPU.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dit_accel.calibration.minutes import FEW_SPEEDUPS, START_COST, Estimate

ROOT = Path(__file__).resolve().parents[2]
STEPS = 50
TOKENS = 21 * 30 * 52  # 81 frames of 480x832
# blocks, width, feed-forward width, from `dit_accel/models/checkpoints.yaml`
MODELS = {"wan-1.3b": (30, 1536, 8960), "wan-14b": (40, 5120, 13824)}
KNOWN = "wan-1.3b"


def flops(name: str) -> float:
    """FLOPs of the products in one forward: projections, feed-forward and attention among
    tokens."""
    blocks, width, inner = MODELS[name]
    # keys and values of the text come in addition
    linear = TOKENS * (6 * width**2 + 2 * width * inner)
    return 2.0 * blocks * (linear + 2 * TOKENS**2 * width)


def measured(name: str) -> float | None:
    """Seconds of an uncached run's step."""
    path = ROOT / "research" / "data" / "wall.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    found = [
        row["uncached"] / STEPS for row in rows
        if row["model"].replace("wan2.1", "wan") == name
        and row.get("steps") == STEPS and row["compiled"] == "no"
    ]  # fmt: skip
    return found[0] if found else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, nargs="+", default=[10.0, 45.0])
    minutes = parser.parse_args().minutes
    clip = 1 + sum(round(STEPS / speedup) for speedup in FEW_SPEEDUPS) / STEPS
    plans = len(FEW_SPEEDUPS)
    print(f"a clip with {plans} plans: {clip:.2f} uncached runs; probes: {START_COST:.2f}")
    head = "".join(f" runs, clips in {m:g} min |" for m in minutes)
    print(f"\n| model | s a step | min a run | min for 1 clip, the same with probes, 3, 8 |{head}")
    print("|---|---|---|---|" + "---|" * len(minutes))
    for name in MODELS:
        own = measured(name)
        seconds = own or (measured(KNOWN) or 0.0) * flops(name) / flops(KNOWN)
        one = Estimate(1.0, seconds, STEPS, 1, clip, 0.0).run_seconds / 60
        shown = f"{seconds:.2f}" + ("" if own else " (by FLOPs)")
        spent = (clip, *(clips * clip + START_COST for clips in (1, 3, 8)))
        times = ", ".join(f"{runs * one:.0f}" for runs in spent)
        estimates = [Estimate(m, seconds, STEPS, 1, clip, 0.0, START_COST) for m in minutes]
        fits = "".join(f" {each.runs:.1f}, {each.clips} |" for each in estimates)
        print(f"| {name} | {shown} | {one:.1f} | {times} |{fits}")


if __name__ == "__main__":
    main()
