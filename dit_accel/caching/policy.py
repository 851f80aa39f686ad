"""Decides step by step what a run does: the interface, and the two simplest policies.

Goes in: once a run its `RunInfo`, then what `caching/monitor.py` measures at computed steps.
Comes out: per step an extrapolation, or None where the step has to be computed.
It knows steps and numbers, and no pipeline. `caching/guard.py` has the policy of planned runs,
`caching/controller.py` chooses it, `caching/executor.py` carries it out.
Ours; there is no source.
"""

from __future__ import annotations

from typing import Protocol

import torch

from dit_accel.core.quantization import BITS
from dit_accel.core.session import RunInfo
from dit_accel.planning.plan import Extrapolation, Plan


class Controller(Protocol):
    """Gives every run its policy. A `Policy` is a controller too: it gives itself."""

    def start(self, run: RunInfo) -> Policy:
        """The policy of the run that begins.

        Raises:
            ValueError: nothing can be decided for this run; the message says why.
        """


class Policy:
    """Decides step by step. By default every step is computed and nothing is measured.

    Attributes:
        branch_weights: weight of every component in the guided prediction.
        min_bits: the fewest bits that cached values may be quantized to under a memory cap.
        needs_error: whether `observe` needs what is measured; that is one host sync a step.
        checks_finite: whether cached values are checked before they are used. With neither this
            nor `needs_error` there is no host sync while a run goes on.
        planned: the steps that were to be computed; empty where nothing was planned.
        prediction: the PSNR that is expected of the run, as a dictionary for JSON.
    """

    branch_weights: tuple[float, ...] = (1.0,)
    min_bits: int = BITS[0]
    needs_error: bool = False
    checks_finite: bool = False

    @property
    def planned(self) -> tuple[int, ...]:
        return ()

    @property
    def prediction(self) -> dict[str, float | None] | None:
        return None

    def start(self, run: RunInfo) -> Policy:
        """A run begins: forget the last one. See `Controller`."""
        return self

    def extrapolation_at(self, step: int) -> Extrapolation | None:
        """What replaces the prediction of a step; None: it is computed."""
        return None

    def needed_steps(self, step: int) -> tuple[int, ...]:
        """Computed steps up to this one whose values a later step may use."""
        return ()

    def on_noise(self, noise: torch.Tensor) -> None:
        """The noise that the run starts from, `(B, ...)`, of the shape of the prediction."""

    def on_output(self, step: int, component: int, value: torch.Tensor) -> None:
        """A component of a computed prediction, `(B, ...)`: the first branch's output, or how much
        the second one's differs from it."""

    def observe(self, step: int, error: float | None, trust: float | None = None) -> None:
        """What was measured at a computed step.

        Args:
            error: the extrapolation error of the line through the last two computed values; None
                where there was no line, not finite where a value was not.
            trust: how much of the line's rise was right: 1 all, 0 nothing.
        """

    def on_lost_value(self, step: int, reason: str) -> None:
        """After this step a cached value was lost: the next step is computed to restore it."""

    def on_suspicious(self, step: int, reason: str) -> None:
        """After this step something was found that may be wrong: the next one decides."""

    def on_invalid(self, step: int, reason: str) -> None:
        """After this step something was found that makes the plan invalid."""

    def notes(self) -> tuple[str, ...]:
        """What a reader of the report must know of the last run."""
        return ()


class ComputeAll(Policy):
    """Computes every step, of a run of any number of steps."""


class PlanPolicy(Policy):
    """Follows a plan, and measures nothing.

    Args:
        plan: the plan.
        branch_weights: as of `Policy`.
    """

    def __init__(self, plan: Plan, branch_weights: tuple[float, ...] = (1.0,)) -> None:
        self.plan, self.branch_weights = plan, branch_weights

    def start(self, run: RunInfo) -> Policy:
        """See `Controller`."""
        check_steps(self.plan, run)
        return self

    def extrapolation_at(self, step: int) -> Extrapolation | None:
        """As planned."""
        return self.plan.extrapolations.get(step)

    def needed_steps(self, step: int) -> tuple[int, ...]:
        """As planned."""
        return self.plan.needed_steps(step)


def check_steps(plan: Plan, run: RunInfo) -> None:
    """Refuse a run of another number of steps.

    Raises:
        ValueError: the plan has another number of steps than the run.
    """
    if run.num_steps != plan.num_steps:
        raise ValueError(f"the plan is for {plan.num_steps} steps; this run has {run.num_steps}")
