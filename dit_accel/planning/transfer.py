"""Plans for other steps or another guidance than calibrated, with what may be expected of them.

They are made anew from the profile's field, interpolated in the timestep, and begin at the
timesteps of the rung of about as many computed steps. None of them was carried out in calibration:
what they promise is what that rung really gave, moved by how the foretold errors differ, less what
refining had gained.

Knows numbers; no tensors of a model. Ours.
"""

from __future__ import annotations

import dataclasses
import math
import statistics

import torch
from scipy import stats

from dit_accel.planning.plan import Plan, SamplerCoefficients
from dit_accel.planning.prediction import (
    INTERVAL,
    UNKNOWN_DB,
    PlanChoice,
    QualityDistribution,
    QualityEstimate,
    decibels,
    min_bits,
)
from dit_accel.planning.profile import CandidatePlan, Profile
from dit_accel.planning.search import ErrorModel, evenly, fit, search

COVERAGE = 0.95  # of the clips, that reach a quality
UNREFINED_DB = 4.0  # what refining gains: taken off where a plan rests on inner products alone
_ROUNDS = 12  # of the search for a plan that begins near one that is known
_SHARES = (0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8)  # of the steps, computed


def transfer_plan(
    profile: Profile,
    schedule: SamplerCoefficients,
    *,
    quality: float | None = None,
    speedup: float | None = None,
    coverage: float = COVERAGE,
) -> PlanChoice:
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
    total = schedule.num_steps
    if speedup is not None:
        if not 1 <= speedup <= total / 2:
            raise ValueError(f"speedup is {speedup}; accepted: 1 to {total / 2:g} at {total} steps")
        counts = [max(2, round(total / speedup))]
    else:
        known = [len(candidate.computed) for candidate in profile.candidates]
        counts = sorted({*known, *(max(2, round(total * share)) for share in _SHARES)})
    for count in (count for count in counts if count < total):  # the fastest first
        computed = _mapped(profile, schedule, count)
        choice = _planned(field, *fit(computed, field), profile, quality)
        if quality is None or (choice.prediction and (choice.prediction.reach or 0) >= coverage):
            better = search(field, count, start=computed, rounds=_ROUNDS, candidates=24)
            return _planned(field, *better, profile, quality)
    return compute_all(schedule, quality, profile)


def _mapped(profile: Profile, schedule: SamplerCoefficients, count: int) -> list[int]:
    """Computed steps at the timesteps of the rung of about as many; evenly where there is none.

    What a plan leaves depends on how many predictions there are and where, far more than on how
    many steps are served between them.
    """
    total = schedule.num_steps
    if not profile.candidates:
        return list(evenly(total, count))
    own, times = _nearest(profile, count).computed, profile.schedule.timesteps
    found: list[int] = [0]
    for place in range(1, count):
        at = place * (len(own) - 1) / (count - 1)
        low = min(int(at), len(own) - 2)
        time = torch.lerp(times[own[low]], times[own[low + 1]], at - low)
        near = (schedule.timesteps - time).abs().argsort().tolist()
        found.append(next(step for step in near if step not in found))
    return sorted(found)


def _nearest(profile: Profile, count: int) -> CandidatePlan:
    """The rung of about as many computed steps."""
    return min(profile.candidates, key=lambda candidate: abs(len(candidate.computed) - count))


def _planned(
    field: ErrorModel, plan: Plan, energy: float, profile: Profile, quality: float | None
) -> PlanChoice:
    """A plan that was not carried out in calibration, and what it may be expected to give."""
    note = "Planned from inner products; no run of this plan was made in calibration."
    count, schedule, foretold = len(plan.computed), field.schedule, decibels(energy)
    reach: float | None
    if profile.candidates:
        near = _nearest(profile, count)
        gain = foretold - decibels(fit(near.computed, profile.field)[1])
        if len(near.computed) == count:
            gain = min(gain, 0.0)  # finer steps of the same places: nothing is won by them
        moved = dataclasses.replace(near, psnr_db=near.psnr_db + gain - UNREFINED_DB)
        distribution = QualityDistribution.of(moved)
        centre, (low, high) = statistics.fmean(distribution.psnr_db), distribution.interval
        left = float(near.latents_db.mean()) + gain - UNREFINED_DB
        reach = distribution.promise(quality) if quality is not None else None
    else:
        half = UNKNOWN_DB * float(stats.norm.ppf(0.5 + INTERVAL / 2))
        centre, low, high = foretold, foretold - half, foretold + half
        left = foretold
        sure = stats.norm.cdf((foretold - (quality or 0.0)) / UNKNOWN_DB)
        reach = float(sure) if quality is not None else None
    prediction = QualityEstimate(field.num_steps / count, count, centre, low, high, reach)
    return PlanChoice(
        plan, schedule.branch_weights, tuple(schedule.timesteps.tolist()), prediction, {},
        notes=(note,),
        min_bits=min_bits(plan, field, left),
    )  # fmt: skip


def compute_all(
    schedule: SamplerCoefficients, quality: float | None, profile: Profile
) -> PlanChoice:
    """Every step computed: what is left where no plan keeps the promise."""
    notes: tuple[str, ...] = ()
    if quality is not None:
        known = [float(r.psnr_db.mean()) for r in profile.candidates]
        best = f" (the best gives {max(known):.1f} dB on average)" if known else ""
        notes = (
            f"No plan of this profile reaches {quality:g} dB for enough clips{best}: every step is "
            "computed.",
        )
    plan = Plan(schedule.num_steps, {})
    exact = QualityEstimate(1.0, schedule.num_steps, math.inf, math.inf, math.inf, 1.0)
    return PlanChoice(
        plan, schedule.branch_weights, tuple(schedule.timesteps.tolist()), exact, {}, notes=notes
    )
