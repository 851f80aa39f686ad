"""What a plan promises: the PSNR of a clip, between which bounds, and for which share of the clips.

The profile has, for every plan of its ladder, what each calibration prompt got; a new prompt is
taken to be one more of them. Where they are many, their own distribution is believed, which has a
long tail downwards: the share of all clips that reach a quality is, with 90 % confidence, at least
what the share of those counted says (Clopper and Pearson 1934). Where they are few, a normal one
with Student's t.

Knows numbers; no tensors of a model. Ours.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from dit_accel.core.quantization import BITS, typical_error
from dit_accel.planning.plan import Plan
from dit_accel.planning.profile import CandidatePlan
from dit_accel.planning.search import ErrorModel, noise_energy

INTERVAL = 0.90
PACKED_DB = 6.0  # what packing is foretold to leave, below what a plan leaves (docs/planning.md)
CONFIDENCE = 0.90  # that the share of clips is as promised, where it is counted
MIN_COUNTED_CLIPS = 45  # prompts, of which all reach a quality: from there on 95 % are sure enough
UNKNOWN_DB = 6.0  # spread over prompts, where none was measured


@dataclass(frozen=True)
class QualityEstimate:
    """What a decision promises.

    Args:
        speedup: steps over computed steps, expected.
        computed: steps, expected.
        psnr_db: of a clip against its uncached twin, expected.
        low_db, high_db: between which a clip lies with 90 % probability.
        reach: share of clips that reach the quality that was asked for, at least; None for a speed.
    """

    speedup: float
    computed: float
    psnr_db: float
    low_db: float
    high_db: float
    reach: float | None = None


@dataclass(frozen=True)
class QualityDistribution:
    """What a plan gives: the PSNR of calibration's clips, their mean and standard deviation, in dB;
    and how many steps it computes."""

    count: int
    mean: float
    deviation: float
    psnr_db: tuple[float, ...]

    @classmethod
    def of(cls, candidate: CandidatePlan) -> QualityDistribution:
        psnr = candidate.psnr_db
        deviation = float(psnr.std()) if len(psnr) > 1 else UNKNOWN_DB
        return cls(len(candidate.computed), float(psnr.mean()), deviation, tuple(psnr.tolist()))

    def promise(self, quality: float) -> float:
        """Share of clips that reach the quality, of which one can be sure."""
        number = len(self.psnr_db)
        if number < MIN_COUNTED_CLIPS:
            return self._reach(quality)
        return clopper_pearson_lower(sum(psnr >= quality for psnr in self.psnr_db), number)

    @property
    def interval(self) -> tuple[float, float]:
        """Between which a clip's PSNR lies with 90 % probability, before its run."""
        if len(self.psnr_db) >= MIN_COUNTED_CLIPS:
            return _tails(self.psnr_db)
        half = half_width(self.deviation, len(self.psnr_db))
        return self.mean - half, self.mean + half

    def _reach(self, quality: float) -> float:
        """Probability that a clip reaches the quality, by a normal distribution."""
        number = len(self.psnr_db)
        width = max(self.deviation, 0.3) * math.sqrt(1 + 1 / max(number, 1))
        return float(stats.t.cdf((self.mean - quality) / width, max(number - 2, 1)))


def _tails(values: Sequence[float]) -> tuple[float, float]:
    """Between which nine tenths of many values lie."""
    low, *_, high = statistics.quantiles(values, n=20, method="inclusive")
    return low, high


def half_width(spread: float, number: int) -> float:
    """Half the width of the interval, by Student's t for so many prompts."""
    return spread * float(stats.t.ppf(0.5 + INTERVAL / 2, max(number - 2, 1)))


@dataclass(frozen=True)
class PlanChoice:
    """A plan, and what is promised of it; `notes` in words; `fewest_bits` that kept values may be
    packed into without its being felt."""

    plan: Plan
    branch_weights: tuple[float, ...]
    timesteps: tuple[float, ...]
    prediction: QualityEstimate | None
    bands: dict[int, ErrorBand]
    notes: tuple[str, ...] = ()
    min_bits: int = BITS[0]


def clopper_pearson_lower(reached: int, number: int) -> float:
    """Share of all clips of which one can be sure, where so many of a number reached a quality."""
    return float(stats.beta.ppf(1 - CONFIDENCE, reached, number - reached + 1)) if reached else 0.0


def min_bits(plan: Plan, field: ErrorModel, left_db: float) -> int:
    """Bits whose rounding leaves far less in the latents than the plan does, which leaves
    `left_db`."""
    energy = noise_energy(plan, field)
    for bits in reversed(BITS):
        if decibels(energy * typical_error(bits) ** 2) >= left_db + PACKED_DB:
            return bits
    return BITS[0]


def decibels(energy: float) -> float:
    """Of an energy relative to the latents', the higher the less is left."""
    return -10 * math.log10(max(energy, 1e-12))


def describe(choice: PlanChoice) -> str:
    """A decision in one line for people."""
    promised = choice.prediction
    if promised is None:
        return f"computes {len(choice.plan.computed)} of {choice.plan.num_steps} steps"
    if math.isinf(promised.psnr_db):
        return f"computes all {choice.plan.num_steps} steps: exact"
    return (
        f"computes {promised.computed:.1f} of {choice.plan.num_steps} steps "
        f"({promised.speedup:.2f}x), expected {promised.psnr_db:.1f} dB "
        f"[{promised.low_db:.1f}, {promised.high_db:.1f}]"
    )


@dataclass(frozen=True)
class ErrorBand:
    """What is expected at a computed step: mean and standard deviation of the log surprise."""

    mean: float
    spread: float

    def score(self, extrapolation_error: float) -> float:
        """Standard deviations above the mean; infinite for what is not finite."""
        if not math.isfinite(extrapolation_error):
            return math.inf
        return (math.log(max(extrapolation_error, 1e-9)) - self.mean) / self.spread

    def holds(self, extrapolation_error: float) -> bool:
        """Whether the surprise is inside."""
        score = self.score(extrapolation_error)
        return (
            score <= BAND
            or score * self.spread <= MIN_ERROR_FOR_GUARD
            or extrapolation_error <= TOLERATED_ERROR
        )


BAND = 6.0  # standard deviations of the logarithm of a surprise that are still inside the band


MIN_ERROR_FOR_GUARD = math.log(
    40.0
)  # and so is anything below this ratio to what is expected: of 64 prompts


TOLERATED_ERROR = (
    0.5  # and any surprise below this, of the prediction's own size: prompts differ much
)
