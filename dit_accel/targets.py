"""From a profile and a target to a plan, with what it promises: decided before the first step.

A quality is a bound for every clip, not for their mean: `coverage` of the clips must reach it. The
profile has, for every plan of its ladder, what each calibration prompt got; a new prompt is taken
to be one more of them. Where they are many, their own distribution is believed, which has a long
tail downwards: the share of all clips that reach the quality is, with 90 % confidence, at least
what the share of those counted says (Clopper and Pearson 1934). Where they are few, a normal one
with Student's t. Among all plans, and all scores at which a run may turn careful, the one with the
greatest speed that keeps the promise is taken. A speed is met as nearly as whole steps allow;
nothing turns careful then.

Knows numbers; no tensors of a model. Ours.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy import stats

from dit_accel.packing import BITS, typical_error
from dit_accel.planner import Field, evenly, fit, noise_energy, search, turning
from dit_accel.plans import Plan, Schedule
from dit_accel.profile import Profile, Rung
from dit_accel.steering import Band, Steering

COVERAGE = 0.95
INTERVAL = 0.90
CONFIDENCE = 0.90  # that the share of clips is as promised, where it is counted
MANY = 45  # prompts, of which all reach a quality: from there on 95 % are sure enough
UNKNOWN_DB = 6.0  # spread over prompts, where none was measured
PACKED_DB = 6.0  # what packing is foretold to leave, below what a plan leaves (docs/planning.md)
UNREFINED_DB = 4.0  # what refining gains: taken off where a plan rests on inner products alone


_ROUNDS = 12  # of the search for a plan that begins near one that is known
_SHARES = (0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8)  # of the steps, computed


class TargetError(ValueError):
    """A target that this profile cannot promise."""


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
            low, high = _ends_of(rest)
            return centre + low, centre + high
        half = _half(max(self.left, 0.3) * math.sqrt(1 + 1 / max(number, 1)), number)
        return centre - half, centre + half

    def promise(self, quality: float) -> float:
        """Share of clips that reach the quality, of which one can be sure."""
        number = len(self.psnr_db)
        if number < MANY:
            return statistics.fmean(self.reach(quality, score) for score in self.scores)
        reached = sum(psnr >= quality for psnr in self.psnr_db)
        least = stats.beta.ppf(1 - CONFIDENCE, reached, number - reached + 1) if reached else 0.0
        return float(least)

    @property
    def interval(self) -> tuple[float, float]:
        """Between which a clip's PSNR lies with 90 % probability, before its run."""
        if len(self.psnr_db) >= MANY:
            return _ends_of(self.psnr_db)
        centre = statistics.fmean(self.at(score) for score in self.scores)
        spread = math.hypot(self.left, statistics.pstdev([self.at(s) for s in self.scores]))
        half = _half(spread, len(self.scores))
        return centre - half, centre + half

    def reach(self, quality: float, score: float) -> float:
        """Probability that a prompt with this score reaches the quality."""
        number = len(self.scores)
        width = max(self.left, 0.3) * math.sqrt(1 + 1 / max(number, 1))
        return float(stats.t.cdf((self.at(score) - quality) / width, max(number - 2, 1)))


def _ends_of(values: Sequence[float]) -> tuple[float, float]:
    """Between which nine tenths of many values lie."""
    low, *_, high = statistics.quantiles(values, n=20, method="inclusive")
    return low, high


def _half(spread: float, number: int) -> float:
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


