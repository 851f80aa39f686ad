"""Predicts what a plan gives: the PSNR of a clip, its interval, the share of clips at a quality.

In: a candidate plan with what each calibration prompt got. Out: numbers for a new prompt, which is
treated as one more of them: by counting (Clopper and Pearson, 1934) where there are many prompts,
else by a normal distribution, whose mean and deviation rest on these prompts and on other models.
Knows numbers; no tensors of a model.
Source: ours (docs/how-it-works.md, section 5).
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy import stats

from dit_accel.core.quantization import BITS, typical_error
from dit_accel.planning.candidate import CandidatePlan
from dit_accel.planning.error_model import ErrorModel, noise_energy
from dit_accel.planning.plan import Plan, SecondExpert

COVERAGE = 0.95  # share of clips that reach a quality
INTERVAL = 0.90  # probability that a clip's PSNR lies in the interval
CONFIDENCE = 0.90  # of the guaranteed share of clips
MIN_COUNTED_CLIPS = 45  # if all of so many reach a quality, 95 % of all clips do at that confidence
MIN_CONFORMAL_CLIPS = 19  # if all of so many reach a quality, the next one does with 95 %
_KNOWN = 3  # clips that the deviation which was known before counts as
UNKNOWN_DB = 6.0  # standard deviation over prompts, where none was measured
_KNOWN_FREEDOM = 20  # that it has as one of a plan of another model (research/LOG.md)
PACKED_DB = 6.0  # predicted error of packing below the plan's own (docs/how-it-works.md)

# A plan was carried out in calibration; or it is transferred from such plans; or never was, and is
# made of inner products, of the prior's or of runs.
BASES = ("calibrated", "transferred", "inner products")

# An extrapolation error is inside an error band if it is below one of the three:
MAX_BAND_SCORE = 6.0  # standard deviations of its logarithm above the mean
MAX_BAND_RATIO = 40.0  # times the expected error
TOLERATED_ERROR = 0.5  # relative to the prediction, as prompts differ much


@dataclass(frozen=True)
class QualityEstimate:
    """What is expected of a run.

    Args:
        speedup: steps over computed steps.
        computed: computed steps.
        psnr_db: of a clip against its uncached reference.
        low_db, high_db: the interval that holds it with 90 % probability.
        reach: guaranteed share of clips that reach the target quality; None for a speedup.
        offset_db: the part of `psnr_db` that does not come from this plan, but from what other
            predictions missed.
        basis: of the plan: one of `BASES`.
        rests_on: what the plan was made from, in words.
    """

    speedup: float
    computed: float
    psnr_db: float
    low_db: float
    high_db: float
    reach: float | None = None
    offset_db: float = 0.0
    basis: str = "calibrated"
    rests_on: str = ""


@dataclass(frozen=True)
class QualityDistribution:
    """The PSNR of calibration's clips by one plan, and what follows of another clip's.

    Their mean and deviation have the conjugate prior of a normal distribution: by other models, the
    deviation over prompts is `UNKNOWN_DB`, and the mean is what was expected before any clip.

    Args:
        count: computed steps.
        psnr_db: of the clips.
        expected: mean and standard deviation of the clips' mean, before any of them; None: unknown.
    """

    count: int
    psnr_db: tuple[float, ...]
    expected: tuple[float, float] | None = None

    @classmethod
    def of(cls, candidate: CandidatePlan, measured: Sequence[float] = ()) -> QualityDistribution:
        """Of a candidate plan.

        Args:
            measured: of later clips, how much better or worse than the mean they were.
        """
        psnr, known = candidate.psnr_db.double(), candidate.expected
        later = psnr.mean() + torch.tensor(measured, dtype=torch.float64)
        expected = None if known is None else (float(known[0]), float(known[1]))
        return cls(len(candidate.computed), tuple(torch.cat([psnr, later]).tolist()), expected)

    @property
    def _before(self) -> tuple[float, float]:
        """The mean that was expected before, and how many clips it counts as."""
        if self.expected is None:
            return 0.0, 0.0
        return self.expected[0], (UNKNOWN_DB / self.expected[1]) ** 2

    @property
    def mean(self) -> float:
        """Of all clips."""
        before, weight = self._before
        return (weight * before + sum(self.psnr_db)) / (weight + len(self.psnr_db))

    @property
    def deviation(self) -> float:
        """Over prompts."""
        (before, weight), number = self._before, len(self.psnr_db)
        own = statistics.fmean(self.psnr_db)
        squares = _KNOWN_FREEDOM * UNKNOWN_DB**2 + sum((one - own) ** 2 for one in self.psnr_db)
        squares += weight * number / (weight + number) * (own - before) ** 2
        return math.sqrt(squares / self._freedom(number))

    def _freedom(self, number: int) -> int:
        """Of the deviation after so many clips, of which one says the mean where nothing does."""
        return _KNOWN_FREEDOM + number - (self.expected is None)

    def _variance_of_mean(self, number: int) -> float:
        """Of the estimated mean after so many clips, relative to that of one clip."""
        return 1 / (self._before[1] + number)

    def guaranteed_share(self, quality: float) -> float:
        """Share of all clips that reach a quality in dB, at least, with 90 % confidence."""
        number = len(self.psnr_db)
        if number >= MIN_COUNTED_CLIPS:
            return clopper_pearson_lower(sum(psnr >= quality for psnr in self.psnr_db), number)
        above = (self.mean - quality) / self.deviation
        # variances of the estimated mean, and of the deviation
        unsure = self._variance_of_mean(number) + above**2 / (2 * self._freedom(number))
        normal = stats.norm
        return float(normal.cdf(above - float(normal.ppf(CONFIDENCE)) * math.sqrt(unsure)))

    def _guaranteed_below(self, number: int) -> float:
        """How far below the mean the quality lies, in deviations, that is guaranteed after so many
        clips: where `guaranteed_share` is `COVERAGE`, a quadratic equation."""
        share, sure = (float(stats.norm.ppf(one)) for one in (COVERAGE, CONFIDENCE))
        factor = 1 - sure**2 / (2 * self._freedom(number))
        constant = share**2 - sure**2 * self._variance_of_mean(number)
        return (share + math.sqrt(share**2 - factor * constant)) / factor

    @property
    def next_gain_db(self) -> float:
        """By how much the quality that is guaranteed rises with one more clip like these."""
        number = len(self.psnr_db)
        gain = self._guaranteed_below(number) - self._guaranteed_below(number + 1)
        return self.deviation * gain

    @property
    def interval(self) -> tuple[float, float]:
        """Holds a clip's PSNR with 90 % probability, before its run."""
        number = len(self.psnr_db)
        if number >= MIN_COUNTED_CLIPS:
            low, *_, high = statistics.quantiles(self.psnr_db, n=20, method="inclusive")
            return low, high
        scale = self.deviation * math.sqrt(1 + self._variance_of_mean(number))
        half = scale * float(stats.t.ppf(0.5 + INTERVAL / 2, self._freedom(number)))
        return self.mean - half, self.mean + half


