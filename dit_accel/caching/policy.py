"""What decides, step by step, and is told what was found: the simplest courses, a plan and no plan.

A `Policy` is asked once a step what serves it, and learns on the way what `caching/monitor.py`
measures;
`caching/executor.py` carries it out. Further ones: `caching/guard.py`, `caching/controller.py`.
Knows steps and numbers.
"""

from __future__ import annotations

from typing import Protocol

from dit_accel.planning.plan import Extrapolation, Plan


class Policy(Protocol):
    """What decides, step by step."""

    @property
    def branch_weights(self) -> tuple[float, ...]:
        """Weight of every part in the guided prediction."""

    @property
    def needs_error(self) -> bool:
        """Whether it wants to learn what is measured."""

    @property
    def checks_finite(self) -> bool:
        """Whether kept values are looked at before they are served; with neither this nor
        `measures` the device is never read while a run is under way."""

    def begin(self, total: int | None) -> None:
        """A run begins.

        Raises:
            ValueError: this course is not for a run of so many steps.
        """

    def extrapolation_at(self, step: int) -> Extrapolation | None:
        """What serves a step; None: it is computed."""

    def observe(
        self, step: int, extrapolation_error: float | None, lean: float | None = None
    ) -> None:
        """The computed step was so far from its line (relative; None: there was none); not finite
        where a prediction was not. `lean`: how much of the line's rise was right, 1 all, 0 none."""

    def on_lost_value(self, step: int, why: str) -> None:
        """After this step a kept value was lost: the next step is computed to put it back."""

    def on_suspicious(self, step: int, why: str) -> None:
        """After this step something was found that may not be right: the next one will tell."""

    def on_invalid(self, step: int, why: str) -> None:
        """After this step something was found that cannot be right."""

    def needed_steps(self, step: int) -> tuple[int, ...]:
        """Computed steps up to this one that a later step may read."""

    def notes(self) -> tuple[str, ...]:
        """What of the last run a reader of the report must know."""


class PlanPolicy:
    """Follows a plan, and measures nothing on the way."""

    needs_error = checks_finite = False

    def __init__(self, plan: Plan, mix: tuple[float, ...] = (1.0,)) -> None:
        self.plan, self.branch_weights = plan, mix

    def begin(self, total: int | None) -> None:
        """Refuses another number of steps."""
        if total != self.plan.num_steps:
            raise ValueError(f"the plan is for {self.plan.num_steps} steps; this run has {total}")

    def extrapolation_at(self, step: int) -> Extrapolation | None:
        """As planned."""
        return self.plan.extrapolations.get(step)

    def observe(
        self, step: int, extrapolation_error: float | None, lean: float | None = None
    ) -> None:
        """Changes nothing."""

    def on_lost_value(self, step: int, why: str) -> None:
        """Changes nothing."""

    def on_suspicious(self, step: int, why: str) -> None:
        """Changes nothing."""

    def on_invalid(self, step: int, why: str) -> None:
        """Changes nothing."""

    def needed_steps(self, step: int) -> tuple[int, ...]:
        """As planned."""
        return self.plan.needed_steps(step)

    def notes(self) -> tuple[str, ...]:
        """None."""
        return ()


class ComputeAll(PlanPolicy):
    """Computes every step, for whatever number of them, and keeps nothing."""

    def __init__(self) -> None:
        super().__init__(Plan(1, {}))

    def begin(self, total: int | None) -> None:
        """Takes any."""
        self.plan = Plan(total or 1, {})
