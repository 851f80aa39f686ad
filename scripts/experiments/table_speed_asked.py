"""Compares the requested speed with the computed steps, without a profile.

    python scripts/experiments/table_speed_asked.py

Goes in: every denoiser of `dit-accel bench`, small, with random weights. Comes out: a table for the
log. Each pipeline makes one clip that is recorded, and four that are planned from it. It knows only
the public interface. Source: ours.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import diffusers
import torch

from dit_accel import accelerate
from dit_accel.core.generation import call_arguments
from dit_accel.evaluation import speed
from dit_accel.models.checkpoints import DENOISERS, Shape

SMALL = ("wan2.1-1.3b", "hunyuan-video", "cogvideox-2b", "ltx-video")
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 5.0}


def pipelines(steps: int) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Name, pipeline and arguments of the call; Wan by two samplers."""
    for name in SMALL:
        row = DENOISERS[name]
        side = 2 * row.strides.spatial
        case = speed.BenchmarkCase(
            denoiser=row, small=True, shape=Shape(side, side, 2 * row.strides.temporal + 1),
            steps=steps, guidance=row.guidance, device="cpu", dtype="float32", rounds=1,
        )  # fmt: skip
        pipe = speed.build(case)
        given = call_arguments(pipe, case.clip) | {"output_type": "latent"}
        given |= speed.embeddings(case.prompt, case.guidance, "cpu", torch.float32)
        yield name, pipe, given
        if name.startswith("wan"):
            pipe.scheduler = diffusers.DPMSolverMultistepScheduler(**FLOW)
            yield f"{name}, DPM++", pipe, given


def computed(pipe: Any, given: dict[str, Any], speedup: float, seeds: int) -> list[int]:
    """Computed steps of every planned clip."""
    found = []
    with accelerate(pipe, speedup=speedup) as handle:
        for seed in range(seeds + 1):
            pipe(**given | {"generator": torch.Generator().manual_seed(seed)})
            found.append(round(handle.report().steps_computed))
    return found[1:]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=4, help="planned clips of each pipeline")
    seeds = parser.parse_args().seeds
    print("| denoiser | steps | asked | computed steps, by clip | given |\n|---|---|---|---|---|")
    for steps in (20, 30):
        for name, pipe, given in pipelines(steps):
            for asked in (2.0, 2.5, 4.0):
                counts = computed(pipe, given, asked, seeds)
                slowest = steps / max(counts)
                print(f"| {name} | {steps} | {asked:g} | {counts} | {slowest:.2f} |", flush=True)


if __name__ == "__main__":
    main()
