"""From a profile and a target to a plan, with what it promises: decided before the first step.

A quality is a bound for every clip, not for their mean: `coverage` of the clips must reach it
(`outlook.py` tells which plans keep that). Of all plans that keep the promise the fastest is taken.
A speed is met as nearly as whole steps allow. Other steps than were calibrated: `carrying.py`.

Knows numbers; no tensors of a model. Ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dit_accel.carrying import COVERAGE, carried, whole
from dit_accel.outlook import (
    MANY,
    Decision,
    Outlook,
    Prediction,
    at_least,
    fewest_bits,
)
from dit_accel.profile import Profile, Rung
from dit_accel.steering import Band

SLACK_STEP_DB, MOST_SLACK_DB = 0.25, 6.0  # that is looked for


class TargetError(ValueError):
    """A target that this profile cannot promise."""


@dataclass(frozen=True)
class Slack:
    """What may be taken off the quality when the plan of each clip is chosen for its own text.

    A plan that is promised for one text counts all of calibration's clips, shifted to it; the rare
    ones far below keep every choice careful. What is promised is the choice as a whole: `db` is the
    most by which each may be bolder, so that of calibration's own clips, each with the plan that
    its text gets, enough still reach the quality; `reach` is the share of which one can be sure.
    """

    db: float = 0.0
    reach: float | None = None

    @classmethod
    def of(cls, profile: Profile, quality: float, coverage: float = COVERAGE) -> Slack:
        """Of a profile that is for no text in particular; none where it has few clips, or
        does not know how hard texts are.

        Args:
            profile: with rungs.
            quality: PSNR in dB.
            coverage: share of clips.
        """
        hard, rungs = profile.difficulty, profile.rungs
        number = len(hard.known) if hard is not None else 0
        if hard is None or number < MANY or not rungs:
            return cls()
        enough = next((c for c in range(number + 1) if at_least(c, number) >= coverage), number + 1)
        order = sorted(rungs, key=lambda rung: len(rung.computed))
        psnr = torch.stack([rung.psnr_db.double() for rung in order])
        reaches = psnr >= quality
        gained = torch.stack([hard.shifted(row, 0.0) for row in psnr]).sort(1).values
        moved = torch.stack([hard.shift(row) for row in psnr])[:, None] * hard.known
        found = cls()
        for step in range(int(MOST_SLACK_DB / SLACK_STEP_DB) + 1):
            wanted = (quality - step * SLACK_STEP_DB - moved).contiguous()
            counts = number - torch.searchsorted(gained, wanted)  # (plans, clips)
            chosen = (counts >= enough).double().argmax(0)
            planned = (counts >= enough).any(0)
            kept = reaches.gather(0, chosen[None])[0] | ~planned
            reach = at_least(int(kept.sum()), number)
            if reach < coverage:
                break
            found = cls(step * SLACK_STEP_DB, reach)
        return found


def for_quality(
    profile: Profile,
    quality: float,
    coverage: float = COVERAGE,
    *,
    slack: Slack | None = None,
) -> Decision:
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
    if not profile.rungs:
        raise TargetError("the profile has no rungs; calibrate with speedups to promise a quality")
    slack = slack or Slack()
    best: tuple[float, Rung, float] | None = None
    for rung in profile.rungs:
        reach = Outlook.of(rung).promise(quality - slack.db)
        speed = profile.schedule.total / len(rung.computed)
        if reach >= coverage and (best is None or speed > best[0]):
            best = speed, rung, reach
    if best is None:
        return whole(profile.schedule, quality, profile)
    _, rung, reach = best
    return _decision(profile, rung, slack.reach if slack.db else reach)


def for_speedup(profile: Profile, speedup: float) -> Decision:
    """The plan whose number of computed steps comes nearest to a speedup.

    Args:
        profile: a rung is taken where one is as near as whole steps allow, else a plan is made.
        speedup: steps over computed steps, >= 1.

    Raises:
        ValueError: the speedup is out of range.
    """
    total = profile.schedule.total
    if not 1 <= speedup <= total / 2:
        raise ValueError(f"speedup is {speedup}; accepted: 1 to {total / 2:g} at {total} steps")
    counts = (math.floor(total / speedup), math.ceil(total / speedup))
    count = min(counts, key=lambda n: abs(total / n - speedup) if n else math.inf)
    if count >= total:
        return whole(profile.schedule, None, profile)
    rung = next((rung for rung in profile.rungs if len(rung.computed) == count), None)
    if rung is not None:
        return _decision(profile, rung, None)
    return carried(profile, profile.schedule, speedup=total / count)


def _decision(profile: Profile, rung: Rung, reach: float | None) -> Decision:
    schedule, plan, outlook = profile.schedule, profile.plan_of(rung), Outlook.of(rung)
    speedup, computed = schedule.total / outlook.count, float(outlook.count)
    prediction = Prediction(speedup, computed, outlook.mean, *outlook.interval, reach)
    return Decision(
        plan, schedule.mix, tuple(schedule.times.tolist()), prediction, _bands(rung),
        fewest_bits=fewest_bits(plan, profile.field, float(rung.latents_db.mean())),
    )  # fmt: skip


def _bands(rung: Rung) -> dict[int, Band]:
    """By computed step, from the third on: before, there is no line."""
    places = zip(rung.computed, rung.surprise.tolist(), rung.spread.tolist(), strict=True)
    return {step: Band(mean, spread) for step, mean, spread in list(places)[2:]}


def check_choice(names: Sequence[tuple[str, float | None]]) -> None:
    """Refuse more than one target.

    Raises:
        ValueError: naming those that were given.
    """
    given = [f"{name}={value:g}" for name, value in names if value is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are given; accepted: one of them")
