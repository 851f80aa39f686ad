"""Rows of optimised schedules. A few uncached runs decide which steps are computed.

In: a pipeline and k. Out: the pipeline with k of its n nodes computed, with Adams-Bashforth or
UniPC on these nodes, or with the cache of the schedule's paper. It is restored afterwards.
Knows: one dynamic program (`planning/paths.py`) finds the nodes for all costs except that of OSS,
which must call the model at the states of a student. All k are found at once, so a second k needs
no further run.
Source: see `planning/paths.py`; OSS, arXiv 2503.21774, algorithm 1. Our difference: OSS stores the
best state of each node for every number of calls, so one search is enough for all k.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from dit_accel.core.document import Field
from dit_accel.core.extrapolation import lagrange_weights
from dit_accel.evaluation.methods import runs
from dit_accel.evaluation.methods.denoiser import GuidedDenoiser
from dit_accel.evaluation.methods.row import (
    Method,
    MethodContext,
    MethodHandle,
    Number,
    calibrated,
    fewer,
    steps_row,
)
from dit_accel.evaluation.methods.samplers import (
    SOLVERS,
    MakeStepper,
    adams_bashforth_solver,
    sampled,
)
from dit_accel.handle import accelerate
from dit_accel.planning import paths
from dit_accel.planning.plan import Extrapolation, Plan

RECORDED_CLIPS = 8  # from which the schedules are found
OSS_SEARCHED = 2  # of these, because OSS calls the model at every node for every step
COSTS: dict[str, Callable[[Sequence[paths.Recorded]], paths.PathCost]] = {
    "gits": paths.gits_cost,
    "lemica": paths.lemica_cost,
    "cem": paths.cem_cost,
    "dpcache": paths.dpcache_cost,
    "meancache": paths.meancache_cost,
}


def schedule_of(name: str, pipe: Any, context: MethodContext) -> Field:
    """A schedule's computed steps by their number, the times of all steps, and the number of
    uncached runs that were needed."""
    measure = partial(_oss if name == "oss" else _cheapest, name, pipe, context)
    return calibrated(context, f"{name}-paths", measure)


def path_of(found: Field, count: int, n: int) -> list[int]:
    """The computed steps of a schedule with `count` computed steps."""
    path = [step.whole(0, n - 1) for step in found.at("paths").at(str(count)).entries(count, count)]
    if path != sorted({0, *path}):
        raise found.at("paths").at(str(count)).error("rising steps, the first of them 0")
    return path


def _cheapest(name: str, pipe: Any, context: MethodContext, _: Any) -> dict[str, Any]:
    recorded = runs.trajectories(pipe, context, RECORDED_CLIPS)
    cost, n = COSTS[name](recorded), context.clip.steps
    found = {str(count): list(paths.cheapest(cost, count)) for count in range(1, n)}
    times = recorded[0].nodes.times.tolist()
    return {"paths": found, "times": times, "runs": float(len(recorded))}


# --- OSS ---


def _oss(name: str, pipe: Any, context: MethodContext, _: Any) -> dict[str, Any]:
    """The path of OSS: the median over the paths of the clips."""
    recorded = runs.trajectories(pipe, context, OSS_SEARCHED)
    clips = runs.clips_of(context, OSS_SEARCHED)
    denoiser = GuidedDenoiser(pipe, clips)
    n, calls, by_clip = context.clip.steps, 0, []
    for index, run in enumerate(recorded):
        own, rows = student_paths(run, _predictor(denoiser, index, pipe.device), n - 1)
        by_clip.append(own)
        calls += rows
    found = {
        str(count): _increasing([round(statistics.median(p)) for p in
                                 zip(*(own[count] for own in by_clip), strict=True)], n)
        for count in range(1, n)
    }  # fmt: skip
    times = recorded[0].nodes.times.tolist()
    return {"paths": found, "times": times, "runs": len(recorded) + calls / n}


def _increasing(path: list[int], n: int) -> list[int]:
    """Strictly rising steps. Medians of rising lists rise, but rounding may make two equal."""
    for place in range(1, len(path)):
        path[place] = max(path[place], path[place - 1] + 1)
    for place in reversed(range(len(path))):
        path[place] = min(path[place], n - len(path) + place)
    return path


Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # states `(R, N)`, labels `(R,)`


def _predictor(denoiser: GuidedDenoiser, clip: int, device: Any) -> Predict:
    shape = denoiser.noise.shape[1:]

    @torch.no_grad()
    def predict(states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        rows = torch.full((len(states),), clip, device=device)
        latents = states.to(device).view(-1, *shape)
        return denoiser(latents, labels.float().to(device), rows).cpu().flatten(1)

    return predict


def student_paths(
    run: paths.Recorded, predict: Predict, most: int
) -> tuple[dict[int, list[int]], int]:
    """OSS for one clip: for each number of calls, the path whose student ends nearest to the
    teacher.

    Args:
        run: the run of the teacher.
        predict: the guided prediction at any states and labels.
        most: the largest number of calls.

    Returns:
        Paths by the number of calls, and the number of predictions that were made.
    """
    times, n = run.nodes.times.float(), len(run.nodes)
    reached = {0: run.states[0]}  # the best state at each node after m calls of the model
    tables: list[dict[int, int]] = []  # by m: the node from which each node was reached
    calls = 0
    for _ in range(most):
        nodes = sorted(node for node in reached if node < n)
        states = torch.stack([reached[node] for node in nodes])
        predictions = predict(states, run.nodes.labels[nodes])
        calls += len(nodes)
        reached, table = _jump(nodes, states, predictions, times, run.states)
        tables.append(table)
    found = {}
    for count in range(1, most + 1):
        at, path = n, []
        for table in reversed(tables[:count]):
            at = table[at]
            path.append(at)
        found[count] = path[::-1]
    return found, calls


def _jump(
    nodes: list[int], states: torch.Tensor, predictions: torch.Tensor, times: torch.Tensor,
    teacher: torch.Tensor,
) -> tuple[dict[int, torch.Tensor], dict[int, int]]:  # fmt: skip
    """For every later node, the Euler jump nearest to the teacher's state, and the node where it
    begins."""
    reached, table = {}, {}
    at = torch.tensor(nodes)
    for node in range(nodes[0] + 1, len(times)):
        earlier = at < node
        jumps = states[earlier] + (times[node] - times[at[earlier]])[:, None] * predictions[earlier]
        best = int((jumps - teacher[node]).square().sum(1).argmin())
        reached[node], table[node] = jumps[best], nodes[best]
    return reached, table


# --- rows ---


@contextmanager
def _on_nodes(
    name: str, stepper: MakeStepper, pipe: Any, number: Number, context: MethodContext
) -> Iterator[MethodHandle]:
    count = fewer(number, context, name)
    found = schedule_of(name, pipe, context)
    path = path_of(found, count, context.clip.steps)
    with sampled(pipe, lambda nodes: nodes.at(path), stepper, context.clip.steps):
        yield MethodHandle(
            {"num_inference_steps": count}, calibration_runs=found.at("runs").number()
        )


@contextmanager
def _cached(
    name: str, order: int, pipe: Any, number: Number, context: MethodContext
) -> Iterator[MethodHandle]:
    count = fewer(number, context, name)
    found = schedule_of(name, pipe, context)
    n = context.clip.steps
    times = [time.number() for time in found.at("times").entries(n + 1, n + 1)]
    plan = line_plan(path_of(found, count, n), times, order)
    with accelerate(pipe, plan=plan) as handle:
        yield MethodHandle(report=handle.report, calibration_runs=found.at("runs").number())


def line_plan(computed: Sequence[int], times: Sequence[float], order: int) -> Plan:
    """A plan without fitted weights: reuse (order 0) or the line through two values (order 1).

    Args:
        times: `(n + 1,)`: the times of all steps and of the end.
    """
    n, planned = len(times) - 1, {}
    for step in range(n):
        if step not in computed:
            used = [s for s in computed if s < step][::-1][: order + 1]
            weights = lagrange_weights([times[s] for s in used], times[step])
            planned[step] = Extrapolation((dict(zip(used, weights, strict=True)),))
    return Plan(n, planned)


SUMMARIES = {
    "gits": "GITS: the steps along which the uncached run is least curved",
    "oss": "OSS: the steps that bring a student nearest to the uncached run",
    "lemica": "LeMiCa: the steps whose largest reuse error at the end is least",
    "cem": "CEM: the steps with the least sum of reuse errors",
    "dpcache": "DPCache: the steps with the least sum of errors along lines",
    "meancache": "MeanCache: the steps whose mean predictions are estimated best",
}
OWN = {"lemica": (0, "reuse"), "cem": (1, "lines"), "dpcache": (1, "lines"),
       "meancache": (1, "lines")}  # fmt: skip
ON_NODES = {"ab": "ab-2", "unipc": "unipc-2"}

SCHEDULE_METHODS: tuple[Method, ...] = (
    *(
        steps_row(f"{name}/{short}", f"{summary}; then {SOLVERS[solver][0]}",
                  partial(_on_nodes, name, SOLVERS[solver][1]))
        for name, summary in SUMMARIES.items()
        for short, solver in ON_NODES.items()
    ),
    *(
        steps_row(name, f"{SUMMARIES[name]}; then Euler",
                  partial(_on_nodes, name, adams_bashforth_solver(1)))
        for name in ("gits", "oss")
    ),
    *(
        steps_row(name, f"{SUMMARIES[name]}; the others by {how}", partial(_cached, name, order))
        for name, (order, how) in OWN.items()
    ),
)  # fmt: skip
