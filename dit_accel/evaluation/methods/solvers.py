"""Rows of solvers at fewer steps: UniPC, DPM++, DEIS and Adams-Bashforth, without training.

In: a pipeline and k. Out: the pipeline with such a solver on k nodes, evenly spaced on the schedule
of the uncached run. It is restored afterwards.
Knows: the best flow shift depends on solver and k. So shifts are tried on calibration clips,
relative to the pipeline's own shift, and the best one is used and named. Without calibration clips
the shift stays. A solver approaches the solution of the equation. The uncached clip does too, with
the error of the stock solver. The score is the closeness to that clip.
Source: see `samplers.SOLVERS`; for Adams-Bashforth see `planning/nodes.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from dit_accel.core.document import Field
from dit_accel.evaluation.methods import runs
from dit_accel.evaluation.methods.row import (
    MethodContext,
    MethodHandle,
    Number,
    calibrated,
    fewer,
    steps_row,
)
from dit_accel.evaluation.methods.samplers import SOLVERS, sampled
from dit_accel.planning.nodes import Nodes
from dit_accel.planning.stock_nodes import shift_nodes, spread

SHIFTS = (0.33, 0.5, 0.67, 1.0, 1.5, 2.0, 3.0)  # factors of the pipeline's own shift
SWEPT_CLIPS = 4  # on which a shift is chosen


@contextmanager
def _solved(name: str, pipe: Any, number: Number, context: MethodContext) -> Iterator[MethodHandle]:
    steps = fewer(number, context, name)
    found = _best_shift(name, pipe, steps, context)
    with _with_shift(name, pipe, found.at("shift").number(1e-3, 1e3), steps, context):
        yield MethodHandle(
            overrides={"num_inference_steps": steps},
            remarks=(found.at("remark").text(),),
            calibration_runs=found.at("runs").number(),
        )


def _with_shift(name: str, pipe: Any, shift: float, steps: int, context: MethodContext) -> Any:
    stock = pipe.scheduler

    def choose(nodes: Nodes) -> Nodes:
        return shift_nodes(spread(nodes, steps, stock), shift, stock)

    return sampled(pipe, choose, SOLVERS[name][1], context.clip.steps)


def _best_shift(name: str, pipe: Any, steps: int, context: MethodContext) -> Field:
    """The shift, its cost in runs, and a remark."""
    if not context.calibration_clips:
        stock = {"shift": 1.0, "runs": 0.0, "remark": "the pipeline's own flow shift"}
        return Field(stock)
    key = f"shift-{name.replace('/', '-')}-{steps}"
    return calibrated(context, key, partial(_sweep, name, pipe, steps, context))


def _sweep(name: str, pipe: Any, steps: int, context: MethodContext, _: Any) -> dict[str, Any]:
    clips = runs.clips_of(context, SWEPT_CLIPS)
    wanted = runs.uncached_latents(pipe, context, SWEPT_CLIPS)
    scores = {}
    for shift in SHIFTS:
        with _with_shift(name, pipe, shift, steps, context):
            made = runs.final_latents(pipe, clips, context.batch, {"num_inference_steps": steps})
        scores[shift] = runs.fidelity(made, wanted)
    best = max(scores, key=lambda shift: scores[shift])
    spent = len(clips) * (1 + len(SHIFTS) * steps / context.clip.steps)
    tried = f"{len(SHIFTS)} from {SHIFTS[0]:g} to {SHIFTS[-1]:g}"
    remark = f"flow shift {best:g} times the stock one, the best of {tried} on {len(clips)} clips"
    return {"shift": best, "runs": spent, "remark": remark}


SOLVER_METHODS = tuple(
    steps_row(name, f"{summary} at fewer steps, flow shift swept", partial(_solved, name))
    for name, (summary, _) in SOLVERS.items()
)
