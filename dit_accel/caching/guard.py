"""Follows a plan, and abandons it if a measurement during the run contradicts it.

Goes in: a plan with the bands of its extrapolation errors, and the error of each computed step. The
error is the relative distance from the fresh prediction to the line through the last two computed
predictions. Comes out: `GuardedPolicy`.

After a plan is abandoned, and in place of a plan of another model, short windows decide. If the
number of computed steps is bounded, the plan's own steps are computed instead. All other steps are
extrapolated along a *damped* line: the last value plus a share of the line's rise. The share (the
*damping*) is the one that was right when the line was last compared with a fresh value.

While nothing is suspicious, a step is observed only after the next computed one, so that the device
never waits for the host. From the first event on, each step is observed before the next one begins.
docs/how-it-works.md, section 6, lists the events and what the guard does. The module knows steps
and numbers, no tensors and no models. Ours; there is no source.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from dit_accel.caching.policy import Policy, check_steps
from dit_accel.core.extrapolation import lagrange_weights, remainder_factor
from dit_accel.core.interceptor import RunInfo
from dit_accel.core.quantization import BITS
from dit_accel.planning.choice import TOLERATED_ERROR, ErrorBand, PlanChoice, QualityEstimate
from dit_accel.planning.plan import Extrapolation, Plan, SecondExpert

# After a suspicious event a step is computed. The plan goes on if the error of that step is at most
# this many standard deviations above the expected one.
TOLERATED_AFTER_EVENT = 2.0
TOLERATED_WITHOUT_BANDS = 1.5  # the same without bands: times the largest other error of the run
FALLBACK_WARMUP = 1  # steps computed after a plan is abandoned, before the first window
FALLBACK_WINDOW = 2  # then: the distance from one computed step to the next one
# A line may be used if its expected relative error, at a step of mean length, is at most this value
# divided by the number of steps. The bound is smaller in longer runs, because the error of taking
# fewer steps is smaller there too.
MAX_EXPECTED_ERROR = 2.0
# In runs with at least this number of steps, the bound above also limits the windows after an
# abandoned plan. In a shorter run the error already made is larger than the error of taking fewer
# steps, and computing more steps does not repair it (research/LOG.md).
LONG_RUN_STEPS = 30
Event = tuple[int, str]  # the step after which something was found, and what was found


@dataclass
class GuardedPolicy(Policy):
    """A plan with its guard.

    Args:
        plan: the plan that the run follows until the guard abandons it.
        timesteps: the scheduler's timesteps, one per step.
        branch_weights, checks_finite, min_bits, second: see `Policy`.
        bands: the expected errors by computed step of `plan`; empty if none were measured.
        guard: whether the guard may abandon the plan. False: no errors are measured. A plan that
            computes every step has no guard.
        trusted: whether the plan was made for this model.
        max_added: how many steps may be computed in addition to the plan's; None: any number. Steps
            that are computed to restore a lost value are not counted.
        estimate: the expected PSNR of the plan.
        remarks: notes for the report, before those of the guard.
    """

    plan: Plan
    timesteps: Sequence[float]
    branch_weights: tuple[float, ...] = (1.0,)
    bands: Mapping[int, ErrorBand] = field(default_factory=dict)
    guard: bool = True
    trusted: bool = True
    checks_finite: bool = True
    min_bits: int = BITS[0]
    max_added: int | None = None
    estimate: QualityEstimate | None = None
    remarks: tuple[str, ...] = ()
    second: SecondExpert | None = None

    def __post_init__(self) -> None:
        self.guard = self.guard and bool(self.plan.extrapolations)
        self.needs_error, self.planned = self.guard, self.plan.computed
        self._dense = FALLBACK_WINDOW * len(self.planned) > self.plan.num_steps
        self.start(RunInfo(self.plan.num_steps))

    @classmethod
    def of(
        cls, choice: PlanChoice, *, guard: bool = True, trusted: bool = True, static: bool = False,
        max_added: int | None = None, remarks: tuple[str, ...] = (),
    ) -> GuardedPolicy:  # fmt: skip
        """The policy of a chosen plan. `static` means no guard and no host sync."""
        return cls(
            choice.plan, choice.timesteps, choice.branch_weights, choice.bands,
            guard and not static, trusted, not static, choice.min_bits, max_added,
            choice.prediction, (*remarks, *choice.notes), choice.second,
        )  # fmt: skip

    def start(self, run: RunInfo) -> Policy:
        check_steps(self.plan, run)
        self.extrapolation_errors: dict[int, float] = {}
        self.computed: list[int] = []
        self.abandoned: Event | None = None
        self.restored: Event | None = None
        self._endured: Event | None = None  # an event for which no step could be computed any more
        self.damping = 0.0
        self._suspicion: Event | None = None
        self._judge: int | None = None  # the computed step whose error decides on the suspicion
        self._is_over = False  # no step follows
        self._abandoned_at: int | None = None  # only values of later steps are used
        self._done: set[int] = set()  # computed steps
        # With `max_added`: the steps that are still computed after the plan is abandoned.
        self._rest = frozenset(self.planned)
        steps = range(self.plan.num_steps)
        self._needed = {step: self.plan.needed_steps(step) for step in (-1, *steps)}
        return self

    @property
    def ignores_plan(self) -> bool:
        """Whether the plan's extrapolations are never used, because it was made for another
        model."""
        return self.guard and not self.trusted

    def prediction(self) -> dict[str, Any] | None:
        """The expected PSNR, with None for an infinite number; None if the plan is not used."""
        if self.estimate is None or self.abandoned is not None or self.ignores_plan:
            return None
        found: dict[str, Any] = dataclasses.asdict(self.estimate)
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v
                for k, v in found.items()}  # fmt: skip

    def extrapolation_at(self, step: int) -> Extrapolation | None:
        if step == self._judge:
            return None
        if self._abandoned_at is None and not self.ignores_plan:
            return self.plan.extrapolations.get(step)
        if self.max_added is not None:
            computed = step in self._rest
        elif self._abandoned_at is not None:
            computed = self._fallback_computes(step, self._abandoned_at)
        else:
            computed = self._is_risky(step)
        return None if computed else self._damped_extrapolation(step)

    def _fallback_computes(self, step: int, abandoned_at: int) -> bool:
        last = self.computed[-1] if self.computed else -1
        return (
            not self._computed_since(step)
            or step <= abandoned_at + FALLBACK_WARMUP
            or step - last >= FALLBACK_WINDOW
            or step == self.plan.num_steps - 1
            or (self._dense and step in self.planned)
            or (self.plan.num_steps >= LONG_RUN_STEPS and self._is_risky(step))
        )

    @property
    def observes_late(self) -> bool:
        follows = self.guard and self._abandoned_at is None and not self.ignores_plan
        return follows and self._judge is None

    def on_computed(self, step: int) -> None:
        if step not in self._done and (self._abandoned_at is None or step > self._abandoned_at):
            self.computed.append(step)
        self._done.add(step)

    def observe(self, step: int, error: float | None, trust: float | None = None) -> None:
        self.on_computed(step)
        is_judge, self._judge = step == self._judge, None if step == self._judge else self._judge
        if self._abandoned_at is not None and step <= self._abandoned_at:
            return  # the value was computed before the change that ended the plan
        known = trust is not None and not math.isnan(trust)
        self.damping = min(max(trust or 0.0, 0.0), 1.0) if known else 0.0
        if error is None:
            return
        self.extrapolation_errors[step] = error
        if self.guard and self._abandoned_at is None:
            self._check(step, error, is_judge=is_judge)

    def _check(self, step: int, error: float, *, is_judge: bool) -> None:
        """Abandon the plan if an extrapolation error contradicts it."""
        if self.ignores_plan and not math.isnan(error):
            return  # the bands belong to a plan that is not used; a NaN is a fault in any case
        band = self.bands.get(step)
        if not math.isfinite(error):
            self.on_invalid(step, "a value was not finite")
        elif is_judge and self._suspicion is not None:
            if not self._is_normal(step, error):
                self._abandon_plan(self._suspicion, self._suspicion[0])
        elif band is not None and not band.contains(error):
            times = f"{band.ratio(error):.1f} times"
            event = step, f"the extrapolation error was {times} the expected one"
            self._abandon_plan(event, step - 1)  # this step's own value is from after the change

    def on_lost_value(self, step: int, reason: str) -> None:
        self.restored = self.restored or (step, reason)

    def on_suspicious(self, step: int, reason: str) -> None:
        free = self.guard and self._abandoned_at is None and self._suspicion is None
        later = [computed for computed in self.computed if computed > step]
        if self._is_over and not later:
            self._endured = self._endured or (step, reason)
        elif free and (later or step + 1 in self.planned or self._has_one_more(step)):
            self._suspicion, self._judge = (step, reason), min(later, default=step + 1)

    def on_invalid(self, step: int, reason: str) -> None:
        if self.guard and self._abandoned_at is None:
            self._abandon_plan((step, reason), step)

    def on_end(self, steps: int) -> None:
        self._is_over = True

    def needed_steps(self, step: int) -> tuple[int, ...]:
        if self._abandoned_at is not None or self.ignores_plan:
            return tuple(self.computed[-2:])
        return self._needed[step]

    def notes(self) -> tuple[str, ...]:
        found = [*self.remarks]
        if self.ignores_plan and self.max_added is None:
            found.append(
                "Guard: the profile is of another model, so its plan was not used. Steps were "
                "extrapolated where the expected error was small."
            )
        elif self.ignores_plan:
            found.append(
                "Guard: the profile is of another model. The steps of its plan were computed, and "
                "the others were extrapolated along damped lines."
            )
        tolerated = None if self.abandoned else self._suspicion
        instead = "short windows" if self.max_added is None else "damped lines"
        events = {
            f"the plan was replaced by {instead}": self.abandoned,
            "no step was left to compute, so the plan continued": self._endured,
            "one more step was computed, and the plan continued": tolerated,
            "the value was restored from its neighbours": self.restored,
        }
        found += [f"Guard after step {e[0]}: {e[1]}; {what}." for what, e in events.items() if e]
        return tuple(found)

    def added_steps(self, computed: Set[int]) -> tuple[int, ...]:
        free = self.ignores_plan and self.max_added is None
        return () if free else super().added_steps(computed)

    def omitted_steps(self) -> tuple[int, ...]:
        return tuple(step for step in self.planned if step not in self._rest | self._done)

    def reasons(self) -> tuple[str, ...]:
        tolerated = None if self.abandoned else self._suspicion
        events = dict.fromkeys(e for e in (self.abandoned, tolerated, self.restored) if e)
        return tuple(f"{what} after step {step}" for step, what in events)

    def _abandon_plan(self, event: Event, step: int) -> None:
        """Abandon the plan. Values of `step` and of earlier steps are not used any more."""
        self._done |= {step} & {*self.planned}  # it may not be observed yet
        later = [s for s in self.computed if s > step]
        # At least the next step has to be computed: only its value is valid after the change. If a
        # second expert follows, its first step has to be computed too.
        needed = 1 + (self.since(self.plan.num_steps - 1) > step)
        if self._is_over or (not later and self.max_added is not None and self._left < needed):
            self._endured = event
            return
        self.abandoned, self._abandoned_at = event, step
        self.computed, self.damping = later, 0.0
        self._rest = self._rest_of_plan(max([step, *self.computed]))

    def _rest_of_plan(self, step: int) -> frozenset[int]:
        """The steps to compute after `step`, if their number is bounded: the next step, whose value
        is valid after the change, and the last ones of the plan."""
        left, first = self._left, step + 1
        # The last ones come first, and before them the first step of an expert.
        later = sorted(
            (s for s in self.planned if s > first), key=lambda s: (s != self.since(s), -s)
        )
        fresh = {first} if left and first < self.plan.num_steps else set()
        return frozenset({*fresh, *later[: max(left - 1, 0)]})

    def _has_one_more(self, step: int) -> bool:
        """Whether a step may be computed in addition to those that the plan still computes."""
        return self.max_added is None or self._left > sum(later > step for later in self.planned)

    @property
    def _left(self) -> int:
        """How many steps may still be computed, if `max_added` bounds their number."""
        return max(len(self.planned) + (self.max_added or 0) - len(self._done), 0)

    def _is_normal(self, step: int, error: float) -> bool:
        """Whether an error is normal. The nearest band decides, because this step may have none.
        Without calibration there are no bands; then the other errors of this run decide."""
        if error <= TOLERATED_ERROR:
            return True
        near = min(self.bands, key=lambda other: abs(other - step), default=None)
        if near is not None:
            return self.bands[near].score(error) <= TOLERATED_AFTER_EVENT
        others = [other for at, other in self.extrapolation_errors.items() if at != step]
        return error <= TOLERATED_WITHOUT_BANDS * max(others, default=0.0)

    def _is_risky(self, step: int) -> bool:
        """Whether the expected error of the line is too large, or unknown."""
        return not self._expected_error(step) <= MAX_EXPECTED_ERROR / self.plan.num_steps

    def _expected_error(self, step: int) -> float:
        """The expected error of the line at a step; infinite if nothing is known.

        It is the error of the last line · (reach here / reach there) · (length of this step / mean
        length of a step). The reach is `remainder_factor`.
        """
        known = self._computed_since(step)
        if len(known) < 3 or known[-1] not in self.extrapolation_errors:
            return math.inf
        *before, last = (self.timesteps[s] for s in known[-3:])
        here, end = self.timesteps[step], [*self.timesteps, 0.0][step + 1]
        farther = remainder_factor((before[-1], last), here) / remainder_factor(before, last)
        length = (here - end) * self.plan.num_steps / self.timesteps[0]
        return self.extrapolation_errors[self.computed[-1]] * farther * length

    def _computed_since(self, step: int) -> list[int]:
        """The computed steps that have the same expert as this step."""
        return [s for s in self.computed if s >= self.since(step)]

    def _damped_extrapolation(self, step: int) -> Extrapolation:
        """The last computed value plus d times the line's rise: d line + (1 - d) last."""
        before = self._computed_since(step)[-2:][::-1]
        line = lagrange_weights([self.timesteps[s] for s in before], self.timesteps[step])
        last = (1.0 - self.damping, *[0.0] * (len(before) - 1))
        weights = [h + self.damping * part for h, part in zip(last, line, strict=True)]
        found = {s: w for s, w in zip(before, weights, strict=True) if w or s == before[0]}
        return Extrapolation(tuple(found for _ in self.branch_weights))
