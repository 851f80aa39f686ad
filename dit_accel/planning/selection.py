"""From a profile and a target to a plan, with what it promises: decided before the first step.

A quality is a bound for every clip, not for their mean: `coverage` of the clips must reach it
(`planning/prediction.py` tells which plans keep that). Of all plans that keep the promise the
fastest is taken.
A speed is met as nearly as whole steps allow. Other steps than were calibrated:
`planning/transfer.py`.

Knows numbers; no tensors of a model. Ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from dit_accel.planning.prediction import (
    MIN_COUNTED_CLIPS,
    ErrorBand,
    PlanChoice,
    QualityDistribution,
    QualityEstimate,
    clopper_pearson_lower,
    min_bits,
)
from dit_accel.planning.profile import CandidatePlan, Profile
from dit_accel.planning.transfer import COVERAGE, compute_all, transfer_plan

MARGIN_STEP_DB, MAX_MARGIN_DB = 0.25, 6.0  # that is looked for


class TargetError(ValueError):
    """A target that this profile cannot promise."""


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
