"""Probes how an error grows until the last step of a run.

In: a pipeline, clips that are rows of one batch, and their recordings or a plan. Out: the error
gain, which is the factor by which an error has grown at the end; the error memory, from the cosine
between the error made and the final one.
A probe reuses one prediction at one step of a recorded run. An accelerated probe needs no
recording, and gives the gain at the start alone.
Knows the pipeline; no plans are made here. Source: ours.
Shapes: as in `record.py`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from dit_accel.caching.policy import PlanPolicy
from dit_accel.calibration.record import LINEAR, SchedulerTap, UncachedRun, run
from dit_accel.calibration.replay import replayed
from dit_accel.core.generation import ClipSpec
from dit_accel.handle import accelerate
from dit_accel.planning.interpolation import linear_weights
from dit_accel.planning.plan import Extrapolation, Plan, SamplerCoefficients


def probe_steps(num_steps: int, probes: int) -> list[int]:
    """The steps that are probed, from 1 on, closer together where the gain changes fastest."""
    if probes == 0:
        return []
    places = (round((num_steps - 2) * (i / (probes - 1)) ** 1.7) + 1 for i in range(probes))
    return sorted(set(places))


def probe(
    pipe: Any, clips: Sequence[ClipSpec], overrides: dict[str, Any] | None,
    recordings: Sequence[UncachedRun], step: int,
) -> list[tuple[float, float]]:  # fmt: skip
    """The gain of an error made at a step, and the cosine between it and the final error.

    The steps before it are replayed from the recordings, so only n - `step` of n steps are
    computed. If the pipeline changes the replayed predictions, all steps but one are computed.

    Returns:
        (gain, cosine) for each clip.
    """

    def recorded(at: int) -> torch.Tensor:
        """The guided prediction of a step; the probed step gets that of the step before."""
        return torch.stack([one.guided(min(at, step - 1)) for one in recordings])

    latents = {"output_type": "latent"} | (overrides or {})
    with replayed(pipe, recorded, step), SchedulerTap(pipe.scheduler) as tap:
        run(pipe, clips, latents)
    wanted = recorded(step)
    if float((tap.predictions[step] - wanted).norm() / wanted.norm()) > LINEAR:
        weights = recordings[0].sampler.branch_weights
        reused = Extrapolation(tuple({step - 1: 1.0} for _ in weights))
        plan = Plan(clips[0].steps, {step: reused})
        with accelerate(pipe, plan=plan, mix=weights), SchedulerTap(pipe.scheduler) as tap:
            run(pipe, clips, latents)
    return [_grown(recording, step, tap.final[row]) for row, recording in enumerate(recordings)]


def _grown(recording: UncachedRun, step: int, final: torch.Tensor) -> tuple[float, float]:
    # Both predictions get the weights of the probed step, also where the second expert begins.
    weights = torch.tensor(recording.sampler.weights_at(step))
    reused, own = (recording.components[:, at] for at in (step - 1, step))
    difference = torch.einsum("b,bn->n", weights, reused - own)
    made = float(recording.sampler.coefficients[step]) * difference
    became = final - recording.final
    sizes = float(made.norm()), float(became.norm())
    if 0.0 in sizes:
        return 1.0, 1.0  # there was no error to measure
    return sizes[1] / sizes[0], float(made @ became) / (sizes[0] * sizes[1])


def probe_accelerated(
    pipe: Any, clips: Sequence[ClipSpec], overrides: dict[str, Any] | None, plan: Plan,
    sampler: SamplerCoefficients,
) -> list[float]:  # fmt: skip
    """The gain of an error made at the start of a run, from two runs of the same plan.

    The second run gets an error: at its second computed step the prediction differs by as much as
    predictions change from step to step. An error grows in the denoiser, whichever steps the plan
    extrapolates. So two runs of 13 of 50 steps measure the same gain as two uncached runs, for a
    quarter of the cost, and no recording is needed (docs/how-it-works.md, section 4).

    Args:
        plan: with at least two computed steps.

    Returns:
        The gains at step `plan.computed[1]`, > 0, of the clips whose latents are finite.
    """
    at, latents = plan.computed[1], {"output_type": "latent"} | (overrides or {})
    policy = PlanPolicy(plan, sampler.branch_weights, sampler.second)

    def ended(errors: dict[int, torch.Tensor]) -> SchedulerTap:
        with accelerate(pipe, plan=policy), SchedulerTap(pipe.scheduler, errors=errors) as tap:
            run(pipe, clips, latents)
        return tap

    usual = ended({})
    change = (usual.predictions[0] - usual.predictions[at]) / at
    became = (ended({at: change}).final - usual.final).norm(dim=1)
    made = (float(sampler.coefficients[at]) * change).norm(dim=1)
    # No change means no error to measure. A gain of 0 would have no logarithm.
    gains = torch.where(made == 0, 1.0, became / made).clamp_min(1e-6).tolist()
    return [gain for gain in gains if math.isfinite(gain)]


def gain_and_memory(
    probes: Sequence[tuple[int, float, float]], num_steps: int
) -> tuple[torch.Tensor, float]:
    """The error gain `(n,)` float64 and the error memory in steps, from (step, gain, cosine).

    The gain is the root mean square over clips. Between probed steps its logarithm is interpolated
    linearly. The memory is the median over probes of τ in cosine = exp(-steps to the end / τ).
    """
    steps = sorted({step for step, _, _ in probes})
    squares = [statistics.fmean(g * g for s, g, _ in probes if s == step) for step in steps]
    logs = torch.tensor(squares, dtype=torch.float64).log() / 2
    known, every = torch.tensor(steps).double(), torch.arange(num_steps).double()
    gain = (linear_weights(known, every) @ logs).exp()
    memory = statistics.median(
        (num_steps - step) / -math.log(min(max(cosine, 0.02), 0.99)) for step, _, cosine in probes
    )
    return gain, memory
