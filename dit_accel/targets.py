"""From a profile and a target to a plan, with what it promises: decided before the first step.

A quality is a bound for every clip, not for their mean: `coverage` of the clips must reach it
(`outlook.py` tells which plans keep that). Among all plans, and all scores at which a run may turn
careful, the one with the greatest speed that keeps the promise is taken. A speed is met as nearly
as whole steps allow; nothing turns careful then. Other steps than were calibrated: `carrying.py`.

Knows numbers; no tensors of a model. Ours.
"""

from __future__ import annotations

import math
import statistics
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
    half_width,
)
from dit_accel.planner import turning
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
        """Of a profile that is for no text in particular; none where it has few clips, plans that
        turn careful, or does not know how hard texts are.

        Args:
            profile: with rungs.
            quality: PSNR in dB.
            coverage: share of clips.
        """
        hard, rungs = profile.difficulty, profile.rungs
        number = len(hard.known) if hard is not None else 0
        if hard is None or number < MANY or profile.careful or not rungs:
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
    static: bool = False,
    slack: Slack | None = None,
) -> Decision:
    """The fastest plan by which `coverage` of the clips reach `quality` dB.

    Args:
        profile: with rungs.
        quality: PSNR in dB against the uncached clip, > 0.
        coverage: share of clips, above 0, below 1.
        static: whether runs may not turn careful on the way.
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
    best: tuple[float, Rung, Rung | None, float, float] | None = None
    for rung in profile.rungs:
        ends = () if static else _ends(profile, rung)
        ways = (
            way for end in (None, *ends) for way in _ways(profile, rung, end, quality - slack.db)
        )
        for speed, second, alarm, reach in ways:
            if reach >= coverage and (best is None or speed > best[0]):
                best = speed, rung, second, alarm, reach
    if best is None:
        return whole(profile.schedule, quality, profile)
    _, rung, second, alarm, reach = best
    return _decision(profile, rung, second, alarm, slack.reach if slack.db else reach)


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
        return _decision(profile, rung, None, math.inf, None)
    return carried(profile, profile.schedule, speedup=total / count)


def _ends(profile: Profile, rung: Rung) -> tuple[Rung, ...]:
    """What a rung may turn to: its beginning, and more computed steps after it, which may be early
    ones as well."""
    begun = _begun(rung, profile)
    return tuple(
        end
        for end in profile.careful
        if end.computed[:begun] == rung.computed[:begun] and len(end.computed) > len(rung.computed)
    )


def _ways(
    profile: Profile, rung: Rung, end: Rung | None, quality: float
) -> list[tuple[float, Rung | None, float, float]]:
    """(speed, careful end, alarm, reach) of a rung alone, and with its end at several alarms."""
    total, first = profile.schedule.total, Outlook.of(rung)
    scores = first.scores
    alone = first.promise(quality)
    found: list[tuple[float, Rung | None, float, float]] = [
        (total / first.count, None, math.inf, alone)
    ]
    if end is None:
        return found
    second = Outlook.of(end)
    for alarm in sorted({round(s, 2) for s in scores})[:-1]:
        turned = [s > alarm for s in scores]
        reach = statistics.fmean(
            (second if turn else first).reach(quality, s)
            for s, turn in zip(scores, turned, strict=True)
        )
        speed = statistics.fmean(total / (second if t else first).count for t in turned)
        found.append((speed, end, alarm, reach))
    return found


def _decision(
    profile: Profile, rung: Rung, second: Rung | None, alarm: float, reach: float | None
) -> Decision:
    total = profile.schedule.total
    first = Outlook.of(rung)
    after = Outlook.of(second) if second is not None else first
    pairs = [(after if s > alarm else first, s) for s in first.scores]
    speeds = [total / outlook.count for outlook, _ in pairs]
    centre = statistics.fmean(outlook.at(s) for outlook, s in pairs)
    low, high = first.interval
    if second is not None:
        spread = math.sqrt(statistics.fmean(o.left**2 + (o.at(s) - centre) ** 2 for o, s in pairs))
        half = half_width(spread, len(pairs))
        low, high = centre - half, centre + half
    prediction = Prediction(
        statistics.fmean(speeds), statistics.fmean(o.count for o, _ in pairs), centre, low, high,
        reach,
    )  # fmt: skip
    turn = rung.computed[_begun(rung, profile) - 1]
    ends = [end for end in (rung, second) if end is not None]
    fewest = max(
        fewest_bits(profile.plan_of(end), profile.field, float(end.latents_db.mean()))
        for end in ends
    )
    return Decision(
        profile.plan_of(rung), profile.schedule.mix, tuple(profile.schedule.times.tolist()),
        prediction, _bands(rung), profile.plan_of(second) if second is not None else None,
        turn, alarm, outlooks=(first, after), fewest_bits=fewest,
    )  # fmt: skip


def _bands(rung: Rung) -> dict[int, Band]:
    """By computed step, from the third on: before, there is no line."""
    places = zip(rung.computed, rung.surprise.tolist(), rung.spread.tolist(), strict=True)
    return {step: Band(mean, spread) for step, mean, spread in list(places)[2:]}


def _begun(rung: Rung, profile: Profile) -> int:
    """How many of its computed steps a rung shares with its careful end."""
    turn = turning(rung.computed, profile.schedule.total)
    return sum(step <= turn for step in rung.computed)


def check_choice(names: Sequence[tuple[str, float | None]]) -> None:
    """Refuse more than one target.

    Raises:
        ValueError: naming those that were given.
    """
    given = [f"{name}={value:g}" for name, value in names if value is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are given; accepted: one of them")