@dataclass(frozen=True)
class Evidence:
    """What is known of the PSNR of plans that were never carried out on a model.

    Args:
        words: what they are made from, after "Planned from".
        reliability: how sure the PSNR is, in words.
        offset_db: mean of the real less the predicted PSNR.
        deviation_db: standard deviation of that, of one clip.
        between_db: standard deviation between models of the mean of that over clips.
        freedom: degrees of freedom of the deviation; infinite where it is assumed.
        measured: real less predicted PSNR of clips of the model itself.
    """

    words: str
    reliability: str
    offset_db: float = 0.0
    deviation_db: float = UNKNOWN_DB
    between_db: float = UNKNOWN_DB
    freedom: float = math.inf
    measured: tuple[float, ...] = ()

    def with_clips(self, clips: int) -> Evidence:
        """The same, where runs of the model itself were learnt from, too."""
        return dataclasses.replace(self, words=f"{self.words} and {clips} clip{'s' * (clips != 1)}")

    def with_measured(self, differences: tuple[float, ...]) -> Evidence:
        """With the real less the predicted PSNR of clips of the model itself.

        Mean and variance are estimated from these, and from what was known before, which counts as
        much as one clip for the mean and as three for the variance (the conjugate prior of a normal
        distribution).
        """
        n = len(differences)
        if not n:
            return self
        mean, before = statistics.fmean(differences), self.offset_db
        squares = sum((one - mean) ** 2 for one in differences)
        squares += n / (n + 1) * (mean - before) ** 2 + _KNOWN * self.deviation_db**2
        deviation = math.sqrt(squares / (_KNOWN + n) * (1 + 1 / (n + 1)))
        reliability = f"the PSNR of a clip may be {deviation:.0f} dB from the expected one (as on "
        count = "1 clip of this model that was" if n == 1 else f"{n} clips of this model that were"
        reliability += f"{count} compared with an uncached reference)"
        return dataclasses.replace(
            self, reliability=reliability, offset_db=(before + n * mean) / (1 + n),
            deviation_db=deviation,
            freedom=float(_KNOWN + n), measured=differences,
        )  # fmt: skip

    @classmethod
    def of_runs(cls, clips: int) -> Evidence:
        """Of runs of the model itself, none of which was compared with an uncached one."""
        count = "one run" if clips == 1 else f"{clips} runs"
        reliability = f"the PSNR of a clip may be {UNKNOWN_DB:.0f} dB from the expected one"
        return cls(f"inner products of {count}", f"{reliability} (an assumption)")

    @classmethod
    def of_left_out(cls, judged: torch.Tensor, models: int) -> Evidence:
        """Of a prior, by the models that were left out of one.

        One more model is to them as they are to each other, and its clips as theirs. What they are
        too few for is assumed: `UNKNOWN_DB` between models, which counts as one model, and between
        clips. The variance between models is known from few, that between clips from many: the sum
        has the degrees of freedom of Satterthwaite (1946).

        Args:
            judged: `(m, 2)`: of each of them, mean and deviation of real less predicted PSNR.
            models: that the prior is made of.
        """
        count = len(judged)
        spread = float(judged[:, 0].var()) * (count - 1) if count > 1 else 0.0
        between = (spread + UNKNOWN_DB**2) / max(count, 1)
        within = float(judged[:, 1].square().mean()) if count else UNKNOWN_DB**2
        between *= 1 + 1 / max(count, 1)
        deviation = math.sqrt(between + within)
        measured = f"as on {count} models left out" if count > 1 else "an assumption, not measured"
        return cls(
            f"a prior of {models} other model{'s' * (models != 1)}",
            f"the PSNR of a clip may be {deviation:.0f} dB from the expected one ({measured})",
            float(judged[:, 0].mean()) if count else 0.0, deviation, math.sqrt(between),
            count * (deviation**2 / between) ** 2 if count > 1 else math.inf,
        )  # fmt: skip

    def share(self, predicted_db: float, quality: float) -> float:
        """Share of clips that reach a quality, where a PSNR is predicted.

        Of enough measured clips, it is the conformal one: the next clip is as likely as any to
        stand at any place in their order (Vovk et al., 2005).
        """
        if len(self.measured) >= MIN_CONFORMAL_CLIPS:
            reached = sum(predicted_db + one >= quality for one in self.measured)
            return reached / (len(self.measured) + 1)
        above = (predicted_db + self.offset_db - quality) / self.deviation_db
        return float(
            stats.norm.cdf(above) if math.isinf(self.freedom) else stats.t.cdf(above, self.freedom)
        )

    @property
    def half_width(self) -> float:
        """Of the interval that holds a clip's PSNR with 90 % probability."""
        at = 0.5 + INTERVAL / 2
        known = math.isfinite(self.freedom)
        return self.deviation_db * float(
            stats.t.ppf(at, self.freedom) if known else stats.norm.ppf(at)
        )

    @property
    def note(self) -> str:
        """For the report."""
        advice = "`dit-accel calibrate` measures this model."
        return f"Planned from {self.words}; {self.reliability}. {advice}"