def for_quality(
    profile: Profile, quality: float, coverage: float = COVERAGE, *, static: bool = False
) -> Decision:
    """The fastest plan by which `coverage` of the clips reach `quality` dB.

    Args:
        profile: with rungs.
        quality: PSNR in dB against the uncached clip, > 0.
        coverage: share of clips, above 0, below 1.
        static: whether runs may not turn careful on the way.

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
    best: tuple[float, Rung, Rung | None, float, float] | None = None
    for rung in profile.rungs:
        ends = () if static else _ends(profile, rung)
        ways = (way for end in (None, *ends) for way in _ways(profile, rung, end, quality))
        for speed, second, alarm, reach in ways:
            if reach >= coverage and (best is None or speed > best[0]):
                best = speed, rung, second, alarm, reach
    if best is None:
        return _everything(profile.schedule, quality, profile)
    _, rung, second, alarm, reach = best
    return _decision(profile, rung, second, alarm, reach)


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
        return _everything(profile.schedule, None, profile)
    rung = next((rung for rung in profile.rungs if len(rung.computed) == count), None)
    if rung is not None:
        return _decision(profile, rung, None, math.inf, None)
    return carried(profile, profile.schedule, speedup=total / count)


def carried(
    profile: Profile,
    schedule: Schedule,
    *,
    quality: float | None = None,
    speedup: float | None = None,
    coverage: float = COVERAGE,
) -> Decision:
    """A decision for another number of steps or another guidance than was calibrated.

    Plans are made anew from the field, interpolated in the timestep. What they promise is what the
    rung of about as many computed steps really gave, moved by how the foretold errors differ, less
    what refining had gained.

    Raises:
        ValueError: neither or both of the targets are given, or one is out of range.
    """
    if (quality is None) == (speedup is None):
        raise ValueError("accepted: one of quality and speedup")
    if quality is not None and not 0 < quality < math.inf:
        raise ValueError(f"quality is {quality}; accepted: a number of dB above 0")
    field = profile.field_for(schedule)
    total = schedule.total
    if speedup is not None:
        if not 1 <= speedup <= total / 2:
            raise ValueError(f"speedup is {speedup}; accepted: 1 to {total / 2:g} at {total} steps")
        counts = [max(2, round(total / speedup))]
    else:
        known = [len(rung.computed) for rung in profile.rungs]
        counts = sorted({*known, *(max(2, round(total * share)) for share in _SHARES)})
    for count in (count for count in counts if count < total):  # the fastest first
        computed = _mapped(profile, schedule, count)
        decision = _planned(field, *fit(computed, field), profile, quality)
        if quality is None or (
            decision.prediction and (decision.prediction.reach or 0) >= coverage
        ):
            better = search(field, count, start=computed, rounds=_ROUNDS, candidates=24)
            return _planned(field, *better, profile, quality)
    return _everything(schedule, quality, profile)


def _mapped(profile: Profile, schedule: Schedule, count: int) -> list[int]:
    """Computed steps at the timesteps of the rung of about as many; evenly where there is none.

    What a plan leaves depends on how many predictions there are and where, far more than on how
    many steps are served between them.
    """
    total = schedule.total
    if not profile.rungs:
        return list(evenly(total, count))
    own, times = _nearest(profile, count).computed, profile.schedule.times
    found: list[int] = [0]
    for place in range(1, count):
        at = place * (len(own) - 1) / (count - 1)
        low = min(int(at), len(own) - 2)
        time = torch.lerp(times[own[low]], times[own[low + 1]], at - low)
        near = (schedule.times - time).abs().argsort().tolist()
        found.append(next(step for step in near if step not in found))
    return sorted(found)


def _nearest(profile: Profile, count: int) -> Rung:
    """The rung of about as many computed steps."""
    return min(profile.rungs, key=lambda rung: abs(len(rung.computed) - count))


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
        half = _half(spread, len(pairs))
        low, high = centre - half, centre + half
    prediction = Prediction(
        statistics.fmean(speeds), statistics.fmean(o.count for o, _ in pairs), centre, low, high,
        reach,
    )  # fmt: skip
    turn = rung.computed[_begun(rung, profile) - 1]
    ends = [end for end in (rung, second) if end is not None]
    fewest = max(
        _fewest_bits(profile.plan_of(end), profile.field, float(end.latents_db.mean()))
        for end in ends
    )
    return Decision(
        profile.plan_of(rung), profile.schedule.mix, tuple(profile.schedule.times.tolist()),
        prediction, _bands(rung), profile.plan_of(second) if second is not None else None,
        turn, alarm, outlooks=(first, after), fewest_bits=fewest,
    )  # fmt: skip


def _fewest_bits(plan: Plan, field: Field, left_db: float) -> int:
    """Bits whose rounding leaves far less in the latents than the plan does."""
    energy = noise_energy(plan, field)
    for bits in reversed(BITS):
        if _decibels(energy * typical_error(bits) ** 2) >= left_db + PACKED_DB:
            return bits
    return BITS[0]


def _bands(rung: Rung) -> dict[int, Band]:
    """By computed step, from the third on: before, there is no line."""
    places = zip(rung.computed, rung.surprise.tolist(), rung.spread.tolist(), strict=True)
    return {step: Band(mean, spread) for step, mean, spread in list(places)[2:]}


def _begun(rung: Rung, profile: Profile) -> int:
    """How many of its computed steps a rung shares with its careful end."""
    turn = turning(rung.computed, profile.schedule.total)
    return sum(step <= turn for step in rung.computed)


def _planned(
    field: Field, plan: Plan, energy: float, profile: Profile, quality: float | None
) -> Decision:
    """A plan that was not carried out in calibration, and what it may be expected to give."""
    note = "Planned from inner products; no run of this plan was made in calibration."
    count, schedule, foretold = len(plan.computed), field.schedule, _decibels(energy)
    reach: float | None
    if profile.rungs:
        near = _nearest(profile, count)
        gain = foretold - _decibels(fit(near.computed, profile.field)[1])
        if len(near.computed) == count:
            gain = min(gain, 0.0)  # finer steps of the same places: nothing is won by them
        moved = dataclasses.replace(near, psnr_db=near.psnr_db + gain - UNREFINED_DB)
        outlook = Outlook.of(moved)
        centre, (low, high) = statistics.fmean(outlook.psnr_db), outlook.interval
        left = float(near.latents_db.mean()) + gain - UNREFINED_DB
        reach = outlook.promise(quality) if quality is not None else None
    else:
        half = UNKNOWN_DB * float(stats.norm.ppf(0.5 + INTERVAL / 2))
        centre, low, high = foretold, foretold - half, foretold + half
        left = foretold
        sure = stats.norm.cdf((foretold - (quality or 0.0)) / UNKNOWN_DB)
        reach = float(sure) if quality is not None else None
    prediction = Prediction(field.total / count, count, centre, low, high, reach)
    return Decision(
        plan, schedule.mix, tuple(schedule.times.tolist()), prediction, {}, notes=(note,),
        fewest_bits=_fewest_bits(plan, field, left),
    )  # fmt: skip


def _decibels(energy: float) -> float:
    return -10 * math.log10(max(energy, 1e-12))


def _everything(schedule: Schedule, quality: float | None, profile: Profile) -> Decision:
    """Every step computed: what is left where no plan keeps the promise."""
    notes: tuple[str, ...] = ()
    if quality is not None:
        known = [float(r.psnr_db.mean()) for r in profile.rungs]
        best = f" (the best gives {max(known):.1f} dB on average)" if known else ""
        notes = (
            f"No plan of this profile reaches {quality:g} dB for enough clips{best}: every step is "
            "computed.",
        )
    plan = Plan(schedule.total, {})
    exact = Prediction(1.0, schedule.total, math.inf, math.inf, math.inf, 1.0)
    return Decision(plan, schedule.mix, tuple(schedule.times.tolist()), exact, {}, notes=notes)


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


def check_choice(names: Sequence[tuple[str, float | None]]) -> None:
    """Refuse more than one target.

    Raises:
        ValueError: naming those that were given.
    """
    given = [f"{name}={value:g}" for name, value in names if value is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are given; accepted: one of them")
