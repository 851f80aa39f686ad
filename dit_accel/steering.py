"""Steers a run by a plan, by what is measured on the way, and by a guard.

Three things may happen between a plan's steps:

- *Turning careful*: up to a certain computed step the plan's beginning is shared with a plan that
  computes more afterwards. If this prompt has surprised more than the profile's prompts did, the
  run goes on with that one. (Surprise: how far the line through the last two computed predictions
  misses a fresh one, relative, after guidance; a free measurement at every computed step.)
- *The guard*: a surprise far outside the profile's band, a value that is not finite, latents that
  jump, a text that changes. From there on the plan's promises are void, and the run goes on by
  error-aware windows (`windows`), which shrink at a spike and grow in calm, served by lines.
- Nothing, mostly.

Knows steps and numbers; no tensors, no models.
Source: the windows are EDCW's (UniCP, arXiv 2502.04393), our reading; the rest is ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dit_accel import forecast
from dit_accel.plans import Forecast, Plan
from dit_accel.windows import EDCW, Windows

BAND = 6.0  # standard deviations of the logarithm of a surprise that are still inside the band
LEAST = math.log(40.0)  # and so is anything below this ratio to what is expected: of 64 prompts
# of the miniature the least calm one surprised 30 times as much as the median (docs/planning.md)
HARMLESS = 0.5  # and any surprise below this, of the prediction's own size: prompts differ much
WARM = 2  # steps that the guard has computed before the first window may open


@dataclass(frozen=True)
class Band:
    """What is expected at a computed step: mean and standard deviation of the log surprise."""

    mean: float
    spread: float

    def score(self, surprise: float) -> float:
        """Standard deviations above the mean; infinite for what is not finite."""
        if not math.isfinite(surprise):
            return math.inf
        return (math.log(max(surprise, 1e-9)) - self.mean) / self.spread

    def holds(self, surprise: float) -> bool:
        """Whether the surprise is inside."""
        score = self.score(surprise)
        return score <= BAND or score * self.spread <= LEAST or surprise <= HARMLESS


@dataclass
class Steering:
    """A course (`following.Course`) over one run after another.

    Args:
        plan: what the run begins with.
        times: the scheduler's timesteps, one a step.
        mix: weight of every part in the guided prediction.
        bands: by computed step of `plan`; empty where nothing was measured.
        careful: the plan to turn to, which computes the same steps up to `turn`.
        turn: the computed step after which it is decided.
        alarm: mean score of the surprises up to there above which the run turns.
        guard: whether the guard may override the plan. With neither it nor a careful plan the
            course is static: nothing is measured.
    """

    plan: Plan
    times: Sequence[float]
    mix: tuple[float, ...] = (1.0,)
    bands: Mapping[int, Band] = field(default_factory=dict)
    careful: Plan | None = None
    turn: int = -1
    alarm: float = math.inf
    guard: bool = True

    def __post_init__(self) -> None:
        self.begin(self.plan.total)

    def begin(self, total: int | None) -> None:
        """A run begins; nothing of the last one is left.

        Raises:
            ValueError: it has another number of steps than the plan.
        """
        if total != self.plan.total:
            raise ValueError(f"the plan is for {self.plan.total} steps; this run has {total}")
        self.active, self.turned = self.plan, False
        self.scores: list[float] = []
        self.surprises: dict[int, float] = {}
        self.computed: list[int] = []
        self.tripped: tuple[int, str] | None = None
        self._windows: Windows | None = None

    @property
    def measures(self) -> bool:
        """Whether anything measured could change the course."""
        return self.guard or self.careful is not None

    @property
    def score(self) -> float:
        """Mean score of the surprises so far, up to the turn."""
        return sum(self.scores) / len(self.scores) if self.scores else 0.0

    def forecast_of(self, step: int) -> Forecast | None:
        """What serves a step; None: it is computed."""
        if self._windows is not None:
            ready = len(self.computed) >= 2 and step >= self._warm_until
            if ready and not self._windows.computes(step):
                return self._line(step)
            return None
        return self.active.forecasts.get(step)

    def learn(self, step: int, surprise: float | None) -> None:
        """A step was computed, and surprised so much; None where no line was there yet."""
        self.computed.append(step)
        if surprise is not None:
            self.surprises[step] = surprise
        if self._windows is not None:
            self._windows.observe(step, surprise)
            return
        band = self.bands.get(step)
        if surprise is not None and not math.isfinite(surprise):
            self.trip(step, "a value was not finite")
        elif surprise is not None and band is not None:
            if not band.holds(surprise):
                ratio = math.exp(band.score(surprise) * band.spread)
                self.trip(step, f"the surprise was {ratio:.1f} times the expected")
            elif step <= self.turn:
                self.scores.append(band.score(surprise))
        if step == self.turn and self.careful is not None and self.score > self.alarm:
            self.active, self.turned = self.careful, True

    def trip(self, step: int, why: str) -> None:
        """The guard takes over after this step, if it may."""
        if not self.guard or self._windows is not None:
            return
        self.tripped = (step, why)
        known = [band.mean for band in self.bands.values()]
        threshold = math.exp(sum(known) / len(known)) if known else 0.05
        config = EDCW(threshold=threshold, first=1, last=1, max_window=4, growth="step")
        self._windows = Windows(config, self.plan.total)
        self._warm_until = step + 1 + WARM
        self.computed = self.computed[-1:]  # what came before the fault says nothing of after it

    def reads(self, step: int) -> tuple[int, ...]:
        """Computed steps up to this one that a later step may read."""
        if self._windows is not None:
            return tuple(self.computed[-2:])
        later = self.active.reads(step)
        if self.careful is not None and step <= self.turn:
            later = tuple(sorted({*later, *self.careful.reads(step)}))
        return later

    def notes(self) -> tuple[str, ...]:
        """What of it a reader of the report must know."""
        found = []
        if self.turned:
            found.append(
                f"Turned careful after step {self.turn}: surprises were {self.score:.1f} standard "
                "deviations above the profile's."
            )
        if self.tripped is not None:
            step, why = self.tripped
            found.append(f"Guard after step {step}: {why}; went on by error-aware windows.")
        return tuple(found)

    def _line(self, step: int) -> Forecast:
        before = self.computed[-2:][::-1]
        weights = forecast.weights([self.times[s] for s in before], self.times[step])
        return Forecast(tuple(dict(zip(before, weights, strict=True)) for _ in self.mix))