FIRST_RUN = Evidence.of_runs(1)


def clopper_pearson_lower(reached: int, number: int) -> float:
    """Lower bound of a share, of which `reached` of `number` were counted, at 90 % confidence.

    Example:
        >>> round(clopper_pearson_lower(45, 45), 3)
        0.95
    """
    return float(stats.beta.ppf(1 - CONFIDENCE, reached, number - reached + 1)) if reached else 0.0


@dataclass(frozen=True)
class ErrorBand:
    """Expected log extrapolation error at a computed step: mean and standard deviation."""

    mean: float
    spread: float

    def score(self, extrapolation_error: float) -> float:
        """Standard deviations above the mean; infinite for what is not finite."""
        if not math.isfinite(extrapolation_error):
            return math.inf
        return (math.log(max(extrapolation_error, 1e-9)) - self.mean) / self.spread

    def ratio(self, extrapolation_error: float) -> float:
        """To the expected error, which is the geometric mean."""
        return math.exp(self.score(extrapolation_error) * self.spread)

    def contains(self, extrapolation_error: float) -> bool:
        """Whether an extrapolation error is no sign of a fault."""
        score = self.score(extrapolation_error)
        return (
            score <= MAX_BAND_SCORE
            or score * self.spread <= math.log(MAX_BAND_RATIO)
            or extrapolation_error <= TOLERATED_ERROR
        )


