"""Follows a plan, and abandons it where a measurement during the run contradicts it.

Goes in: a plan with the bands of its extrapolation errors, and the error of each computed step: how
far the line through the last two computed predictions is from the fresh one. Comes out:
`GuardedPolicy`. Windows are short after a plan was abandoned, and in place of a plan of another
model; where the number of steps is bounded, the plan's own steps are computed instead. All other
steps are extrapolated along a *damped* line: the last value plus a share of the line's rise. The
share (the *damping*) is the one that was right when the line was last compared.
While nothing is odd, a step is observed after the next computed one: so the device never waits for
the host. From the first event on, every step is observed before the next one. docs/how-it-works.md,
section 6, lists what happens when. It knows steps and numbers, no tensors and
no models. Ours; there is no source.
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
from dit_accel.planning.plan import Extrapolation, Plan, SecondExpert
from dit_accel.planning.prediction import TOLERATED_ERROR, ErrorBand, PlanChoice, QualityEstimate

# Deviations that the error may have at a step that is computed because something was suspicious.
TOLERATED_AFTER_EVENT = 2.0
TOLERATED_WITHOUT_BANDS = 1.5  # times the largest error of the run before
FALLBACK_WARMUP = 1  # steps that are computed after a plan is abandoned, before the first window
FALLBACK_WINDOW = 2  # steps from one computed step to the next one then
# Largest expected error of a line, relative to the prediction, at a step of mean length, times the
# number of steps: the error of a run with fewer steps falls with their number too.
MAX_EXPECTED_ERROR = 2.0
# From so many steps on, the expected error bounds the windows after an abandoned plan too. In a
# shorter run the error that is there already is larger than that of fewer steps, and computing more
# does not repair it (research/LOG.md).
LONG_RUN_STEPS = 30
Event = tuple[int, str]  # the step after which it was found, and what


@dataclass
class GuardedPolicy(Policy):
    """A plan with its guard.

    Args:
        plan: of the run, until the guard abandons it.
        timesteps: the scheduler's, one a step.
        branch_weights, checks_finite, min_bits, second: as of `Policy`.
        bands: the expected error at computed steps of `plan`; empty where none was measured.
        guard: whether the guard may abandon the plan; without it no error is measured. There is
            nothing to guard where the plan computes every step.
        trusted: whether the plan is of this model.
        max_added: steps that may be computed beyond the plan's number; None: as many as it takes.
            Steps that restore a value that was lost come on top.
        estimate: the PSNR that is expected of the plan.
        remarks: notes that stand before those of the guard.
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
        """The policy of a chosen plan; `static`: without guard and without any host sync."""
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
        self._endured: Event | None = None  # where no step was left for what it asks for
        self.damping = 0.0
        self._suspicion: Event | None = None
        self._judge: int | None = None  # the computed step whose error decides on it
        self._is_over = False  # no step follows
        self._abandoned_at: int | None = None  # only values of later steps are used
        self._done: set[int] = set()  # computed steps
        self._rest = frozenset(self.planned)  # to be computed after the plan, where that is bounded
        steps = range(self.plan.num_steps)
        self._needed = {step: self.plan.needed_steps(step) for step in (-1, *steps)}
        return self

    @property
    def ignores_plan(self) -> bool:
        """Whether no step of the plan is used, as it is of another model."""
        return self.guard and not self.trusted

    def prediction(self) -> dict[str, Any] | None:
        """None for a number that is infinite; None as a whole where the plan is not used."""
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
            return  # its value is of what was before
        known = trust is not None and not math.isnan(trust)
        self.damping = min(max(trust or 0.0, 0.0), 1.0) if known else 0.0
        if error is None:
            return
        self.extrapolation_errors[step] = error
        if self.guard and self._abandoned_at is None:
            self._check(step, error, is_judge=is_judge)

    def _check(self, step: int, error: float, *, is_judge: bool) -> None:
        """Abandon the plan where an extrapolation error contradicts it."""
        if self.ignores_plan and not math.isnan(error):
            return  # bands of a plan that is not used say nothing; a NaN says that something broke
        band = self.bands.get(step)
        if not math.isfinite(error):
            self.on_invalid(step, "a value was not finite")
        elif is_judge and self._suspicion is not None:
            if not self._is_usual(step, error):
                self._abandon_plan(self._suspicion, self._suspicion[0])
        elif band is not None and not band.contains(error):
            event = step, f"the extrapolation error was {band.ratio(error):.1f} times the expected"
            self._abandon_plan(event, step - 1)  # this step's own value is of what is new

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
                "Guard: no step of a plan of another model was used; steps were extrapolated where "
                "the expected error was small."
            )
        elif self.ignores_plan:
            found.append(
                "Guard: the steps of a plan of another model were computed; the others were "
                "extrapolated along damped lines."
            )
        tolerated = None if self.abandoned else self._suspicion
        instead = "short windows" if self.max_added is None else "damped lines"
        events = {
            f"left the plan for {instead}": self.abandoned,
            "no step was left to compute, and the plan went on": self._endured,
            "a step was computed, and the plan went on": tolerated,
            "it was restored from its neighbours": self.restored,
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
        """From here on no value of this step or an earlier one is used."""
        self._done |= {step} & {*self.planned}  # it may not be observed yet
        later = [s for s in self.computed if s > step]
        # the next step, for a value of what is new; and the first one of an expert that is to come
        needed = 1 + (self.since(self.plan.num_steps - 1) > step)
        if self._is_over or (not later and self.max_added is not None and self._left < needed):
            self._endured = event
            return
        self.abandoned, self._abandoned_at = event, step
        self.computed, self.damping = later, 0.0
        self._rest = self._rest_of_plan(max([step, *self.computed]))

    def _rest_of_plan(self, step: int) -> frozenset[int]:
        """What is computed after this step where the number of steps is bounded: the next one, for
        a value of what is new, and of the plan's own the last ones."""
        left, first = self._left, step + 1
        later = [s for s in self.planned if s > first][::-1]
        later.sort(
            key=lambda s: s != self.since(s)
        )  # the first step of an expert before all others
        fresh = {first} if left and first < self.plan.num_steps else set()
        return frozenset({*fresh, *later[: max(left - 1, 0)]})

    def _has_one_more(self, step: int) -> bool:
        """Whether a step may be computed that is not among those that the plan still computes."""
        return self.max_added is None or self._left > sum(later > step for later in self.planned)

    @property
    def _left(self) -> int:
        """How many steps may still be computed; only where that is bounded."""
        return max(len(self.planned) + (self.max_added or 0) - len(self._done), 0)

    def _is_usual(self, step: int, error: float) -> bool:
        """Whether an error is usual by the nearest band, at a step that may have none; without any
        band, as nothing was calibrated, by the other errors of this run."""
        near = min(self.bands, key=lambda other: abs(other - step), default=None)
        if error <= TOLERATED_ERROR:
            return True
        if near is not None:
            return self.bands[near].score(error) <= TOLERATED_AFTER_EVENT
        others = [other for at, other in self.extrapolation_errors.items() if at != step]
        return error <= TOLERATED_WITHOUT_BANDS * max(others, default=0.0)

    def _is_risky(self, step: int) -> bool:
        """Whether more error than allowed is expected of a line; also where nothing is known."""
        return not self._expected_error(step) <= MAX_EXPECTED_ERROR / self.plan.num_steps

    def _expected_error(self, step: int) -> float:
        """Of the line at a step: the last line's error · (reach here / reach there) · the step's
        length in mean steps; infinite where nothing is known."""
        known = self._computed_since(step)
        if len(known) < 3 or known[-1] not in self.extrapolation_errors:
            return math.inf
        *before, last = (self.timesteps[s] for s in known[-3:])
        here, end = self.timesteps[step], [*self.timesteps, 0.0][step + 1]
        farther = remainder_factor((before[-1], last), here) / remainder_factor(before, last)
        length = (here - end) * self.plan.num_steps / self.timesteps[0]
        return self.extrapolation_errors[self.computed[-1]] * farther * length

    def _computed_since(self, step: int) -> list[int]:
        """The computed steps of the expert that makes a step."""
        return [s for s in self.computed if s >= self.since(step)]

    def _damped_extrapolation(self, step: int) -> Extrapolation:
        """The last computed value plus the damped rise of the line: d line + (1 - d) last."""
        before = self._computed_since(step)[-2:][::-1]
        line = lagrange_weights([self.timesteps[s] for s in before], self.timesteps[step])
        last = (1.0 - self.damping, *[0.0] * (len(before) - 1))
        weights = [h + self.damping * part for h, part in zip(last, line, strict=True)]
        found = {s: w for s, w in zip(before, weights, strict=True) if w or s == before[0]}
        return Extrapolation(tuple(found for _ in self.branch_weights))
