"""Predicts a plan's quality: a clip's PSNR, its interval, and the share of clips at a quality.

In: a candidate plan with the PSNR of each calibration prompt. Out: the same for a new prompt, which
is treated as one more of these. With many prompts the share is counted (Clopper and Pearson, 1934).
With few it comes from a normal distribution. Its mean and deviation are estimated from these
prompts and from other models.
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
from dit_accel.planning.plan import Plan

COVERAGE = 0.95  # share of clips that reach a quality
INTERVAL = 0.90  # probability that a clip's PSNR lies in the interval
CONFIDENCE = 0.90  # of the guaranteed share of clips
# If all of this many clips reach a quality, 95 % of all clips reach it with `CONFIDENCE`.
MIN_COUNTED_CLIPS = 45
# If all of this many clips reach a quality, the next clip reaches it with 95 % probability.
MIN_CONFORMAL_CLIPS = 19
_KNOWN = 3  # weight, in clips, of the deviation that was known before any clip
UNKNOWN_DB = 6.0  # standard deviation over prompts where none was measured
# Degrees of freedom of `UNKNOWN_DB` where it stands for the deviation of another model's plan
# (research/LOG.md).
_KNOWN_FREEDOM = 20
PACKED_DB = 6.0  # how far packing's error must be below the plan's own (docs/how-it-works.md)


@dataclass(frozen=True)
class QualityDistribution:
    """The PSNR of calibration's clips with one plan, and what follows for another clip.

    The mean and the deviation have the conjugate prior of a normal distribution. From other models,
    the prior deviation over prompts is `UNKNOWN_DB`. The prior mean is the PSNR that was expected
    before any clip was measured.

    Args:
        count: number of computed steps.
        psnr_db: PSNR of each clip.
        expected: what was expected of the clips' mean before any clip was measured: its value and
            its standard deviation; None: unknown.
    """

    count: int
    psnr_db: tuple[float, ...]
    expected: tuple[float, float] | None = None

    @classmethod
    def of(cls, candidate: CandidatePlan, measured: Sequence[float] = ()) -> QualityDistribution:
        """The distribution of a candidate plan.

        Args:
            measured: real less predicted PSNR of later clips, in dB.
        """
        psnr, known = candidate.psnr_db.double(), candidate.expected
        later = psnr.mean() + torch.tensor(measured, dtype=torch.float64)
        expected = None if known is None else (float(known[0]), float(known[1]))
        return cls(len(candidate.computed), tuple(torch.cat([psnr, later]).tolist()), expected)

    @property
    def _before(self) -> tuple[float, float]:
        """The mean that was expected before any clip, and the number of clips it counts as."""
        if self.expected is None:
            return 0.0, 0.0
        return self.expected[0], (UNKNOWN_DB / self.expected[1]) ** 2

    @property
    def mean(self) -> float:
        """The estimated mean PSNR over all clips."""
        before, weight = self._before
        return (weight * before + sum(self.psnr_db)) / (weight + len(self.psnr_db))

    @property
    def deviation(self) -> float:
        """The estimated standard deviation of the PSNR over prompts."""
        (before, weight), number = self._before, len(self.psnr_db)
        own = statistics.fmean(self.psnr_db)
        squares = _KNOWN_FREEDOM * UNKNOWN_DB**2 + sum((one - own) ** 2 for one in self.psnr_db)
        squares += weight * number / (weight + number) * (own - before) ** 2
        return math.sqrt(squares / self._freedom(number))

    def _freedom(self, number: int) -> int:
        """Degrees of freedom of the deviation after `number` clips.

        Without an expected mean, one degree goes into the estimate of the mean.
        """
        return _KNOWN_FREEDOM + number - (self.expected is None)

    def _variance_of_mean(self, number: int) -> float:
        """Variance of the estimated mean after `number` clips, over the variance of one clip."""
        return 1 / (self._before[1] + number)

    def guaranteed_share(self, quality: float) -> float:
        """Lower bound of the share of all clips that reach a quality in dB, at 90 % confidence."""
        number = len(self.psnr_db)
        if number >= MIN_COUNTED_CLIPS:
            return clopper_pearson_lower(sum(psnr >= quality for psnr in self.psnr_db), number)
        above = (self.mean - quality) / self.deviation
        # The two terms are the variances of the estimated mean and of the estimated deviation.
        unsure = self._variance_of_mean(number) + above**2 / (2 * self._freedom(number))
        normal = stats.norm
        return float(normal.cdf(above - float(normal.ppf(CONFIDENCE)) * math.sqrt(unsure)))

    def _guaranteed_below(self, number: int) -> float:
        """How far the guaranteed quality lies below the mean after `number` clips, in deviations.

        It is the distance at which `guaranteed_share` equals `COVERAGE`, the solution of a
        quadratic equation.
        """
        share, sure = (float(stats.norm.ppf(one)) for one in (COVERAGE, CONFIDENCE))
        factor = 1 - sure**2 / (2 * self._freedom(number))
        constant = share**2 - sure**2 * self._variance_of_mean(number)
        return (share + math.sqrt(share**2 - factor * constant)) / factor

    @property
    def next_gain_db(self) -> float:
        """How much the guaranteed quality rises with one more clip like these."""
        number = len(self.psnr_db)
        gain = self._guaranteed_below(number) - self._guaranteed_below(number + 1)
        return self.deviation * gain

    @property
    def interval(self) -> tuple[float, float]:
        """The interval that contains the PSNR of a clip not yet made, with 90 % probability."""
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

    The *difference* below is the real PSNR less the predicted one.

    Args:
        words: what the plans are made from; the text that follows "Planned from".
        reliability: how certain the predicted PSNR is, in words.
        offset_db: mean of the difference.
        deviation_db: standard deviation of one clip's difference.
        between_db: standard deviation between models of the difference's mean over clips; infinite
            if too few models were measured.
        freedom: degrees of freedom of the deviation; infinite where the deviation is assumed.
        measured: the differences of clips of the model itself.
    """

    words: str
    reliability: str
    offset_db: float = 0.0
    deviation_db: float = UNKNOWN_DB
    between_db: float = UNKNOWN_DB
    freedom: float = math.inf
    measured: tuple[float, ...] = ()

    def with_clips(self, clips: int) -> Evidence:
        """The same evidence, whose words also name clips of the model itself."""
        return dataclasses.replace(self, words=f"{self.words} and {clips} clip{'s' * (clips != 1)}")

    def with_measured(self, differences: tuple[float, ...]) -> Evidence:
        """The same evidence, updated with the differences of clips of the model itself.

        Mean and variance are estimated from these and from what was known before. The earlier
        knowledge counts as one clip for the mean and as three for the variance (the conjugate prior
        of a normal distribution).
        """
        n = len(differences)
        if not n:
            return self
        mean, before = statistics.fmean(differences), self.offset_db
        squares = sum((one - mean) ** 2 for one in differences)
        squares += n / (n + 1) * (mean - before) ** 2 + _KNOWN * self.deviation_db**2
        deviation = math.sqrt(squares / (_KNOWN + n) * (1 + 1 / (n + 1)))
        count = "1 clip of this model" if n == 1 else f"{n} clips of this model"
        source = f"measured on {count}, compared with the uncached reference"
        return dataclasses.replace(
            self, reliability=_reliability(deviation, source),
            offset_db=(before + n * mean) / (1 + n), deviation_db=deviation,
            freedom=float(_KNOWN + n), measured=differences,
        )  # fmt: skip

    @classmethod
    def of_runs(cls, clips: int) -> Evidence:
        """The evidence of runs of the model itself, none of them compared with an uncached one."""
        count = "one run" if clips == 1 else f"{clips} runs"
        return cls(f"inner products of {count}", _reliability(UNKNOWN_DB, "assumed, not measured"))

    @classmethod
    def of_left_out(cls, judged: torch.Tensor, models: int) -> Evidence:
        """The evidence of a prior, from models that were left out of one in turn.

        A new model is assumed to differ from these models as they differ from each other; its
        clips, too. They are few, so the variance between models also counts one assumed model with
        a deviation of `UNKNOWN_DB`. Without any of them, the deviation between clips is
        `UNKNOWN_DB`, too. The variance between models is known from few values, the variance
        between clips from many. Their sum has the degrees of freedom of Satterthwaite (1946). The
        mean of a new model's difference has Student's distribution with as many degrees of freedom
        as there are models, and `between_db` is its standard deviation.

        Args:
            judged: `(m, 2)`: for each model that was left out, mean and standard deviation of the
                real less the predicted PSNR.
            models: number of models that the prior is made of.
        """
        count = len(judged)
        spread = float(judged[:, 0].var()) * (count - 1) if count > 1 else 0.0
        between = (spread + UNKNOWN_DB**2) / max(count, 1)
        within = float(judged[:, 1].square().mean()) if count else UNKNOWN_DB**2
        between *= 1 + 1 / max(count, 1)
        deviation = math.sqrt(between + within)
        wide = count / (count - 2) if count > 2 else math.inf
        left_out = f"measured on {count} models, each left out of the prior in turn"
        return cls(
            f"a prior of {models} other model{'s' * (models != 1)}",
            _reliability(deviation, left_out if count > 1 else "assumed, not measured"),
            float(judged[:, 0].mean()) if count else 0.0, deviation,
            math.sqrt(between * wide),
            count * (deviation**2 / between) ** 2 if count > 1 else math.inf,
        )  # fmt: skip

    def share(self, predicted_db: float, quality: float) -> float:
        """The share of clips that reach a quality, if `predicted_db` is the predicted PSNR.

        With enough measured clips, it is the conformal estimate: the next clip is equally likely to
        have any rank among them (Vovk et al., 2005).
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
        """Half the width of the interval that contains a clip's PSNR with 90 % probability."""
        at = 0.5 + INTERVAL / 2
        known = math.isfinite(self.freedom)
        return self.deviation_db * float(
            stats.t.ppf(at, self.freedom) if known else stats.norm.ppf(at)
        )

    @property
    def note(self) -> str:
        """The note for the report."""
        advice = "`dit-accel calibrate` measures this model, which gives better predictions."
        return f"Planned from {self.words}; {self.reliability}. {advice}"


def _reliability(deviation_db: float, source: str) -> str:
    """How certain a predicted PSNR is, and how this is known, in words."""
    return f"a clip's PSNR may differ from the expected one by {deviation_db:.0f} dB ({source})"


FIRST_RUN = Evidence.of_runs(1)


def clopper_pearson_lower(reached: int, number: int) -> float:
    """Lower bound of a share at 90 % confidence, if the share was `reached` of `number` clips.

    Example:
        >>> round(clopper_pearson_lower(45, 45), 3)
        0.95
    """
    return float(stats.beta.ppf(1 - CONFIDENCE, reached, number - reached + 1)) if reached else 0.0


def min_bits(plan: Plan, error_model: ErrorModel, latents_db: float) -> int:
    """The fewest bits whose rounding error is far below the plan's own.

    Args:
        latents_db: PSNR of the latents with this plan, relative to their norm.
    """
    energy = noise_energy(plan, error_model)
    for bits in reversed(BITS):
        if decibels(energy * typical_error(bits) ** 2) >= latents_db + PACKED_DB:
            return bits
    return BITS[0]


def decibels(energy: float) -> float:
    """PSNR of the latents from their squared relative error."""
    return -10 * math.log10(max(energy, 1e-12))
