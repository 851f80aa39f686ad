"""Steers a run by a plan, by what is measured on the way, and by a guard.

A computed step tells how far the line through the last two computed predictions misses the fresh
one, relative, after guidance: the *surprise*, a measurement that costs nothing. Between a plan's
steps this may happen:

- *Mending*: a kept value was lost. The next step is computed, so that it can be put back, and the
  plan goes on.
- *The guard*: a surprise far outside the profile's band, latents that jump, a text that changes.
  The next step is computed. A jump that surprises it no more than a plan may be surprised leaves
  the plan in place; else its promises are void, and the run goes on by windows that are served by
  as much of the line as was right when it was last compared with a fresh value (the *lean*): all
  of it in calm, nothing but the last value itself after a sharp turn; in a run of many steps only
  where that is expected to do little harm.
- *A plan of another model*, forced: the guard takes nothing of it. A step is served by a leaning
  line where that is expected to do little harm: what the line missed when it was last compared,
  grown by how much farther it reaches now, times the step's length, is below a bound that falls
  with the number of steps.
- Nothing, mostly.

Knows steps and numbers; no tensors, no models. Ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dit_accel.core import extrapolation
from dit_accel.planning.plan import Extrapolation, Plan
from dit_accel.planning.prediction import TOLERATED_ERROR, ErrorBand, PlanChoice

# of the miniature the least calm one surprised 30 times as much as the median (docs/planning.md)


TOLERATED_AFTER_EVENT = (
    2.0  # the same, of a step that is looked at because something happened before it
)
FALLBACK_WARMUP = 1  # steps that are computed when a plan is left, before the first window may open
FALLBACK_WINDOW = 2  # steps from one computed step to the next once it is left
# What a line without a profile may do at a step of mean length, of the prediction's size, times the
# number of steps: what fewer steps miss shrinks with their number too.
MAX_EXPECTED_ERROR = 2.0
# Steps of a run from which windows after a plan must do no harm. In a run of fewer, what the plan
# left is more than what fewer steps miss; more computed steps do not mend it (docs/planning.md).
LONG_RUN_STEPS = 30


@dataclass
class GuardedPolicy:
    """A course (`courses.Course`) over one run after another.

    Args:
        plan: of the run, until the guard leaves it.
        times: the scheduler's timesteps, one a step.
        mix: weight of every part in the guided prediction.
        bands: by computed step of `plan`; empty where nothing was measured.
        guard: whether the guard may override the plan. Without it the course is static: nothing is
            measured.
        trusted: whether the plan is of this model. Of another one the guard takes nothing, and
            serves steps by leaning lines where they do little harm, which needs no profile.
    """

    plan: Plan
    timesteps: Sequence[float]
    branch_weights: tuple[float, ...] = (1.0,)
    bands: Mapping[int, ErrorBand] = field(default_factory=dict)
    guard: bool = True
    trusted: bool = True

    def __post_init__(self) -> None:
        self.begin(self.plan.num_steps)

    @classmethod
    def of(cls, choice: PlanChoice, *, guard: bool = True) -> GuardedPolicy:
        """The policy of a run by a chosen plan."""
        return cls(choice.plan, choice.timesteps, choice.branch_weights, choice.bands, guard)

    def begin(self, total: int | None) -> None:
        """A run begins; nothing of the last one is left.

        Raises:
            ValueError: it has another number of steps than the plan.
        """
        if total != self.plan.num_steps:
            raise ValueError(f"the plan is for {self.plan.num_steps} steps; this run has {total}")
        self.extrapolation_errors: dict[int, float] = {}
        self.computed: list[int] = []
        self.tripped: tuple[int, str] | None = None
        self.mended: tuple[int, str] | None = None
        self.lean = 0.0
        self._doubt: tuple[int, str] | None = None
        self._left: int | None = None

    @property
    def needs_error(self) -> bool:
        """Whether anything measured could change the course."""
        return self.guard

    @property
    def checks_finite(self) -> bool:
        """Always: kept values are looked at before they are served."""
        return True

    @property
    def distrusts(self) -> bool:
        """Whether the plan is not used, as it is of another model."""
        return self.guard and not self.trusted

    def extrapolation_at(self, step: int) -> Extrapolation | None:
        """What serves a step; None: it is computed."""
        if self._doubt is not None and step == self._doubt[0] + 1:
            return None
        if self._left is not None:
            last = self.computed[-1] if self.computed else -1
            fresh = step <= self._left + FALLBACK_WARMUP or step - last >= FALLBACK_WINDOW
            fresh = fresh or (self.plan.num_steps >= LONG_RUN_STEPS and self._harmful(step))
            return None if fresh or step == self.plan.num_steps - 1 else self._leaning(step)
        if self.distrusts:
            return None if self._harmful(step) else self._leaning(step)
        return self.plan.extrapolations.get(step)

    def observe(
        self, step: int, extrapolation_error: float | None, lean: float | None = None
    ) -> None:
        """A step was computed, and surprised so much; None where no line was there yet."""
        self.computed.append(step)
        self.lean = min(max(lean, 0.0), 1.0) if lean is not None and lean == lean else 0.0
        if extrapolation_error is not None:
            self.extrapolation_errors[step] = extrapolation_error
        if (
            self._left is not None
            or extrapolation_error is None
            or (self.distrusts and extrapolation_error == extrapolation_error)
        ):
            return
        band = self.bands.get(step)
        if not math.isfinite(extrapolation_error):
            self.on_invalid(step, "a value was not finite")
        elif self._doubt is not None and step == self._doubt[0] + 1:
            if not self._usual(step, extrapolation_error):
                self._leave(self._doubt[0])
        elif band is not None and not band.holds(extrapolation_error):
            ratio = math.exp(band.score(extrapolation_error) * band.spread)
            self.on_invalid(step, f"the surprise was {ratio:.1f} times the expected", fresh=True)

    def on_lost_value(self, step: int, why: str) -> None:
        """A kept value was lost after this step; whoever keeps them computes the next one."""
        self.mended = self.mended or (step, why)

    def on_suspicious(self, step: int, why: str) -> None:
        """Something happened after this step that the next one, computed, must speak to."""
        if self.guard and self._left is None and self._doubt is None:
            self._doubt = (step, why)

    def on_invalid(self, step: int, why: str, *, fresh: bool = False) -> None:
        """The guard takes over after this step, if it may; `fresh`: its value is of what is new."""
        if self.guard and self._left is None:
            self.tripped = (step, why)
            self._leave(step - 1 if fresh else step)

    def _usual(self, step: int, extrapolation_error: float) -> bool:
        """Whether a step that no band is of surprised as the nearest that has one may."""
        near = min(self.bands, key=lambda other: abs(other - step), default=None)
        return extrapolation_error <= TOLERATED_ERROR or (
            near is not None
            and self.bands[near].score(extrapolation_error) <= TOLERATED_AFTER_EVENT
        )

    def _leave(self, step: int) -> None:
        """What came before this step says nothing of what comes after it."""
        if self.tripped is None:
            self.tripped = self._doubt
        self._left = step
        self.computed = [s for s in self.computed if s > step]
        self.lean = 0.0

    def needed_steps(self, step: int) -> tuple[int, ...]:
        """Computed steps up to this one that a later step may read."""
        if self._left is not None or self.distrusts:
            return tuple(self.computed[-2:])
        return self.plan.needed_steps(step)

    def notes(self) -> tuple[str, ...]:
        """What of it a reader of the report must know."""
        found = []
        if self.distrusts:
            found.append(
                "Guard: nothing was taken of a plan of another model; steps were served where "
                "lines could be expected to do little harm."
            )
        if self.tripped is not None:
            step, why = self.tripped
            found.append(f"Guard after step {step}: {why}; left the plan for short windows.")
        elif self._doubt is not None:
            step, why = self._doubt
            found.append(f"Guard after step {step}: {why}; a step was computed, and the plan held.")
        if self.mended is not None:
            step, why = self.mended
            found.append(f"Guard after step {step}: {why}; it was put back from its neighbours.")
        return tuple(found)

    def _harmful(self, step: int) -> bool:
        """Whether a line is expected to miss more than it may."""
        return not self._harm(step) <= MAX_EXPECTED_ERROR / self.plan.num_steps

    def _harm(self, step: int) -> float:
        """What a line is expected to miss at a step, times the step's length (1: the mean one)."""
        if len(self.computed) < 3 or self.computed[-1] not in self.extrapolation_errors:
            return math.inf
        *before, last = (self.timesteps[s] for s in self.computed[-3:])
        here, end = self.timesteps[step], [*self.timesteps, 0.0][step + 1]
        farther = extrapolation.remainder_factor(
            (before[-1], last), here
        ) / extrapolation.remainder_factor(before, last)
        length = (here - end) * self.plan.num_steps / self.timesteps[0]
        return self.extrapolation_errors[self.computed[-1]] * farther * length

    def _leaning(self, step: int) -> Extrapolation:
        """The last computed value, and as much of the line's rise from it as was right."""
        before = self.computed[-2:][::-1]
        line = extrapolation.lagrange_weights(
            [self.timesteps[s] for s in before], self.timesteps[step]
        )
        held = (1.0 - self.lean, *[0.0] * (len(before) - 1))
        weights = [h + self.lean * part for h, part in zip(held, line, strict=True)]
        found = {s: w for s, w in zip(before, weights, strict=True) if w or s == before[0]}
        return Extrapolation(tuple(found for _ in self.branch_weights))
