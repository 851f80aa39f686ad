"""What decides, step by step, and is told what was found: the simplest courses, a plan and no plan.

A `Course` is asked once a step what serves it, and learns on the way what `watching.py` measures;
`following.py` carries it out. Further ones: `steering.py`, `autopilot.py`. Knows steps and numbers.
"""

from __future__ import annotations

from typing import Protocol

from dit_accel.plans import Forecast, Plan


class Course(Protocol):
    """What decides, step by step."""

    @property
    def mix(self) -> tuple[float, ...]:
        """Weight of every part in the guided prediction."""

    @property
    def measures(self) -> bool:
        """Whether it wants to learn what is measured."""

    @property
    def watches(self) -> bool:
        """Whether kept values are looked at before they are served; with neither this nor
        `measures` the device is never read while a run is under way."""

    def begin(self, total: int | None) -> None:
        """A run begins.

        Raises:
            ValueError: this course is not for a run of so many steps.
        """

    def forecast_of(self, step: int) -> Forecast | None:
        """What serves a step; None: it is computed."""

    def learn(self, step: int, surprise: float | None, lean: float | None = None) -> None:
        """The computed step was so far from its line (relative; None: there was none); not finite
        where a prediction was not. `lean`: how much of the line's rise was right, 1 all, 0 none."""

    def mend(self, step: int, why: str) -> None:
        """After this step a kept value was lost: the next step is computed to put it back."""

    def doubt(self, step: int, why: str) -> None:
        """After this step something was found that may not be right: the next one will tell."""

    def trip(self, step: int, why: str) -> None:
        """After this step something was found that cannot be right."""

    def reads(self, step: int) -> tuple[int, ...]:
        """Computed steps up to this one that a later step may read."""

    def notes(self) -> tuple[str, ...]:
        """What of the last run a reader of the report must know."""


class PlanCourse:
    """Follows a plan, and measures nothing on the way."""

    measures = watches = False

    def __init__(self, plan: Plan, mix: tuple[float, ...] = (1.0,)) -> None:
        self.plan, self.mix = plan, mix

    def begin(self, total: int | None) -> None:
        """Refuses another number of steps."""
        if total != self.plan.total:
            raise ValueError(f"the plan is for {self.plan.total} steps; this run has {total}")

    def forecast_of(self, step: int) -> Forecast | None:
        """As planned."""
        return self.plan.forecasts.get(step)

    def learn(self, step: int, surprise: float | None, lean: float | None = None) -> None:
        """Changes nothing."""

    def mend(self, step: int, why: str) -> None:
        """Changes nothing."""

    def doubt(self, step: int, why: str) -> None:
        """Changes nothing."""

    def trip(self, step: int, why: str) -> None:
        """Changes nothing."""

    def reads(self, step: int) -> tuple[int, ...]:
        """As planned."""
        return self.plan.reads(step)

    def notes(self) -> tuple[str, ...]:
        """None."""
        return ()


class EveryStep(PlanCourse):
    """Computes every step, for whatever number of them, and keeps nothing."""

    def __init__(self) -> None:
        super().__init__(Plan(1, {}))

    def begin(self, total: int | None) -> None:
        """Takes any."""
        self.plan = Plan(total or 1, {})
