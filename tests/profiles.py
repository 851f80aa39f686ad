"""Made-up profiles, for tests: a smooth run of few dimensions and candidates with known errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from dit_accel.planning.candidate import CandidatePlan
from dit_accel.planning.plan import SamplerCoefficients
from dit_accel.planning.profile import Profile
from dit_accel.planning.profile_key import ProfileKey

STEPS = 20
IDENTITY = ProfileKey(
    pipeline="WanPipeline", transformer="WanTransformer3DModel",
    scheduler="FlowMatchEulerDiscreteScheduler", weights="0123", sampler="4567", parts=1,
    steps=STEPS, guidance=1.0, height=16, width=16, frames=9, dtype="float32",
)  # fmt: skip


def schedule_of(steps: int = STEPS, mix: tuple[float, ...] = (1.0,)) -> SamplerCoefficients:
    """Euler's: equal shares that add up to -1, timesteps from 1000 down."""
    times = 1000 * (1 - torch.arange(steps, dtype=torch.float64) / steps)
    return SamplerCoefficients(torch.full((steps,), -1 / steps, dtype=torch.float64), times, mix)


def gram_of(schedule: SamplerCoefficients, prompts: int = 2) -> torch.Tensor:
    """Of predictions along a curve in 6 dimensions, parts after each other, and a noise."""
    found = []
    for prompt in range(prompts):
        draw = torch.Generator().manual_seed(prompt)
        noise = torch.randn(6, generator=draw, dtype=torch.float64)
        pace = torch.linspace(1, 3, 6, dtype=torch.float64)
        rows = [
            torch.sin(pace * schedule.timesteps[:, None] / 400 + prompt + part)
            for part in range(len(schedule.branch_weights))
        ]
        whole = torch.cat([*rows, noise[None]]).float().double()
        found.append(whole @ whole.T)
    return torch.stack(found)


def candidate_of(
    computed: Sequence[int],
    psnr_db: Sequence[float],
    *,
    prompt_scores: Sequence[float] | None = None,
    parts: int = 1,
    depth: int = 3,
) -> CandidatePlan:
    """Its windows are lines; its extrapolation error is 0.1, times or over 1.2 between prompts."""
    psnr = torch.tensor(psnr_db, dtype=torch.float64)
    count = len(computed)
    return CandidatePlan(
        computed=tuple(computed),
        corrections=torch.zeros(count, parts * depth + 1, dtype=torch.float64),
        psnr_db=psnr,
        latents_db=psnr - 10,
        extrapolation_error=torch.full((count,), 0.1, dtype=torch.float64).log(),
        error_spread=torch.full((count,), 1.2, dtype=torch.float64).log(),
        prompt_scores=torch.tensor(prompt_scores or [0.0] * len(psnr), dtype=torch.float64),
    )


def profile_of(
    candidates: Sequence[CandidatePlan] = (),
    *,
    schedule: SamplerCoefficients | None = None,
    key: ProfileKey = IDENTITY,
    **changes: Any,
) -> Profile:
    """A profile of these candidates; gain 4 to 1, memory of half the run."""
    schedule = schedule or schedule_of()
    given = {
        "gram": gram_of(schedule).float().double(),
        "error_gain": torch.linspace(4, 1, schedule.num_steps, dtype=torch.float64),
        "error_memory": schedule.num_steps / 2,
        "depth": 3,
        "metadata": {"clips": 2, "torch": "0"},
    }
    return Profile(
        key=key, sampler=schedule, candidates=tuple(candidates), **given | changes,
    )  # fmt: skip


def made_for(
    pipe: Any, computed: Sequence[int], *, steps: int, guidance: float, mix: tuple[float, ...],
    size: tuple[int, int, int], psnr_db: float = 40.0,
) -> Profile:  # fmt: skip
    """Of this pipeline, which has run with so many steps: one candidate, and a guard at rest."""
    from dit_accel.planning.lookup import profile_key
    from dit_accel.planning.sampler import coefficients_of

    schedule = coefficients_of(pipe.scheduler, mix)
    height, width, frames = size
    key = profile_key(
        pipe, steps=steps, parts=len(mix), guidance=guidance, height=height, width=width,
        frames=frames, dtype="float32",
    )  # fmt: skip
    candidate = candidate_of(computed, [psnr_db + i / 10 for i in range(8)], parts=len(mix))
    spread = torch.full((len(computed),), 1e6, dtype=torch.float64)
    candidate = dataclasses.replace(candidate, error_spread=spread)
    return profile_of([candidate], schedule=schedule, key=key, gram=gram_of(schedule))


def spread_out(mean: float, deviation: float, count: int = 8) -> list[float]:
    """Numbers of exactly this mean and (unbiased) standard deviation."""
    steps = torch.linspace(-1, 1, count, dtype=torch.float64)
    return (mean + deviation * steps / steps.std()).tolist()


# Three plans of twenty steps, each 8 dB below the next slower one.
SLOW = (0, 1, 2, 4, 6, 8, 10, 12, 14, 16, 17, 18)
MIDDLE = (0, 1, 2, 5, 8, 11, 14, 17)
FAST = (0, 2, 4, 8, 14)
CANDIDATES = (
    candidate_of(SLOW, spread_out(50.0, 1.0)),
    candidate_of(MIDDLE, spread_out(42.0, 1.0)),
    candidate_of(FAST, spread_out(34.0, 1.0)),
)
