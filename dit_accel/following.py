"""Carries out a plan at the denoiser's output: computes and keeps a prediction, or forecasts it.

At the output every family is alike: one tensor a branch and step, whatever lies inside. A
prediction is kept for as long as the plan still reads it. Where a forecast cannot be made (what it
reads is not kept), the step is computed, and counted as such.
Holds no formula: planner.py decides, forecast.py combines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dit_accel import forecast
from dit_accel.outcome import SiteReport
from dit_accel.planner import Plan
from dit_accel.session import Session

SITE = "output"


class Follower:
    """Answers the forwards of a session by a plan; an observer of it."""

    def __init__(self, session: Session, plan: Plan) -> None:
        self.session, self.plan = session, plan
        self.kept: dict[tuple[str, str], dict[int, torch.Tensor]] = {}
        self.done: dict[tuple[str, str], dict[int, bool]] = {}  # was it computed, by step
        self.kept_bytes = self.device_reads = 0
        self._form: Callable[[torch.Tensor], Any] = _as_tuple

    def answer(self, forward: Callable[[], Any]) -> Any:
        """The forward's output: computed, or forecast in the form that it had before."""
        session = self.session
        kept = self.kept.setdefault((session.role, session.branch), {})
        weights = self.plan.forecasts.get(session.step)
        served = weights is not None and all(step in kept for step in weights)
        done = self.done.setdefault((session.transformer, session.branch), {})
        done[session.step] = not served
        if weights is not None and served:
            values = [kept[step] for step in weights]
            return self._form(forecast.combine(list(weights.values()), values))
        output = forward()
        self._form = _form_of(output)
        value = output[0]
        if any(old.shape != value.shape or old.device != value.device for old in kept.values()):
            kept.clear()
        kept[session.step] = value
        return output

    # --- observer of the session ---

    def run_begins(self, total: int | None) -> None:
        """Forget the last run.

        Raises:
            ValueError: the plan is for another number of steps.
        """
        if total != self.plan.total:
            raise ValueError(f"the plan is for {self.plan.total} steps; this run has {total}")
        self.kept.clear()
        self.done.clear()
        self.kept_bytes = 0

    def step_begins(self, step: int) -> None:
        """Free what no step from here on reads."""
        held = (value for kept in self.kept.values() for value in kept.values())
        self.kept_bytes = max(self.kept_bytes, sum(value.nbytes for value in held))
        read = set(self.plan.reads(step - 1))
        for kept in self.kept.values():
            for old in [old for old in kept if old not in read]:
                del kept[old]

    def forward_ends(self, transformer: str) -> None:
        """Nothing to do."""

    def settle(self) -> None:
        """Nothing is measured on the way yet."""

    # --- for the report ---

    def site_reports(self) -> tuple[SiteReport, ...]:
        """What was done in every branch of the last run."""
        return tuple(
            SiteReport(
                transformer, branch, SITE,
                tuple(step for step, computed in done.items() if computed), (), {},
                tuple(step for step, computed in done.items() if not computed),
            )
            for (transformer, branch), done in self.done.items()
        )  # fmt: skip

    def clear(self) -> None:
        """Free what is kept."""
        self.kept.clear()


def _form_of(output: Any) -> Callable[[torch.Tensor], Any]:
    """How a prediction is handed back: as the tuple or the output class that it came in."""
    return _as_tuple if isinstance(output, tuple) else type(output)


def _as_tuple(value: torch.Tensor) -> tuple[torch.Tensor]:
    return (value,)
