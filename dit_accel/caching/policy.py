"""Decides step by step what a run does: the interface, and the simplest policies.

Goes in: the `RunInfo` once per run, then what `caching/monitor.py` measures at computed steps.
Comes out: for each step an extrapolation, or None where the step has to be computed.
It knows steps and numbers, and no pipeline. `caching/guard.py` has the policy of planned runs,
`caching/controller.py` chooses it, `caching/executor.py` carries it out.
Ours; there is no source.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any, Protocol

import torch

from dit_accel.caching.ranks import Ranks
from dit_accel.core.guidance import FirstStep
from dit_accel.core.interceptor import RunInfo
from dit_accel.core.quantization import BITS
from dit_accel.planning.plan import (
    Extrapolation,
    Plan,
    SamplerCoefficients,
    SecondExpert,
    since,
    weights_at,
)


class Controller(Protocol):
    """Gives every run its policy. A `Policy` is a controller too: it gives itself."""

    @property
    def sees_first_step(self) -> bool:
        """Whether it has to see what the first step of this run shows."""

    def start(self, run: RunInfo) -> Policy:
        """The policy of the run that begins; a ValueError says why there is none."""

    def after_first_step(self, branches: int, seen: Callable[[], FirstStep]) -> Policy | None:
        """The policy of the other steps, where the first one showed that it has to be another.

        Args:
            branches: forwards that a step has.
            seen: measures the step.
        """

    def finish(self) -> tuple[str, ...]:
        """The run may be over: then learn from it, once. Returns notes for the report."""


class Policy:
    """Decides step by step. By default every step is computed and nothing is measured.

    Without `needs_error` and `checks_finite` there is no host sync while a run goes on.
    """

    branch_weights: tuple[float, ...] = (1.0,)  # of the components of the guided prediction
    second: SecondExpert | None = None  # of the run, where there is one
    min_bits: int = BITS[0]  # that cached values may be quantized to under a memory cap
    needs_error: bool = False  # whether `observe` is called
    checks_finite: bool = False  # whether cached values are checked before they are used
    planned: tuple[int, ...] = ()  # steps that are to be computed; empty: nothing was planned
    sees_first_step: bool = False  # see `Controller`
    records: bool = False  # whether `on_noise` and `on_output` are called, as the run is recorded

    def weights_at(self, step: int) -> tuple[float, ...]:
        """The branch weights of a step."""
        return weights_at(step, self.branch_weights, self.second)

    def since(self, step: int) -> int:
        """The first step of the expert that makes a step: no line goes through earlier ones."""
        return since(step, self.second)

    def start(self, run: RunInfo) -> Policy:
        """A run begins: forget the last one. See `Controller`."""
        return self

    def after_first_step(self, branches: int, seen: Callable[[], FirstStep]) -> Policy | None:
        """It goes on. See `Controller`."""
        return None

    def finish(self) -> tuple[str, ...]:
        """The run may be over. See `Controller`."""
        return ()

    def prepare(self) -> Policy:
        """The policy from here on, once the run's first forward is queued on the device.

        Step 0 is always computed. Work that the host does here costs no time on a GPU.
        """
        return self

    def prediction(self) -> dict[str, Any] | None:
        """The PSNR that is expected of the run, for JSON; None: not known."""
        return None

    def extrapolation_at(self, step: int) -> Extrapolation | None:
        """What replaces the prediction of a step; None: it is computed."""
        return None

    def needed_steps(self, step: int) -> tuple[int, ...]:
        """Computed steps up to this one whose values a later step may use."""
        return ()

    def on_noise(self, noise: torch.Tensor) -> None:
        """The noise that the run starts from, `(B, ...)`, of the shape of the prediction."""

    def on_output(self, step: int, component: int, value: torch.Tensor) -> None:
        """A component of a computed prediction, `(B, ...)`: 0 is the first branch's output, 1 the
        difference of the second branch's from it."""

    def take(self, first: FirstStep) -> None:
        """Where it `records`: take over the first step, which ran by another policy."""

    @property
    def observes_late(self) -> bool:
        """Whether what was measured of a step may be observed after the next computed step.

        Then no host sync waits for all that is queued on the device.
        """
        return False

    def on_computed(self, step: int) -> None:
        """A step was computed; it is observed now or later."""

    def observe(self, step: int, error: float | None, trust: float | None = None) -> None:
        """What was measured of a computed step.

        Args:
            error: extrapolation error of the line through the last two computed values; None where
                there was no line, not finite where a value was not.
            trust: how much of the line's rise from the last value was right: 1 is all of it.
        """

    def on_lost_value(self, step: int, reason: str) -> None:
        """After this step a cached value was lost: the next step is computed to restore it."""

    def on_suspicious(self, step: int, reason: str) -> None:
        """After this step something was found that may be wrong: the next one decides."""

    def on_invalid(self, step: int, reason: str) -> None:
        """After this step something was found that makes the plan invalid."""

    def on_end(self, steps: int) -> None:
        """The run is over after so many steps: the pipeline leaves the others out."""

    def added_steps(self, computed: Set[int]) -> tuple[int, ...]:
        """Those of the computed steps that were not planned to be, in order."""
        return tuple(sorted(computed - {*self.planned})) if self.planned else ()

    def omitted_steps(self) -> tuple[int, ...]:
        """Those that were planned to be computed, and are not any more, in order."""
        return ()

    def reasons(self) -> tuple[str, ...]:
        """Why steps were computed that were not planned to be: after "because"."""
        return ()

    def notes(self) -> tuple[str, ...]:
        """What a reader of the report must know of the last run."""
        return ()


class ComputeAll(Policy):
    """Computes every step, of a run of any number of steps."""


class PlanPolicy(Policy):
    """Follows a plan, and measures nothing."""

    def __init__(
        self, plan: Plan, branch_weights: tuple[float, ...] = (1.0,),
        second: SecondExpert | None = None,
    ) -> None:  # fmt: skip
        self.plan, self.branch_weights, self.second = plan, branch_weights, second
        self.planned = plan.computed

    def start(self, run: RunInfo) -> Policy:
        check_steps(self.plan, run)
        return self

    def extrapolation_at(self, step: int) -> Extrapolation | None:
        return self.plan.extrapolations.get(step)

    def needed_steps(self, step: int) -> tuple[int, ...]:
        return self.plan.needed_steps(step)


class SearchingPolicy(Policy):
    """Becomes the policy of a plan, which is searched for while the device computes step 0.

    A search takes a tenth of a second, which short runs would notice.
    """

    def __init__(
        self, sampler: SamplerCoefficients, guard: bool, static: bool, choose: Callable[[], Policy]
    ) -> None:
        self.branch_weights, self.second = sampler.branch_weights, sampler.second
        self._choose = choose
        self.needs_error, self.checks_finite = guard and not static, not static
        self.agree(Ranks(), torch.device("cpu"))

    def agree(self, ranks: Ranks, device: torch.device) -> None:
        """The first of these ranks searches for all of them."""
        self._ranks, self._device = ranks, device

    def prepare(self) -> Policy:
        return self._ranks.of_first(self._choose, self._device)

    def __getstate__(self) -> dict[str, Any]:
        """Without the search: another rank gets what was found."""
        return vars(self) | {"_choose": None}


def check_steps(plan: Plan, run: RunInfo) -> None:
    """Refuse a run of another number of steps.

    Raises:
        ValueError: the plan has another number of steps than the run.
    """
    if run.num_steps != plan.num_steps:
        raise ValueError(f"the plan is for {plan.num_steps} steps; this run has {run.num_steps}")
