"""Puts faults into accelerated runs of the miniature, and measures how the guard reacts.

OMP_NUM_THREADS=1 python scripts/experiments/check_guard.py --prompts 8 --profile PATH
OMP_NUM_THREADS=1 python scripts/experiments/check_guard.py --prompts 8 --steps 20  # calibrates

A fault happens after a step in the middle of the run. The reference is the uncached run with the
same fault; a run with the guard is compared with one without it, and with an uncached run with as
many steps as the guarded run computed, with the fault at the same share of the run.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from dit_accel import accelerate  # noqa: E402
from dit_accel.caching import controller  # noqa: E402
from dit_accel.core.generation import ClipSpec, call_arguments  # noqa: E402
from dit_accel.metrics import psnr  # noqa: E402
from dit_accel.models import miniature  # noqa: E402
from dit_accel.planning.profile import Profile  # noqa: E402

WHEN = 0.45  # share of the run
ANOTHER = "a small green triangle moving up on a dotted background"
CALIBRATION = (
    "a big red triangle moving up on a dotted background",
    "a small blue circle moving left on a plain gray background",
    "a green square moving right on a plain gray background",
    "a big blue triangle moving down on a dotted background",
)
NONE, TEXT, LATENTS, NAN, WRONG = (
    "none", "text changes", "latents x 1.5", "NaN in a cached value", "profile of another model",
)  # fmt: skip
FAULTS = {"none": NONE, "text": TEXT, "latents": LATENTS, "nan": NAN, "profile": WRONG}
RUNS = ("guarded", "unguarded", "fewer")
Strike = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """One fault on one clip: number of steps that the guarded run computed, PSNRs in dB, and its
    notes. A PSNR that was not requested is NaN."""

    fault: str
    computed: float
    guarded_db: float
    unguarded_db: float
    fewer_db: float
    notes: tuple[str, ...]


def load() -> Any:
    """The miniature, quiet."""
    from diffusers import WanPipeline

    pipe = WanPipeline.from_pretrained(str(miniature.path()))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def clip_of(prompt: str, seed: int, steps: int) -> ClipSpec:
    """The miniature's clip with its default settings."""
    return ClipSpec(prompt, None, seed, steps, 4.0, 64, 64, 17, max_sequence_length=64)


def other_model(pipe: Any) -> Any:
    """A pipeline whose denoiser has other weights: noise with a fifth of the spread is added to
    each weight."""
    other = copy.copy(pipe)
    transformer = copy.deepcopy(pipe.transformer)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in transformer.parameters():
            if weight.numel() > 1:
                weight += 0.2 * weight.std() * torch.randn(weight.shape, generator=draw)
    other.register_modules(transformer=transformer)
    return other


def check(
    pipe: Any, profile: Profile, wrong: Profile, clip: ClipSpec, fault: str,
    scored: Sequence[str] = RUNS, **target: Any,
) -> Row:  # fmt: skip
    """Runs a fault on a clip: uncached, guarded, unguarded, and with fewer steps.

    Args:
        scored: those of the last three whose PSNR is measured.
    """
    target = target or {"speedup": 2.5}
    given = wrong if fault == WRONG else profile
    guarded, report = accelerated(pipe, given, clip, fault, guard=True, **target)
    steps = math.ceil(report.steps_computed)
    made = {
        "guarded": lambda: guarded,
        "unguarded": lambda: accelerated(pipe, given, clip, fault, guard=False, **target)[0],
        "fewer": lambda: stock(pipe, replace(clip, steps=steps), fault),
    }
    scores = (
        decibels(stock(pipe, clip, fault), made[name]()) if name in scored else math.nan
        for name in RUNS
    )
    return Row(fault, report.steps_computed, *scores, report.notes)


def stock(pipe: Any, clip: ClipSpec, fault: str) -> Any:
    """An uncached run with those faults that do not concern the cache."""
    return _stock(pipe, clip, fault if fault in (TEXT, LATENTS) else NONE)


@functools.lru_cache(maxsize=16)  # several faults share one run
def _stock(pipe: Any, clip: ClipSpec, fault: str) -> Any:
    return run(pipe, clip, strike_of(pipe, fault))


