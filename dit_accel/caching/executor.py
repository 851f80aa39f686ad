"""Carries out forecasts at the denoiser's output: computes and keeps a prediction, or serves one.

At the output every family is alike: one tensor a branch and step, whatever lies inside. Which steps
are served, and by what, is asked of a `Policy`, once a step; a plan is the simplest one. A
prediction is kept for as long as the course may still read it. Where a forecast cannot be made
(what it reads is not kept, or has another shape), the step is computed, and counted as such.

Where a forecast has two parts, the second branch of classifier-free guidance is kept and served as
its difference from the first, which the pipeline asks for before it.

What `caching/monitor.py` measures on the way is told to the course when the next step begins, and
what
cannot be right (latents that jump, another text) at once.

A kept value that is not finite is never served: the step is computed, and the value is put back, so
that the plan can go on. Where nothing is measured the values are looked at before they are served,
at the same price; where the device may not be read at all, what was served is added up there and
looked at when the run is over, and the report tells.

Holds no formula: planning/plan.py and the course decide, core/extrapolation.py combines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from dit_accel.caching.monitor import LostValues, Monitor
from dit_accel.caching.policy import Policy
from dit_accel.caching.store import BranchStore, TensorStore
from dit_accel.core import extrapolation
from dit_accel.core.report import OUTPUT_SITE, SiteReport
from dit_accel.core.session import Session
from dit_accel.planning.plan import Extrapolation


class PlanExecutor:
    """Answers the forwards of a session by a course; an observer of it."""

    def __init__(self, session: Session, policy: Policy) -> None:
        self.session, self.policy = session, policy
        self.watch, self.losses = Monitor(session), LostValues(session)
        self.kept = TensorStore()  # parts, by step
        self.start = self.kept.noise  # that a role started from
        self.done: dict[tuple[str, str], dict[int, bool]] = {}  # was it computed, by step
        self._unmade: set[int] = set()  # steps whose forecasts could not be made
        self.host_syncs = 0
        self.min_bits: Callable[[], int] = lambda: self.kept.fewest  # of a kept value
        self.heard: Callable[[int, torch.Tensor], None] = lambda part, value: None
        self.heard_start: Callable[[torch.Tensor], None] = lambda latents: None
        self.heard_text: Callable[[Any], None] = lambda text: None
        self.heard_latents: Callable[[torch.Tensor], None] = lambda latents: None
        self._form: Callable[[torch.Tensor], Any] = _as_tuple
        self._forget()

    def _forget(self) -> None:
        self.kept.clear()
        self._now: dict[str, torch.Tensor] = {}  # this step's first part, by role
        self._served_sum: torch.Tensor | None = None  # of all that was served, where none is read
        self._served: Extrapolation | None = None
        self.watch.forget()
        self.losses.forget()

    def answer(self, forward: Callable[[], Any]) -> Any:
        """The forward's output: computed, or forecast in the form that it had before."""
        session = self.session
        first = session.role not in self._now
        part = 0 if first or len(self.policy.branch_weights) == 1 else 1
        if not first and self.policy.needs_error and self.watch.text_changed(session.branch):
            self.policy.on_invalid(session.step - 1, "the text changed")
            self._served = self.policy.extrapolation_at(session.step)
        kept = self.kept.shelf(session.role, session.branch)
        value = self._serve(part, kept) if self._served is not None else None
        done = self.done.setdefault((session.transformer, session.branch), {})
        done[session.step] = value is None
        if value is None and self._served is not None:
            self._unmade.add(session.step)
        if value is None:
            output = forward()
            self._form = _form_of(output)
            value = output[0]
            self._keep(part, kept, value, first=first)
        else:
            output = self._form(value)
            if not (self.policy.needs_error or self.policy.checks_finite):
                whole = value.sum(dtype=torch.float32)
                self._served_sum = whole if self._served_sum is None else self._served_sum + whole
        if first:
            self._now[session.role] = value
        return output

    def _serve(self, part: int, kept: BranchStore) -> torch.Tensor | None:
        """The forecast of one branch; None where what it reads is not there."""
        served = self._served
        assert served is not None
        weights = served.weights[min(part, len(served.weights) - 1)]
        start = self.start.get(self.session.role)
        adds = part == 0 and (
            isinstance(served.noise_weight, torch.Tensor) or served.noise_weight != 0.0
        )
        if not all(step in kept for step in weights) or (adds and start is None):
            return None
        values = [kept[step] for step in weights]
        factors = list(weights.values())
        if adds and start is not None:
            values, factors = [*values, start], [*factors, served.noise_weight]
        if part == 1:
            values, factors = [self._now[self.session.role], *values], [1.0, *factors]
        return extrapolation.weighted_sum(
            [_over_rows(factor, values[0]) for factor in factors], values
        )

    def _keep(self, part: int, kept: BranchStore, value: torch.Tensor, *, first: bool) -> None:
        """Keep a fresh prediction, and have it compared with the line of those before."""
        session = self.session
        fresh = value - self._now[session.role] if part == 1 else value
        if not kept.holds_only(fresh.shape):
            kept.clear()
        if first and session.step == 0 and _alike(session.latents, value):
            self.start[session.role] = session.latents.clone()
            self.heard_start(session.latents)
        self.heard(part, fresh)
        before = sorted((step for step in kept if step < session.step), reverse=True)[:2]
        kept[session.step] = fresh
        self.losses.put_back(kept)
        if not self.policy.needs_error or (part == 0 and not first):
            return  # one part for several branches: the first speaks for all
        known = before if len(before) == 2 else []
        line = [(s, kept[s]) for s in known]
        self.watch.compare(part, self.policy.branch_weights[part], fresh, line)

    # --- observer of the session ---

    def run_begins(self, total: int | None) -> None:
        """Forget the last run.

        Raises:
            ValueError: the course is for another number of steps.
        """
        self._forget()
        self.heard_text(self.session.text)
        self.heard_latents(self.session.latents)
        self.policy.begin(total)
        self.done.clear()
        self._unmade.clear()
        self.host_syncs = 0
        self.kept.begin(self.min_bits())

    def step_begins(self, step: int) -> None:
        """Read what was measured, ask the course, and free what is not read again."""
        policy = self.policy
        if policy.needs_error:
            if self.watch.text_changed(""):
                policy.on_invalid(step - 1, "the text changed")
            if self._now:
                self._measure(step)
            self.watch.see()
        self._now = {}
        self.watch.next_step()
        planned = policy.extrapolation_at(step)
        self._served = None if self.session.changes(step) else planned
        if self._served is not None and policy.checks_finite and not policy.needs_error:
            self._lose(step - 1, torch.stack(self.kept.sums()).tolist())
            self.host_syncs += 1
        if self.losses:
            self._served = None
        read = {*policy.needed_steps(step - 1)}
        for kept in self.kept.values():
            recent = sorted(kept)[-2:] if self.policy.needs_error else []  # for the next surprise
            for old in [old for old in kept if old not in read and old not in recent]:
                del kept[old]

    def forward_ends(self, transformer: str) -> None:
        """Nothing to do."""

    def _measure(self, step: int) -> None:
        """Tell the course of the step before this one: one read of the device for all there is."""
        policy, before = self.policy, step - 1
        found = self.watch.read(step, self.kept.sums())
        self.host_syncs += 1
        self._lose(before, found.sums)
        if found.computed:
            policy.observe(before, found.extrapolation_error, found.lean)
        if found.jumped:
            policy.on_suspicious(before, "the latents jumped")

    def _lose(self, before: int, sums: Sequence[float]) -> None:
        """Drop what is not finite, and tell the course."""
        places = self.kept.places()
        lost = self.losses.drop(self.kept, places, sums[: len(places)])
        if not all(map(math.isfinite, sums[len(places) :])):
            self.start.clear()
            self.policy.on_invalid(before, "the noise that was kept was not finite")
        elif lost:
            self.policy.on_lost_value(before, "a kept value was not finite")

    def settle(self) -> None:
        """Nothing is left to read: the last step's surprise steers nothing."""

    # --- for the report ---

    def site_reports(self) -> tuple[SiteReport, ...]:
        """What was done in every branch of the last run."""
        return tuple(
            SiteReport(
                transformer, branch, OUTPUT_SITE,
                tuple(step for step, computed in done.items() if computed), (), {},
                tuple(step for step, computed in done.items() if not computed),
            )
            for (transformer, branch), done in self.done.items()
        )  # fmt: skip

    def notes(self) -> tuple[str, ...]:
        """The course's, and which forecasts could not be made."""
        found = [*self.policy.notes()]
        if self._unmade:
            steps = ", ".join(map(str, sorted(self._unmade)))
            found.append(
                f"Computed although planned to be served, as what is read was not there: {steps}."
            )
        if self._served_sum is not None and not math.isfinite(float(self._served_sum)):
            found.append(
                "A served value was not finite, and the clip is spoilt: the device is not read on "
                "the way here, so that it could not be told in time."
            )
        return (*found, *self.kept.notes())

    @property
    def kept_bytes(self) -> int:
        """The most that kept values held on the device."""
        return self.kept.most_held

    def clear(self) -> None:
        """Free what is kept."""
        self._forget()


def _alike(latents: Any, value: torch.Tensor) -> bool:
    """Whether what the denoiser was given lies in the space of what it predicts."""
    return isinstance(latents, torch.Tensor) and latents.shape == value.shape


def _over_rows(factor: float | torch.Tensor, like: torch.Tensor) -> float | torch.Tensor:
    """Weights by row, `(P,)`, as they are broadcast over P rows, or over P in each branch."""
    if not isinstance(factor, torch.Tensor):
        return factor
    rows = factor.to(like.device, torch.promote_types(like.dtype, torch.float32))
    return rows.repeat(len(like) // len(rows)).view(-1, *[1] * (like.ndim - 1))


def _form_of(output: Any) -> Callable[[torch.Tensor], Any]:
    """How a prediction is handed back: as the tuple or the output class that it came in."""
    return _as_tuple if isinstance(output, tuple) else type(output)


def _as_tuple(value: torch.Tensor) -> tuple[torch.Tensor]:
    return (value,)
