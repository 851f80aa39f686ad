"""Decides step by step what a run does: the interface, and the simplest policies.

Goes in: the `RunInfo` once per run, then the measurements of `caching/monitor.py` at computed
steps. Comes out: for each step an extrapolation, or None if the step has to be computed.
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
    """Gives every run its policy. A `Policy` is a controller too: it returns itself."""

    @property
    def sees_first_step(self) -> bool:
        """Whether `after_first_step` has to be called in this run."""

    def start(self, run: RunInfo) -> Policy:
        """The policy of the run that begins now.

        Raises:
            ValueError: the run is refused; the message says why.
        """

    def after_first_step(self, branches: int, seen: Callable[[], FirstStep]) -> Policy | None:
        """A new policy for the other steps, if the first one shows that they need one; else None.

        Args:
            branches: how many forwards a step has.
            seen: returns what the first step showed; it can measure the branch weights.
        """

    def finish(self) -> tuple[str, ...]:
        """Learn from the run if it is over, once. Returns notes for the report."""


class Policy:
    """Decides step by step. By default every step is computed and nothing is measured.

    Without `needs_error` and `checks_finite` there are no host syncs during a run.
    """

    branch_weights: tuple[float, ...] = (1.0,)  # of the components of the guided prediction
    second: SecondExpert | None = None  # the run's second expert, if it has one
    min_bits: int = BITS[0]  # the fewest bits to which a memory cap may quantize cached values
    needs_error: bool = False  # whether `observe` is called
    checks_finite: bool = False  # whether cached values are checked before they are used
    planned: tuple[int, ...] = ()  # the steps that the plan computes; empty: there is no plan
    sees_first_step: bool = False  # see `Controller`
    records: bool = False  # whether the run is recorded, by `on_noise` and `on_output`

    def weights_at(self, step: int) -> tuple[float, ...]:
        """The branch weights of a step."""
        return weights_at(step, self.branch_weights, self.second)

    def since(self, step: int) -> int:
        """The first step of the expert that `step` has. No line uses values of earlier steps."""
        return since(step, self.second)

    def start(self, run: RunInfo) -> Policy:
        """A run begins: forget the last one. See `Controller`."""
        return self

    def after_first_step(self, branches: int, seen: Callable[[], FirstStep]) -> Policy | None:
        """Continue with this policy. See `Controller`."""
        return None

    def finish(self) -> tuple[str, ...]:
        """The run may be over. See `Controller`."""
        return ()

    def prepare(self) -> Policy:
        """The policy from here on; called once the run's first forward is queued on the device.

        Step 0 is always computed. On a GPU, work of the host here costs no time: the device is
        busy with the forward meanwhile.
        """
        return self

    def prediction(self) -> dict[str, Any] | None:
        """The expected PSNR of the run, as JSON-able data; None: it is not known."""
        return None

    def extrapolation_at(self, step: int) -> Extrapolation | None:
        """The extrapolation that replaces the prediction of a step; None: compute the step."""
        return None

    def needed_steps(self, step: int) -> tuple[int, ...]:
        """The computed steps, up to this one, whose values a later step may use."""
        return ()

    def on_noise(self, noise: torch.Tensor) -> None:
        """Receives the noise from which the run starts: `(B, ...)`, in the prediction's shape."""

    def on_output(self, step: int, component: int, value: torch.Tensor) -> None:
        """Receives a component of a computed prediction, `(B, ...)`.

        Component 0 is the output of the first branch. Component 1 is the second branch's output
        minus the first's.
        """

    def take(self, first: FirstStep) -> None:
        """Record the first step, which ran with another policy. Called if this one `records`."""

    @property
    def observes_late(self) -> bool:
        """Whether a step's measurements may be observed only after the next computed step.

        Then no host sync has to wait until the device's queue is empty.
        """
        return False

    def on_computed(self, step: int) -> None:
        """A step was computed. `observe` follows now or later."""

    def observe(self, step: int, error: float | None, trust: float | None = None) -> None:
        """Receives the measurements of a computed step.

        Args:
            error: the extrapolation error of the line through the last two computed values. None:
                there was no line. Not finite: one of the values was not.
            trust: the share of the line's rise from the last value that was right; 1 is all of it.
        """

    def on_lost_value(self, step: int, reason: str) -> None:
        """After this step a cached value was lost. The next step is computed to restore it."""

    def on_suspicious(self, step: int, reason: str) -> None:
        """After this step something suspicious was found. The next step decides."""

    def on_invalid(self, step: int, reason: str) -> None:
        """After this step something was found that makes the plan invalid."""

    def on_end(self, steps: int) -> None:
        """The run is over after `steps` steps. The pipeline leaves the others out."""

    def added_steps(self, computed: Set[int]) -> tuple[int, ...]:
        """The steps that were computed although the plan does not compute them, in order."""
        return tuple(sorted(computed - {*self.planned})) if self.planned else ()

    def omitted_steps(self) -> tuple[int, ...]:
        """The steps that the plan computes and the run does not, in order."""
        return ()

    def reasons(self) -> tuple[str, ...]:
        """Why the steps in `added_steps` were computed, worded to follow "because"."""
        return ()

    def notes(self) -> tuple[str, ...]:
        """What a reader of the report must know about the last run."""
        return ()


class ComputeAll(Policy):
    """Computes every step, whatever the number of steps."""


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
    """Computes step 0, then gives way to the policy of a plan that is searched meanwhile.

    A search takes a tenth of a second. A short run would become noticeably slower if it waited.
    """

    def __init__(
        self, sampler: SamplerCoefficients, guard: bool, static: bool, choose: Callable[[], Policy]
    ) -> None:
        self.branch_weights, self.second = sampler.branch_weights, sampler.second
        self._choose = choose
        self.needs_error, self.checks_finite = guard and not static, not static
        self.agree(Ranks(), torch.device("cpu"))

    def agree(self, ranks: Ranks, device: torch.device) -> None:
        """Let the first of these ranks search for all of them."""
        self._ranks, self._device = ranks, device

    def prepare(self) -> Policy:
        return self._ranks.of_first(self._choose, self._device)

    def __getstate__(self) -> dict[str, Any]:
        """The state without the search, for another rank: that rank receives the result."""
        return vars(self) | {"_choose": None}


def check_steps(plan: Plan, run: RunInfo) -> None:
    """Refuse a run whose number of steps is not the plan's.

    Raises:
        ValueError: the numbers of steps differ.
    """
    if run.num_steps != plan.num_steps:
        raise ValueError(
            f"plan is for {plan.num_steps} steps, but this run has {run.num_steps}; accepted: "
            "equal numbers"
        )