def accelerated(
    pipe: Any, profile: Profile, clip: ClipSpec, fault: str, *, guard: bool, **target: Any
) -> tuple[Any, Any]:
    """An accelerated run with a fault, and its report."""
    with accelerate(pipe, profile=profile, guard=guard, force=True, **target) as handle:

        def poison(tensors: dict[str, Any]) -> dict[str, Any]:
            cached = handle.executor.store["target", "cond"]
            cached[max(cached)][0, 0, 0, 0, 0] = math.nan
            return {}

        frames = run(pipe, clip, poison if fault == NAN else strike_of(pipe, fault))
        return frames, handle.report()


def strike_of(pipe: Any, fault: str) -> Strike:
    """The effect of a fault on the tensors of the pipeline's loop."""
    if fault == TEXT:
        text = pipe.encode_prompt(ANOTHER, None, False, max_sequence_length=64)[0]
        return lambda tensors: {"prompt_embeds": text.to(tensors["prompt_embeds"].dtype)}
    if fault == LATENTS:
        return lambda tensors: {"latents": tensors["latents"] * 1.5}
    return lambda tensors: {}


def run(pipe: Any, clip: ClipSpec, strike: Strike) -> Any:
    """Frames of a run with a fault after a step."""
    last = max(0, round(WHEN * clip.steps) - 1)

    def callback(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return strike(tensors) if step == last else {}

    return pipe(
        **call_arguments(pipe, clip), callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
    ).frames[0]  # fmt: skip


def decibels(reference: Any, frames: Any) -> float:
    """PSNR, at most 100 dB; 0 for frames that are not finite."""
    if not np.isfinite(frames).all():
        return 0.0
    return min(float(psnr(reference, frames, data_range=1.0)), 100.0)


def table(rows: Sequence[Row]) -> str:
    """Means by fault, as Markdown."""
    lines = [
        "| fault | computed steps | guarded, dB | unguarded, dB | fewer steps, dB | clips ahead | "
        "the worst clip | reported |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for fault in dict.fromkeys(row.fault for row in rows):
        mine = [row for row in rows if row.fault == fault]
        means = [
            statistics.fmean(getattr(row, name) for row in mine)
            for name in ("computed", "guarded_db", "unguarded_db", "fewer_db")
        ]
        leads = [row.guarded_db - row.fewer_db for row in mine]
        reported = sum(
            any(word in n for n in row.notes for word in ("Guard", "forced")) for row in mine
        )
        figures = " | ".join(f"{mean:.1f}" for mean in means)
        ahead = f"{sum(lead > 0 for lead in leads)} of {len(mine)} | {min(leads):+.1f}"
        lines.append(f"| {fault} | {figures} | {ahead} | {reported} of {len(mine)} |")
    return "\n".join(lines)


def calibrated(pipe: Any, steps: int, **settings: Any) -> Profile:
    """A profile for runs with this number of steps, from four clips."""
    from dit_accel.calibration.calibrate import calibrate

    clips = [clip_of(prompt, seed, steps) for seed, prompt in enumerate(CALIBRATION)]
    return calibrate(pipe, clips, **{"speedups": (2.5,), "probes": 3, "probed": 1} | settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--first", type=int, default=0, help="prompts to leave out before them")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--profile", type=Path)
    source.add_argument("--steps", type=int, help="of runs whose profile is made here, by 4 clips")
    parser.add_argument(
        "--wrong", type=Path, help="of another model; made here where none is given"
    )
    parser.add_argument("--speedup", type=float, default=2.5)
    parser.add_argument(
        "--unbounded", action="store_true", help="compute as much as the guard does for a quality"
    )
    options = parser.parse_args()
    if options.unbounded:
        controller.MAX_ADDED_STEPS = None
    pipe = load()
    profile = Profile.load(options.profile) if options.profile else calibrated(pipe, options.steps)
    steps = profile.key.steps
    wrong = profile
    if "profile" in options.faults:
        known = options.wrong
        wrong = Profile.load(known) if known else calibrated(other_model(pipe), steps)
    lines = (ROOT / "assets/prompts/miniature.jsonl").read_text().splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines]
    rows = []
    for place, prompt in list(enumerate(prompts))[options.first : options.first + options.prompts]:
        clip = clip_of(prompt, 1000 + place, steps)
        for fault in options.faults:
            row = check(pipe, profile, wrong, clip, FAULTS[fault], speedup=options.speedup)
            print(row, file=sys.stderr, flush=True)
            rows.append(row)
    print(table(rows))


if __name__ == "__main__":
    main()