@dataclass(frozen=True)
class PlanChoice:
    """The plan of a run, and what is expected of it.

    Args:
        plan, branch_weights, timesteps: what the run does.
        prediction: what is expected of it.
        bands: by computed step the extrapolation errors that calibration saw; may be empty.
        notes: in words, for the report.
        min_bits: cached values may be packed into so few, as the error of that is far below the
            plan's own.
        second: the second expert of the run, with its branch weights.
    """

    plan: Plan
    branch_weights: tuple[float, ...]
    timesteps: tuple[float, ...]
    prediction: QualityEstimate | None
    bands: dict[int, ErrorBand]
    notes: tuple[str, ...] = ()
    min_bits: int = BITS[0]
    second: SecondExpert | None = None

    @property
    def said(self) -> tuple[str, ...]:
        """The notes, after what the plan was made from where none of them says it."""
        own = self.prediction
        known = own is not None and own.basis == BASES[0] and math.isfinite(own.psnr_db)
        return (f"Planned from {own.rests_on}.", *self.notes) if own and known else self.notes


def min_bits(plan: Plan, error_model: ErrorModel, latents_db: float) -> int:
    """The fewest bits whose rounding error is far below the plan's own.

    Args:
        latents_db: PSNR of the latents by the plan, relative to their size.
    """
    energy = noise_energy(plan, error_model)
    for bits in reversed(BITS):
        if decibels(energy * typical_error(bits) ** 2) >= latents_db + PACKED_DB:
            return bits
    return BITS[0]


def decibels(energy: float) -> float:
    """PSNR of the latents from their squared relative error."""
    return -10 * math.log10(max(energy, 1e-12))


def describe(choice: PlanChoice) -> str:
    """A choice in one line for people."""
    expected = choice.prediction
    if expected is None:
        return f"computes {len(choice.plan.computed)} of {choice.plan.num_steps} steps"
    if math.isinf(expected.psnr_db):
        return f"computes all {choice.plan.num_steps} steps: exact"
    return (
        f"computes {expected.computed:.1f} of {choice.plan.num_steps} steps "
        f"({expected.speedup:.2f}x), expected {expected.psnr_db:.1f} dB "
        f"[{expected.low_db:.1f}, {expected.high_db:.1f}]"
    )
