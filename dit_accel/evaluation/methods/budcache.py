"""Row of BudCache. Runs of one clip search k computed steps; the other steps reuse a prediction.

In: a pipeline and k. Out: the pipeline that computes these steps; it is restored afterwards.
Knows: the first 30 % of the budget are the first steps. Simulated annealing swaps a computed step
for another one. Then a hill climb moves steps by up to three. Each trial is a run with k computed
steps, and its cost is counted. The error is that of the final latents.
Source: BudCache, arXiv 2606.13496, without its learned noise levels; our reading of its code.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

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
from dit_accel.planning.plan import reuse_plan
from dit_accel.planning.spacing import evenly

FIXED_SHARE = 0.3  # share of the budget
PROPOSALS, HOT, COLD = 200, 0.1, 1e-4
ROUNDS, MOVES, REACH = 5, 20, 3
Score = Callable[[tuple[int, ...]], float]  # the error of computed steps; lower is better


def search(num_steps: int, count: int, score: Score, *, seed: int = 0) -> tuple[int, ...]:
    """Search the computed steps with the least error.

    Args:
        score: called once for each set of computed steps.
    """
    draw, known = random.Random(seed), dict[tuple[int, ...], float]()

    def error(mask: tuple[int, ...]) -> float:
        if mask not in known:
            known[mask] = score(mask)
        return known[mask]

    fixed = max(1, round(FIXED_SHARE * count))
    rest = (fixed + step for step in evenly(num_steps - fixed, count - fixed))
    now = (*range(fixed), *rest) if count > fixed else tuple(range(count))
    if count in (fixed, num_steps):
        return now
    for number in range(PROPOSALS):
        heat = HOT * (COLD / HOT) ** (number / (PROPOSALS - 1))
        other = _swapped(now, num_steps, fixed, draw)
        worse = (error(other) - error(now)) / max(error(now), 1e-30)
        if worse <= 0 or draw.random() < math.exp(-worse / heat):
            now = other
    now = min(known, key=lambda mask: known[mask])
    for _ in range(ROUNDS):
        around = [_moved(now, num_steps, fixed, draw) for _ in range(MOVES)]
        best = min(around, key=error)
        if error(best) >= error(now):
            break
        now = best
    return now


def _swapped(
    mask: tuple[int, ...], num_steps: int, fixed: int, draw: random.Random
) -> tuple[int, ...]:
    """The steps with one free computed step replaced by another step."""
    gone = draw.choice(mask[fixed:])
    come = draw.choice([step for step in range(num_steps) if step not in mask])
    return tuple(sorted({*mask, come} - {gone}))


def _moved(
    mask: tuple[int, ...], num_steps: int, fixed: int, draw: random.Random
) -> tuple[int, ...]:
    """The steps with one free computed step moved by up to `REACH`; unchanged if no step can
    move."""
    step = draw.choice(mask[fixed:])
    to = step + draw.choice([by for by in range(-REACH, REACH + 1) if by])
    if to in mask or not fixed <= to < num_steps:
        return mask
    return tuple(sorted({*mask, to} - {step}))


@contextmanager
def _budcache(pipe: Any, number: Number, context: MethodContext) -> Iterator[MethodHandle]:
    count = fewer(number, context, "budcache")
    n = context.clip.steps
    found = calibrated(context, f"budcache-{count}", partial(_searched, pipe, context, count))
    computed = [step.whole(0, n - 1) for step in found.at("computed").entries(count, count)]
    plan = reuse_plan(tuple(computed), n)
    with accelerate(pipe, plan=plan) as handle:
        yield MethodHandle(report=handle.report, calibration_runs=found.at("runs").number())


def _searched(pipe: Any, context: MethodContext, count: int, _: Any) -> dict[str, Any]:
    n, clips = context.clip.steps, runs.clips_of(context, 1)
    wanted, tries = runs.uncached_latents(pipe, context, 1), 0

    def score(mask: tuple[int, ...]) -> float:
        nonlocal tries
        tries += 1
        with accelerate(pipe, plan=reuse_plan(mask, n)):
            made = runs.final_latents(pipe, clips, 1)
        return float((made - wanted).square().sum() / wanted.square().sum())

    computed = search(n, count, score)
    return {"computed": list(computed), "runs": 1 + tries * count / n}


BUDCACHE_METHODS = (
    steps_row("budcache", "BudCache: steps searched by runs of one clip; the others by reuse",
              _budcache),
)  # fmt: skip
