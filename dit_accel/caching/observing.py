"""Observes a run that follows a plan, at no cost: what its computed predictions teach.

Goes in: the components of every computed prediction. Comes out: after the run, `Observations` of
one clip. Inner products are taken on the device while the run goes on, without a host sync; where
the rows would take more than half of the memory that is free, nothing is recorded. A run that left
its plan, or whose values are not all finite, teaches nothing. It knows steps and tensors;
`planning/first_run.py` takes the products. Ours; there is no source.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dit_accel.core.guidance import FirstStep, guided
from dit_accel.planning.first_run import RunRecord
from dit_accel.planning.learned import MOST_ROWS, Observations, RunKind
from dit_accel.planning.plan import Plan
from dit_accel.planning.search import add_weights


class RunObserver:
    """Records the computed predictions of one run.

    Args:
        kind: of the run.
        scale: of guidance, where both branches are in one batch.
        branches: as of `Family`.
        plan: that the run follows.
    """

    def __init__(self, kind: RunKind, scale: float, branches: str, plan: Plan) -> None:
        self.kind, self.plan = kind, plan
        self._scale, self._branches = scale, branches
        parts = len(kind.sampler.branch_weights)
        self._last = plan.computed[-1], parts - 1
        self.record = RunRecord(parts * len(plan.computed) + 1, moves=False)
        self.on_last: Callable[[], None] = lambda: None  # after the last row of the plan

    def __reduce__(self) -> tuple[Any, ...]:
        """None in another process: one of the ranks observes for all."""
        return type(None), ()

    def on_noise(self, noise: torch.Tensor) -> None:
        """As of `Policy`."""
        self.record.add_noise(guided(noise, self._scale, self._branches))

    def on_output(self, step: int, component: int, value: torch.Tensor) -> None:
        """As of `Policy`; the rows are freed after the last one of the plan."""
        self.record.add(component, guided(value, self._scale, self._branches), step)
        if (step, component) == self._last:
            self.record.close()
            self.on_last()

    def take(self, first: FirstStep) -> None:
        """Begin after the first step, which another policy had."""
        if first.noise is not None:
            self.on_noise(first.noise)
        for component, value in enumerate(first.components):
            self.on_output(0, component, value)

    @property
    def is_complete(self) -> bool:
        """Whether every row of the plan was recorded, or something else that ends the record."""
        steps = len(self.plan.computed)
        parts = range(len(self.kind.sampler.branch_weights))
        return not self.record.is_uniform or all(self.record.count(p) == steps for p in parts)

    def observations(self) -> Observations | None:
        """Of a run that followed its plan to the end; None where something is missing."""
        self.record.close()
        if not (self.is_complete and self.record.is_uniform and self.record.is_finite):
            return None
        return observed(self.record.products(self.kind.sampler), self.kind, self.plan)


def observed(products: torch.Tensor, kind: RunKind, plan: Plan) -> Observations | None:
    """Observations of one clip; None where they are of no use.

    Args:
        products: `(R, R)`, of the rows that the plan computes; 0 elsewhere.
        plan: that the run followed, to the end.
    """
    sampler = kind.sampler
    weights = sampler.final_weights
    for step in plan.extrapolations:  # other rows stand for those of this step
        weights[step : -1 : sampler.num_steps] = 0.0
        add_weights(weights, plan, step, sampler, sampler.coefficients[step])
    final = weights @ products @ weights
    rows = sampler.feature_rows(torch.tensor([plan.computed]))[0]
    known = products[rows][:, rows] / final
    if sampler.num_rows > MOST_ROWS or not final > 0 or not (known.diagonal()[:-1] > 0).all():
        return None
    return Observations(kind, plan.computed, 1, known)
