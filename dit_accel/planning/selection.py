"""Choose the plan of a run: the only place where that is done, for API, CLI and evaluation.

In: a profile, the sampler's coefficients in this run, a target, the text and the size of the clips.
Out: a `PlanChoice`. A quality is a bound for each clip, not for their mean: of all plans by which
`coverage` of the clips reach it, the fastest is chosen. A speedup is met as nearly as whole steps
allow. A run of other steps or guidance than calibrated gets a new plan (`planning/transfer.py`).

Knows numbers and a scheduler; no tensors of a model. Ours.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch

from dit_accel.planning.plan import SamplerCoefficients
from dit_accel.planning.prediction import (
    MIN_COUNTED_CLIPS,
    ErrorBand,
    PlanChoice,
    QualityDistribution,
    QualityEstimate,
    clopper_pearson_lower,
    min_bits,
)
from dit_accel.planning.profile import CandidatePlan, Profile, ProfileError
from dit_accel.planning.sampler import planned_coefficients
from dit_accel.planning.transfer import COVERAGE, compute_all, transfer_plan

MIN_PLANNED_STEPS = 8  # of a run; in a shorter one, steps are too far apart to extrapolate
MARGIN_STEP_DB, MAX_MARGIN_DB = 0.25, 6.0  # that is looked for


class TargetError(ValueError):
    """A target that this profile cannot promise."""


@dataclass(frozen=True)
class Target:
    """What a run shall reach: one of the two.

    Args:
        quality: PSNR in dB against the uncached clip, > 0.
        speedup: steps over computed steps, >= 1.

    Raises:
        ValueError: neither or both are given.
    """

    quality: float | None = None
    speedup: float | None = None

    def __post_init__(self) -> None:
        if (self.quality is None) == (self.speedup is None):
            raise ValueError("quality and speedup: accepted is one of them")


def choose(
    profile: Profile,
    coefficients: SamplerCoefficients | None,
    target: Target,
    *,
    static: bool = False,
    text: torch.Tensor | None = None,
    size: tuple[int, int, int] | None = None,
) -> PlanChoice:
    """The plan of a run.

    Args:
        coefficients: of the sampler in this run; None: as calibrated.
        static: whether all runs of the same steps get the same plan, whatever their text.
        text: `(B, T)` pooled embeddings of the prompts: a quality is then guaranteed for them.
        size: height, width and frames of the clips; None: as calibrated.

    Raises:
        ValueError: the target is out of range, or the run has too few steps.
        ProfileError: the run has other branches than the profile.
    """
    own, run = profile.schedule, coefficients or profile.schedule
    resized = size is not None and not profile.key.of_size(*size)
    for_prompts = profile if static else profile.for_text(text)
    margin = None
    if target.quality is not None and for_prompts is not profile and not resized:
        margin = QualityMargin.of(profile, target.quality)
    profile = for_prompts.resized() if resized else for_prompts
    check_num_steps(run.num_steps)
    if len(run.branch_weights) != len(own.branch_weights):
        raise ProfileError(
            f"the profile is of {_branches(own)}, this run of {_branches(run)}: its plans do not "
            "carry over; calibrate at this guidance"
        )
    if not _as_calibrated(run, own) or not profile.candidates:
        return transfer_plan(profile, run, quality=target.quality, speedup=target.speedup)
    if target.quality is not None:
        return for_quality(profile, target.quality, slack=margin)
    return for_speedup(profile, target.speedup or 1.0)


def check_num_steps(num_steps: int) -> None:
    """Refuse a plan for a run that is too short for one.

    Raises:
        ValueError: there are fewer than `MIN_PLANNED_STEPS` steps.
    """
    if num_steps < MIN_PLANNED_STEPS:
        raise ValueError(
            f"a run of {num_steps} steps has nothing to serve from; accepted: {MIN_PLANNED_STEPS} "
            "or more, or accelerate by threshold"
        )


def branch_weights(
    profile: Profile | None, guidance: float, *, separate: bool, force: bool = False
) -> tuple[float, ...]:
    """Weights of the branches that a run is planned with.

    Args:
        profile: None: the run is recorded.
        separate: whether guidance runs as separate forwards (`Family.branches`).
        force: whether a profile of one branch is used at another guidance.
    """
    if not separate or guidance <= 1:
        return (1.0,)
    one_branch = profile is not None and len(profile.schedule.branch_weights) == 1
    # calibrated at a guidance that varies, say: the guided output is planned for as a whole
    if profile and one_branch and (force or abs(profile.key.guidance - guidance) < 1e-6):
        return (1.0,)
    return (1.0, 1.0 - guidance)


def coefficients_before_run(
    profile: Profile, scheduler: Any, num_steps: int, guidance: float, *, separate: bool
) -> SamplerCoefficients | None:
    """Coefficients of a run that has not begun; None where only a run sets the timesteps.

    Args:
        scheduler: of the run, left as it is; None: not known, and the profile's steps are needed.
        guidance, separate: as of `branch_weights`.

    Raises:
        ValueError: the steps are not the profile's, and there is no scheduler.
    """
    weights = branch_weights(profile, guidance, separate=separate)
    own = dataclasses.replace(profile.schedule, branch_weights=weights)
    if scheduler is None and num_steps != own.num_steps:
        raise ValueError(
            f"steps is {num_steps}, and the profile is of {own.num_steps}: other timesteps need "
            "the model's scheduler"
        )
    if scheduler is None:
        return own
    try:
        return planned_coefficients(scheduler, num_steps, weights)
    except ValueError:
        return own if num_steps == own.num_steps else None


def _branches(coefficients: SamplerCoefficients) -> str:
    two = len(coefficients.branch_weights) > 1
    return "two branches (guidance above 1)" if two else "one branch"


def _as_calibrated(run: SamplerCoefficients, own: SamplerCoefficients) -> bool:
    return (
        run.num_steps == own.num_steps
        and torch.allclose(run.timesteps, own.timesteps, rtol=1e-3)
        and torch.allclose(run.coefficients, own.coefficients, rtol=1e-2, atol=1e-4)
        and all(
            abs(a - b) < 1e-6 for a, b in zip(run.branch_weights, own.branch_weights, strict=True)
        )
    )


@dataclass(frozen=True)
class QualityMargin:
    """What may be taken off the quality when the plan of each clip is chosen for its own text.

    A plan that is promised for one text counts all of calibration's clips, shifted to it; the rare
    ones far below keep every choice careful. What is promised is the choice as a whole: `db` is the
    most by which each may be bolder, so that of calibration's own clips, each with the plan that
    its text gets, enough still reach the quality; `reach` is the share of which one can be sure.
    """

    db: float = 0.0
    reach: float | None = None

    @classmethod
    def of(cls, profile: Profile, quality: float, coverage: float = COVERAGE) -> QualityMargin:
        """Of a profile that is for no text in particular; none where it has few clips, or
        does not know how hard texts are.

        Args:
            profile: with rungs.
            quality: PSNR in dB.
            coverage: share of clips.
        """
        hard, candidates = profile.difficulty, profile.candidates
        number = len(hard.known) if hard is not None else 0
        if hard is None or number < MIN_COUNTED_CLIPS or not candidates:
            return cls()
        enough = next(
            (c for c in range(number + 1) if clopper_pearson_lower(c, number) >= coverage),
            number + 1,
        )
        order = sorted(candidates, key=lambda candidate: len(candidate.computed))
        psnr = torch.stack([candidate.psnr_db.double() for candidate in order])
        reaches = psnr >= quality
        gained = torch.stack([hard.shifted(row, 0.0) for row in psnr]).sort(1).values
        moved = torch.stack([hard.shift(row) for row in psnr])[:, None] * hard.known
        found = cls()
        for step in range(int(MAX_MARGIN_DB / MARGIN_STEP_DB) + 1):
            wanted = (quality - step * MARGIN_STEP_DB - moved).contiguous()
            counts = number - torch.searchsorted(gained, wanted)  # (plans, clips)
            chosen = (counts >= enough).double().argmax(0)
            planned = (counts >= enough).any(0)
            kept = reaches.gather(0, chosen[None])[0] | ~planned
            reach = clopper_pearson_lower(int(kept.sum()), number)
            if reach < coverage:
                break
            found = cls(step * MARGIN_STEP_DB, reach)
        return found


def for_quality(
    profile: Profile,
    quality: float,
    coverage: float = COVERAGE,
    *,
    slack: QualityMargin | None = None,
) -> PlanChoice:
    """The fastest plan by which `coverage` of the clips reach `quality` dB.

    Args:
        profile: with rungs.
        quality: PSNR in dB against the uncached clip, > 0.
        coverage: share of clips, above 0, below 1.
        slack: of this quality, where the profile is for the text at hand; None: none.

    Raises:
        ValueError: a number is out of range.
        TargetError: the profile has no rungs.
    """
    if not 0 < quality < math.inf or not 0 < coverage < 1:
        raise ValueError(
            f"quality is {quality}, coverage is {coverage}; accepted: a number of dB above 0, and "
            "a share between 0 and 1"
        )
    if not profile.candidates:
        raise TargetError("the profile has no rungs; calibrate with speedups to promise a quality")
    slack = slack or QualityMargin()
    best: tuple[float, CandidatePlan, float] | None = None
    for candidate in profile.candidates:
        reach = QualityDistribution.of(candidate).promise(quality - slack.db)
        speed = profile.schedule.num_steps / len(candidate.computed)
        if reach >= coverage and (best is None or speed > best[0]):
            best = speed, candidate, reach
    if best is None:
        return compute_all(profile.schedule, quality, profile)
    _, candidate, reach = best
    return _choice_of(profile, candidate, slack.reach if slack.db else reach)


def for_speedup(profile: Profile, speedup: float) -> PlanChoice:
    """The plan whose number of computed steps comes nearest to a speedup.

    Args:
        profile: a rung is taken where one is as near as whole steps allow, else a plan is made.
        speedup: steps over computed steps, >= 1.

    Raises:
        ValueError: the speedup is out of range.
    """
    total = profile.schedule.num_steps
    if not 1 <= speedup <= total / 2:
        raise ValueError(f"speedup is {speedup}; accepted: 1 to {total / 2:g} at {total} steps")
    counts = (math.floor(total / speedup), math.ceil(total / speedup))
    count = min(counts, key=lambda n: abs(total / n - speedup) if n else math.inf)
    if count >= total:
        return compute_all(profile.schedule, None, profile)
    candidate = next(
        (candidate for candidate in profile.candidates if len(candidate.computed) == count), None
    )
    if candidate is not None:
        return _choice_of(profile, candidate, None)
    return transfer_plan(profile, profile.schedule, speedup=total / count)


def _choice_of(profile: Profile, candidate: CandidatePlan, reach: float | None) -> PlanChoice:
    schedule, plan, distribution = (
        profile.schedule,
        profile.plan_of(candidate),
        QualityDistribution.of(candidate),
    )
    speedup, computed = schedule.num_steps / distribution.count, float(distribution.count)
    prediction = QualityEstimate(
        speedup, computed, distribution.mean, *distribution.interval, reach
    )
    return PlanChoice(
        plan, schedule.branch_weights, tuple(schedule.timesteps.tolist()), prediction,
        _bands(candidate),
        min_bits=min_bits(plan, profile.field, float(candidate.latents_db.mean())),
    )  # fmt: skip


def _bands(candidate: CandidatePlan) -> dict[int, ErrorBand]:
    """By computed step, from the third on: before, there is no line."""
    places = zip(
        candidate.computed,
        candidate.extrapolation_error.tolist(),
        candidate.error_spread.tolist(),
        strict=True,
    )
    return {step: ErrorBand(mean, spread) for step, mean, spread in list(places)[2:]}
