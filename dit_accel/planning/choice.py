"""The plan of a run, and what is expected of it: its PSNR, and its extrapolation errors.

In: a plan, a sampler's coefficients, and estimates. Out: a `PlanChoice`, which the run carries out
and the report quotes.
Knows numbers; `planning/prediction.py` makes the estimates, `caching/guard.py` checks the errors.
Source: ours (docs/how-it-works.md, sections 5 and 6).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from dit_accel.core.quantization import BITS
from dit_accel.planning.plan import Plan, SamplerCoefficients, SecondExpert

# What a plan rests on: calibration carried it out; or it is transferred from such plans; or it is
# made from inner products alone, the prior's or those of runs.
BASES = ("calibrated", "transferred", "inner products")

# An extrapolation error is inside an error band if it is below at least one of these three limits:
MAX_BAND_SCORE = 6.0  # standard deviations of its logarithm above the mean
MAX_BAND_RATIO = 40.0  # times the expected error
TOLERATED_ERROR = 0.5  # relative to the prediction; tolerated because prompts differ much


@dataclass(frozen=True)
class QualityEstimate:
    """What is expected of a run.

    Args:
        speedup: steps over computed steps.
        computed: number of computed steps.
        psnr_db: expected PSNR of a clip against its uncached reference.
        low_db, high_db: the interval that contains a clip's PSNR with 90 % probability.
        reach: guaranteed share of clips that reach the target quality; None if the target is a
            speedup.
        offset_db: the part of `psnr_db` that corrects for the errors of earlier predictions; it
            does not come from this plan.
        basis: what the plan rests on, one of `BASES`.
        rests_on: the data that the plan was made from, in words.
    """

    speedup: float
    computed: int
    psnr_db: float
    low_db: float
    high_db: float
    reach: float | None = None
    offset_db: float = 0.0
    basis: str = "calibrated"
    rests_on: str = ""


@dataclass(frozen=True)
class ErrorBand:
    """Mean and standard deviation of the log extrapolation error at a computed step."""

    mean: float
    spread: float

    def score(self, extrapolation_error: float) -> float:
        """Standard deviations above the mean; infinite for an error that is not finite."""
        if not math.isfinite(extrapolation_error):
            return math.inf
        return (math.log(max(extrapolation_error, 1e-9)) - self.mean) / self.spread

    def ratio(self, extrapolation_error: float) -> float:
        """An error over the expected error, which is the geometric mean."""
        return math.exp(self.score(extrapolation_error) * self.spread)

    def contains(self, extrapolation_error: float) -> bool:
        """Whether an extrapolation error is normal, that is, no sign of a fault."""
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
        prediction: the quality that is expected of the run.
        bands: by computed step, the band of extrapolation errors that calibration measured; empty
            if calibration did not carry out this plan.
        notes: sentences for the report.
        min_bits: the fewest bits that a cached value may be packed into; the error of packing is
            then far below the plan's own.
        second: the second expert of the run, with its share of the branch weights.
    """

    plan: Plan
    branch_weights: tuple[float, ...]
    timesteps: tuple[float, ...]
    prediction: QualityEstimate
    bands: Mapping[int, ErrorBand]
    notes: tuple[str, ...] = ()
    min_bits: int = BITS[0]
    second: SecondExpert | None = None

    @classmethod
    def of(
        cls, plan: Plan, sampler: SamplerCoefficients, prediction: QualityEstimate, *,
        bands: Mapping[int, ErrorBand] | None = None, notes: tuple[str, ...] = (),
        min_bits: int = BITS[0],
    ) -> PlanChoice:  # fmt: skip
        """The choice of a plan for a run with these coefficients."""
        return cls(
            plan, sampler.branch_weights, tuple(sampler.timesteps.tolist()), prediction,
            bands or {}, notes, min_bits, sampler.second,
        )  # fmt: skip

    @property
    def said(self) -> tuple[str, ...]:
        """The notes; before them, what the plan was made from, unless a note says so already."""
        own = self.prediction
        carried_out = own.basis == BASES[0] and math.isfinite(own.psnr_db)
        return (f"Planned from {own.rests_on}.", *self.notes) if carried_out else self.notes


def describe(choice: PlanChoice) -> str:
    """A choice as one line of text."""
    expected = choice.prediction
    if math.isinf(expected.psnr_db):
        return f"computes all {choice.plan.num_steps} steps: exact"
    return (
        f"computes {expected.computed} of {choice.plan.num_steps} steps "
        f"({expected.speedup:.2f}x), expected {expected.psnr_db:.1f} dB "
        f"[{expected.low_db:.1f}, {expected.high_db:.1f}]"
    )
