"""Row of L2P. Even steps are computed; the others are weighted sums of them, fitted for each step.

In: a pipeline and k. Out: the pipeline with that plan; it is restored afterwards.
Knows: the weights of a step have the least squared error of that step's own prediction, over a few
uncached runs. The effect of the errors on the final latents is not considered.
Source: L2P, arXiv 2604.26365. Our differences: the last four guided predictions at the output are
combined, by least squares in closed form instead of gradient steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from dit_accel.evaluation.methods import runs
from dit_accel.evaluation.methods.row import (
    MethodContext,
    MethodHandle,
    Number,
    calibrated,
    fewer,
    steps_row,
)
from dit_accel.handle import accelerate
from dit_accel.planning.paths import Recorded
from dit_accel.planning.plan import Extrapolation, Plan, used_steps
from dit_accel.planning.spacing import evenly

RECORDED_CLIPS, DEPTH, PENALTY = 8, 4, 1e-6


def fitted_weights(
    recorded: Sequence[Recorded], used: Sequence[int], step: int
) -> dict[int, float]:
    """The weights of the predictions at `used` steps whose sum is nearest to a step's prediction,
    over all runs.

    Runs count equally, whatever the size of their predictions.
    """
    gram = torch.zeros(len(used), len(used), dtype=torch.float64)
    wanted = torch.zeros(len(used), dtype=torch.float64)
    for run in recorded:
        known, target = run.predictions[list(used)].double(), run.predictions[step].double()
        size = target.square().sum().clamp_min(1e-30)
        gram += known @ known.T / size
        wanted += known @ target / size
    penalty = PENALTY * torch.diag(gram.diagonal())
    return dict(zip(used, torch.linalg.solve(gram + penalty, wanted).tolist(), strict=True))


def fitted_plan(recorded: Sequence[Recorded], count: int) -> Plan:
    """Even computed steps, the first among them, and fitted weights."""
    n = len(recorded[0].nodes)
    computed = evenly(n, count)
    return Plan(n, {
        step: Extrapolation((fitted_weights(recorded, used_steps(computed, step, DEPTH), step),))
        for step in range(n) if step not in computed
    })  # fmt: skip


@contextmanager
def _l2p(pipe: Any, number: Number, context: MethodContext) -> Iterator[MethodHandle]:
    count = fewer(number, context, "l2p")
    found = calibrated(context, f"l2p-{count}", partial(_measured, pipe, context, count))
    planned = {
        int(step): Extrapolation(({int(s): w.number() for s, w in weights.fields().items()},))
        for step, weights in found.at("weights").fields().items()
    }
    with accelerate(pipe, plan=Plan(context.clip.steps, planned)) as handle:
        yield MethodHandle(report=handle.report, calibration_runs=found.at("runs").number())


def _measured(pipe: Any, context: MethodContext, count: int, _: Any) -> dict[str, Any]:
    recorded = runs.trajectories(pipe, context, RECORDED_CLIPS)
    plan = fitted_plan(recorded, count)
    weights = {
        str(step): {str(used): weight for used, weight in e.weights[0].items()}
        for step, e in plan.extrapolations.items()
    }
    return {"weights": weights, "runs": float(len(recorded))}


L2P_METHODS = (
    steps_row("l2p", "L2P: even steps; the others by weights fitted to each step", _l2p),
)
