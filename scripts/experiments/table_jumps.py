"""Measures how fast latents seem to move if a prediction jumps, and if the latents are changed.

python scripts/experiments/table_jumps.py

Each sampler gets artificial predictions: a constant one that changes its sign, becomes another one,
flashes or grows at some step, or changes its sign repeatedly. These are not faults. Or the
prediction is constant, and the latents are multiplied by 1.5 after a step, which is a fault. For
each rule, the largest ratio of the first kind and the smallest of the second are printed: a bound
between them separates both.
"""

from __future__ import annotations

import argparse
import copy
import itertools
from collections.abc import Callable
from typing import Any

import diffusers
import torch

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
SAMPLERS = {
    "Euler, shift 3": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "UniPC, shift 3": diffusers.UniPCMultistepScheduler(**FLOW, flow_shift=3.0),
    "UniPC, shift 5": diffusers.UniPCMultistepScheduler(**FLOW, flow_shift=5.0),
    "DPM++, shift 5": diffusers.DPMSolverMultistepScheduler(**FLOW, flow_shift=5.0),
    "DDIM, v-prediction": diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction"),
}
A, B = torch.randn(2, 1, 4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
CUTS: tuple[Callable[[int, int], torch.Tensor], ...] = (
    lambda step, at: A if step < at else -A,
    lambda step, at: A if step < at else B,
    lambda step, at: 5 * B if step == at else A,
    lambda step, at: A if step < at else 4 * B,
    lambda step, at: A if step < at else 0.3 * B,
    lambda step, at: (A, B, -A, -B)[7 * step // at % 4],
)


def ratios(
    scheduler: Any, steps: int, prediction: Callable[[int], torch.Tensor], fault: int | None = None
) -> list[list[float]]:
    """For each rule, from step 2 on: how much faster the latents move than before."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps)
    given = [prediction(step) for step in range(steps)]
    latents = [torch.randn(A.shape, generator=torch.Generator().manual_seed(1))]
    for step, time in enumerate(scheduler.timesteps):
        after = scheduler.step(given[step], time, latents[-1], return_dict=False)[0]
        latents.append(after * 1.5 if step == fault else after)
    gaps = (-scheduler.timesteps.double().diff()).tolist()
    ways = [float((latents[s + 1] - latents[s]).norm()) / gap for s, gap in enumerate(gaps)]
    sizes = [float(one.norm()) for one in given]
    turns = [0.0, *(float((b - a).norm()) for a, b in itertools.pairwise(given))]
    speeds = [way / size for way, size in zip(ways, sizes, strict=False)]
    explained = [
        way / max(sizes[s], turns[s], turns[max(s - 1, 0)]) for s, way in enumerate(ways)
    ]  # fmt: skip
    later = range(2, len(ways))
    recent = [max(speeds[max(0, s - 3) : s]) for s in later]
    return [
        [speeds[s] / speeds[s - 1] for s in later],
        [speeds[s] / most for s, most in zip(later, recent, strict=True)],
        [explained[s] / most for s, most in zip(later, recent, strict=True)],
    ]


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(
        "| sampler | steps | size, to the step before: cuts, fault | size, to the last three | "
        "**size or change, to the last three** |\n|---|---|---|---|---|"
    )
    for name, scheduler in SAMPLERS.items():
        for steps in (12, 30, 50):
            cuts = [
                ratios(scheduler, steps, lambda step, cut=cut, at=at: cut(step, at))
                for cut in CUTS for at in range(1, steps - 1)
            ]  # fmt: skip
            places = [round(share * steps) for share in (0.2, 0.45, 0.75)]
            faults = [ratios(scheduler, steps, lambda step: A, place) for place in places]
            cells = []
            for rule in range(3):
                found = [one[rule][place - 2] for one, place in zip(faults, places, strict=True)]
                cells.append(f"{max(max(one[rule]) for one in cuts):.1f}, {min(found):.1f}")
            print(f"| {name} | {steps} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
