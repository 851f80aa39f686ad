"""Row of RA-CFGCache: both branches are reused while the guided error at the end is small.

In: a pipeline and k. Out: the pipeline that computes k steps, and reuses the last prediction at the
others; it is restored afterwards.
Knows: the error of reuse is taken after guidance, (1 - s) δu + s δc, from a few uncached runs. It
is multiplied by the error gain of its step, which a few more runs measure. A window lasts while the
sum of errors is below a threshold. The threshold is the one with k computed steps.
Source: RA-CFGCache, arXiv 2609.36433; our reading of its abstract and tables. Our difference: the
budget is k; the paper gives thresholds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

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
from dit_accel.planning.paths import Recorded, step_errors
from dit_accel.planning.plan import Extrapolation, Plan, reuse_plan

RECORDED_CLIPS, PROBES, PROBED_CLIPS = 8, 6, 2  # uncached runs; probed steps, and clips of each
Errors = npt.NDArray[np.float64]


def windows(errors: Errors, threshold: float) -> list[int]:
    """The computed steps. A window lasts while the sum of its errors is below the threshold.

    Args:
        errors: `(n, n)`: the error at the end if a computed step is reused at a later one.
    """
    computed, added = [0], 0.0
    for step in range(1, len(errors)):
        added += errors[computed[-1], step]
        if added >= threshold:
            computed.append(step)
            added = 0.0
    return computed


def windows_of(errors: Errors, count: int) -> list[int]:
    """`windows` with the threshold that gives at most `count` computed steps. Missing steps are
    added where reuse has the largest error."""
    low, high = 0.0, float(errors[errors < np.inf].sum()) + 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if len(windows(errors, middle)) > count else (low, middle)
    found = windows(errors, high)
    while len(found) < count:
        costs = {s: errors[max(c for c in found if c < s), s] for s in range(1, len(errors))
                 if s not in found}  # fmt: skip
        found = sorted([*found, max(costs, key=lambda step: costs[step])])
    return found


def _profile(pipe: Any, context: MethodContext, _: Any) -> dict[str, Any]:
    recorded = runs.trajectories(pipe, context, RECORDED_CLIPS)
    n, probed = len(recorded[0].nodes), recorded[:PROBED_CLIPS]
    steps = sorted({round(1 + (n - 2) * place / (PROBES - 1)) for place in range(PROBES)})
    gains = [_gain(pipe, context, probed, step) for step in steps]
    gain = np.exp(np.interp(np.arange(n), steps, np.log(gains)))
    errors = np.mean([step_errors(run) for run in recorded], axis=0) * gain
    found = {str(count): windows_of(errors, count) for count in range(1, n)}
    spent = len(recorded) + len(probed) * len(steps) * (n - 1) / n
    return {"paths": found, "runs": spent}


def _gain(pipe: Any, context: MethodContext, probed: Sequence[Recorded], step: int) -> float:
    """The growth of one reused step's error until the end, root mean square over clips."""
    plan = Plan(len(probed[0].nodes), {step: Extrapolation(({step - 1: 1.0},))})
    with accelerate(pipe, plan=plan):
        made = runs.final_latents(pipe, runs.clips_of(context, len(probed)), context.batch)
    squares = []
    for run, final in zip(probed, made, strict=True):
        moved = float(run.nodes.times.diff()[step])
        error = moved * (run.predictions[step - 1] - run.predictions[step])
        became = final - run.states[-1]
        squares.append(float(became.square().sum() / error.square().sum().clamp_min(1e-30)))
    return float(np.sqrt(np.mean(squares))) or 1.0


@contextmanager
def _ra_cfg_cache(pipe: Any, number: Number, context: MethodContext) -> Iterator[MethodHandle]:
    count = fewer(number, context, "ra-cfg-cache")
    n = context.clip.steps
    found = calibrated(context, "ra-cfg-cache", partial(_profile, pipe, context))
    path = found.at("paths").at(str(count)).entries(count, count)
    plan = reuse_plan(tuple(step.whole(0, n - 1) for step in path), n)
    with accelerate(pipe, plan=plan) as handle:
        yield MethodHandle(report=handle.report, calibration_runs=found.at("runs").number())


RA_CFG_METHODS = (
    steps_row("ra-cfg-cache", "RA-CFGCache: reuse while the guided error at the end is small",
              _ra_cfg_cache),
)  # fmt: skip
