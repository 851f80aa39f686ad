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

from dit_accel.packing import BITS, typical_error
from dit_accel.planner import Field, noise_energy
from dit_accel.plans import Plan
from dit_accel.profile import Rung
from dit_accel.steering import Band, Steering

INTERVAL = 0.90
PACKED_DB = 6.0  # what packing is foretold to leave, below what a plan leaves (docs/planning.md)
CONFIDENCE = 0.90  # that the share of clips is as promised, where it is counted
MANY = 45  # prompts, of which all reach a quality: from there on 95 % are sure enough
UNKNOWN_DB = 6.0  # spread over prompts, where none was measured


@dataclass(frozen=True)
class Prediction:
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
class Outlook:
    """A plan's PSNR given the score up to the turn: intercept, slope, and what is left, with the
    prompts' own scores."""

    count: int
    base: float
    slope: float
    left: float
    scores: tuple[float, ...]
    psnr_db: tuple[float, ...] = ()

    @classmethod
    def of(cls, rung: Rung) -> Outlook:
        scores, psnr = rung.alarm, rung.psnr_db
        number, known = len(psnr), (tuple(rung.alarm.tolist()), tuple(rung.psnr_db.tolist()))
        if number < 4 or float(scores.std()) < 1e-6:
            left = float(psnr.std()) if number > 1 else UNKNOWN_DB
            return cls(len(rung.computed), float(psnr.mean()), 0.0, left, *known)
        centred = scores - scores.mean()
        slope = min(float((centred * psnr).sum() / (centred**2).sum()), 0.0)
        rest = psnr - psnr.mean() - slope * centred
        left = math.sqrt(float((rest**2).sum()) / (number - 2))
        base = float(psnr.mean() - slope * scores.mean())
        return cls(len(rung.computed), base, slope, left, *known)

    def at(self, score: float) -> float:
        """Expected PSNR."""
        return self.base + self.slope * score

    def around(self, score: float) -> tuple[float, float]:
        """Between which a clip with this score lies with 90 % probability."""
        number, centre = len(self.scores), self.at(score)
        if len(self.psnr_db) >= MANY:
            rest = [p - self.at(s) for p, s in zip(self.psnr_db, self.scores, strict=True)]
            low, high = _tails(rest)
            return centre + low, centre + high
        half = half_width(max(self.left, 0.3) * math.sqrt(1 + 1 / max(number, 1)), number)
        return centre - half, centre + half

    def promise(self, quality: float) -> float:
        """Share of clips that reach the quality, of which one can be sure."""
        number = len(self.psnr_db)
        if number < MANY:
            return statistics.fmean(self.reach(quality, score) for score in self.scores)
        return at_least(sum(psnr >= quality for psnr in self.psnr_db), number)

    @property
    def interval(self) -> tuple[float, float]:
        """Between which a clip's PSNR lies with 90 % probability, before its run."""
        if len(self.psnr_db) >= MANY:
            return _tails(self.psnr_db)
        centre = statistics.fmean(self.at(score) for score in self.scores)
        spread = math.hypot(self.left, statistics.pstdev([self.at(s) for s in self.scores]))
        half = half_width(spread, len(self.scores))
        return centre - half, centre + half

    def reach(self, quality: float, score: float) -> float:
        """Probability that a prompt with this score reaches the quality."""
        number = len(self.scores)
        width = max(self.left, 0.3) * math.sqrt(1 + 1 / max(number, 1))
        return float(stats.t.cdf((self.at(score) - quality) / width, max(number - 2, 1)))


def _tails(values: Sequence[float]) -> tuple[float, float]:
    """Between which nine tenths of many values lie."""
    low, *_, high = statistics.quantiles(values, n=20, method="inclusive")
    return low, high


def half_width(spread: float, number: int) -> float:
    """Half the width of the interval, by Student's t for so many prompts."""
    return spread * float(stats.t.ppf(0.5 + INTERVAL / 2, max(number - 2, 1)))


@dataclass(frozen=True)
class Decision:
    """A plan, what it may turn to, and what is promised; `notes` in words; `fewest_bits` that kept
    values may be packed into without its being felt."""

    plan: Plan
    mix: tuple[float, ...]
    times: tuple[float, ...]
    prediction: Prediction | None
    bands: dict[int, Band]
    careful: Plan | None = None
    turn: int = -1
    alarm: float = math.inf
    notes: tuple[str, ...] = ()
    outlooks: tuple[Outlook, ...] = ()
    fewest_bits: int = BITS[0]

    def known(self, score: float, turned: bool) -> Prediction | None:
        """What is expected once a run's score is known, and whether it turned careful."""
        if not self.outlooks or self.prediction is None:
            return self.prediction
        outlook = self.outlooks[-1 if turned else 0]
        return Prediction(
            self.plan.total / outlook.count, outlook.count, outlook.at(score),
            *outlook.around(score), self.prediction.reach,
        )  # fmt: skip

    def steering(self, *, guard: bool = True) -> Steering:
        """The course of a run by this decision."""
        return Steering(
            self.plan, self.times, self.mix, self.bands, self.careful, self.turn, self.alarm, guard
        )


def at_least(reached: int, number: int) -> float:
    """Share of all clips of which one can be sure, where so many of a number reached a quality."""
    return float(stats.beta.ppf(1 - CONFIDENCE, reached, number - reached + 1)) if reached else 0.0


def fewest_bits(plan: Plan, field: Field, left_db: float) -> int:
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


def describe(decision: Decision) -> str:
    """A decision in one line for people."""
    promised = decision.prediction
    if promised is None:
        return f"computes {len(decision.plan.computed)} of {decision.plan.total} steps"
    if math.isinf(promised.psnr_db):
        return f"computes all {decision.plan.total} steps: exact"
    return (
        f"computes {promised.computed:.1f} of {decision.plan.total} steps "
        f"({promised.speedup:.2f}x), expected {promised.psnr_db:.1f} dB "
        f"[{promised.low_db:.1f}, {promised.high_db:.1f}]"
    )
