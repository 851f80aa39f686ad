"""Plans for other steps or another guidance than calibrated, and for a profile without candidates.

In: a profile, the sampler's coefficients in the run, a target. Out: a `PlanChoice`. The plan is
made anew from the error model; the search starts at the timesteps of the nearest candidate. The new
plan was never carried out. Its predicted PSNR is the candidate's, shifted by the difference of the
two predicted errors. The PSNR of its latents is at most the one that its own inner products
predict.
Knows numbers; no tensors of a model.
Source: ours (docs/how-it-works.md, section 5).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from dataclasses import dataclass, field
from functools import lru_cache

import torch

from dit_accel.planning import prediction
from dit_accel.planning.candidate import CandidatePlan
from dit_accel.planning.choice import PlanChoice, QualityEstimate
from dit_accel.planning.error_model import ErrorModel
from dit_accel.planning.plan import Plan, SamplerCoefficients
from dit_accel.planning.prediction import COVERAGE, Evidence, QualityDistribution
from dit_accel.planning.profile import Profile
from dit_accel.planning.search import fit, search
from dit_accel.planning.spacing import with_fixed

# The computed steps that runs suggest replace the prior's if their predicted gain, summed over both
# error models, is larger. Steps with a smaller predicted gain were worse as often as better
# (research/LOG.md).
LEARNT_DB = 0.5
UNREFINED_DB = 4.0  # what a plan loses because it was not refined
# The most clips of a candidate for plans between candidates. With more clips, such plans reach a
# lower PSNR than the candidates (research/LOG.md).
MOST_BETWEEN_CLIPS = 8
_NOTE = "Planned from {}; calibration never ran this plan itself."
_RIDGE = 3e-2  # penalty in a fit of weights that no run has tried (research/LOG.md)
_MOST_SEARCHED = 64  # search results that are cached
_SHARES = (0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8)  # computed steps over all steps


def transfer_plan(
    profile: Profile, sampler: SamplerCoefficients, *, quality: float | None = None,
    speedup: float | None = None,
) -> PlanChoice:  # fmt: skip
    """The plan of a run that calibration did not carry out.

    Raises:
        ValueError: neither or both of the targets are given, or one is out of range.
        ProfileError: the run has another number of components than the profile.
    """
    if (quality is None) == (speedup is None):
        raise ValueError(
            f"quality is {quality} and speedup is {speedup}; accepted: one of them, and None for "
            "the other"
        )
    if quality is not None and not 0 < quality < math.inf:
        raise ValueError(f"quality is {quality}; accepted: a number of dB above 0")
    error_model, n = profile.error_model_for(sampler), sampler.num_steps
    if not profile.candidates:
        return _without_candidates(profile, error_model, quality, speedup)
    if speedup is not None:
        counts = [computed_steps(speedup, n)]
    else:
        known = [len(candidate.computed) for candidate in profile.candidates]
        counts = sorted({*known, *_counts(n)})
    for count in (count for count in counts if count < n):  # the fastest first
        computed = _mapped(profile, sampler, count)
        choice = _choice_of(error_model, *fit(computed, error_model), profile, quality)
        if quality is None or _reaches(choice):
            better = search(error_model, count, start=computed)
            return _choice_of(error_model, *better, profile, quality)
    return compute_all(sampler, quality, profile)


def _without_candidates(
    profile: Profile, error_model: ErrorModel, quality: float | None, speedup: float | None
) -> PlanChoice:
    """The choice for a profile that has no candidate plans.

    More computed steps leave less error, so bisection finds the count for a quality. If runs were
    learnt from beside a prior, they influence only which steps are computed; the weights are the
    prior's. Plans with weights learnt from runs were worse than the prior's as often as better
    (research/LOG.md).
    """
    known, before = _by_content(error_model), None
    if profile.prior is not None:
        error_model = profile.prior.error_model_for(error_model.sampler)
        before = _by_content(error_model)

    def made(count: int) -> PlanChoice:
        plan, energy = fit(_steps(known, count, before), error_model, ridge=_RIDGE)
        # The learnt steps are better by both models together. So their predicted error is at most
        # that of the prior's own steps.
        if before is not None:
            energy = min(energy, fit(_steps(before, count), error_model, ridge=_RIDGE)[1])
        return _choice_of(error_model, plan, energy, profile, quality)

    n = error_model.num_steps
    if speedup is not None:
        count = computed_steps(speedup, n)
        return made(count) if count < n else compute_all(error_model.sampler, None, profile)
    counts, best = _counts(n), None
    while counts:  # bisection for the smallest count that reaches the quality
        middle = len(counts) // 2
        choice = made(counts[middle])
        reaches = _reaches(choice)
        best = choice if reaches else best
        counts = counts[:middle] if reaches else counts[middle + 1 :]
    return best or compute_all(error_model.sampler, quality, profile)


def steps_beside(
    error_model: ErrorModel, others: ErrorModel, by_others: tuple[int, ...]
) -> tuple[int, ...]:
    """The computed steps that suit both a few clips of a model and other models.

    They minimise the product of the two errors. If the gain over `by_others` is at most
    `LEARNT_DB`, the steps are `by_others`.

    Args:
        error_model: from the clips.
        others: error model from the other models, for the same sampler.
        by_others: the best steps according to the other models alone.
    """
    found = search(error_model, len(by_others), beside=others, usual=by_others)[0].computed
    both, before = (
        sum(prediction.decibels(fit(steps, model)[1]) for model in (error_model, others))
        for steps in (found, by_others)
    )
    return found if both - before > LEARNT_DB else by_others


def expected_db(
    computed: tuple[int, ...], error_model: ErrorModel, evidence: Evidence
) -> tuple[float, float] | None:
    """What is expected of a plan before any clip is made with it, in dB.

    Returns:
        The mean of its PSNR over clips, and the standard deviation of this mean between models;
        None if too few models were measured for a deviation.
    """
    if math.isinf(evidence.between_db):
        return None
    predicted = prediction.decibels(fit(computed, error_model, ridge=_RIDGE)[1])
    return predicted + evidence.offset_db, evidence.between_db


@dataclass(frozen=True)
class _ByContent:
    """An error model as a cache key: two of them are equal if their numbers are."""

    digest: bytes
    error_model: ErrorModel = field(compare=False)


def _by_content(error_model: ErrorModel) -> _ByContent:
    sampler, found = error_model.sampler, hashlib.blake2b(digest_size=16)
    for tensor in (error_model.gram, error_model.error_gain, sampler.coefficients):
        found.update(tensor.double().contiguous().numpy().tobytes())
    rest = error_model.error_memory, tuple(sampler.timesteps.tolist()), sampler.branch_weights
    found.update(repr((*rest, sampler.second)).encode())
    return _ByContent(found.digest(), error_model)


@lru_cache(maxsize=_MOST_SEARCHED)
def _steps(known: _ByContent, count: int, others: _ByContent | None = None) -> tuple[int, ...]:
    """The computed steps that `search` finds.

    They are cached, because a pipeline that is accelerated anew for each clip needs them again.
    """
    if others is None:
        return search(known.error_model, count)[0].computed
    return steps_beside(known.error_model, others.error_model, _steps(others, count))


def _counts(num_steps: int) -> list[int]:
    """Numbers of computed steps that are tried for a quality."""
    return sorted({max(2, round(num_steps * share)) for share in _SHARES})


def _reaches(choice: PlanChoice) -> bool:
    return (choice.prediction.reach or 0) >= COVERAGE


def computed_steps(speedup: float, num_steps: int) -> int:
    """The number of computed steps that comes nearest to a speedup.

    Raises:
        ValueError: as in `check_speedup`.

    Example:
        >>> computed_steps(4, num_steps=50)  # 50 / 13 = 3.85, 50 / 12 = 4.17
        13
    """
    check_speedup(speedup, num_steps)
    exact = num_steps / speedup
    counts = max(2, math.floor(exact)), max(2, math.ceil(exact))
    return min(counts, key=lambda count: abs(num_steps / count - speedup))


def check_speedup(speedup: float, num_steps: int) -> None:
    """Refuse a speedup that no plan has.

    Raises:
        ValueError: it is below 1, or would leave fewer than two computed steps.
    """
    most = num_steps / 2
    if not 1 <= speedup <= most:
        raise ValueError(f"speedup is {speedup}; accepted: 1 to {most:g} at {num_steps} steps")


def _mapped(profile: Profile, sampler: SamplerCoefficients, count: int) -> list[int]:
    """Computed steps near the timesteps at which the nearest candidate computes.

    The timesteps of the computed predictions matter far more than the number of steps between them.
    """
    own, times = _nearest(profile, count).computed, profile.sampler.timesteps
    found: list[int] = [0]
    for place in range(1, count):
        at = place * (len(own) - 1) / (count - 1)
        low = min(int(at), len(own) - 2)
        time = torch.lerp(times[own[low]], times[own[low + 1]], at - low)
        near = (sampler.timesteps - time).abs().argsort().tolist()
        found.append(next(step for step in near if step not in found))
    return with_fixed(found, sampler.fixed_steps)


def _nearest(profile: Profile, count: int) -> CandidatePlan:
    """The candidate whose number of computed steps is nearest to `count`."""
    return min(profile.candidates, key=lambda candidate: abs(len(candidate.computed) - count))


def _shifted(profile: Profile, count: int, predicted_db: float) -> CandidatePlan:
    """The nearest candidate, with the scores that its clips should get with another plan.

    Args:
        count: computed steps of the other plan.
        predicted_db: its PSNR according to the error model.
    """
    near = _nearest(profile, count)
    difference = predicted_db - prediction.decibels(fit(near.computed, profile.error_model)[1])
    if len(near.computed) == count:
        difference = min(difference, 0.0)  # finer steps at the same places gain nothing
    # The candidate may be better than its inner products predict, because it was refined. That gain
    # holds for the calibrated steps only. So the plan's latents get at most `predicted_db`.
    own_difference = predicted_db - float(near.latents_db.mean())
    shift = min(difference, own_difference) - UNREFINED_DB
    moved = near.with_psnr(near.psnr_db + shift)
    return dataclasses.replace(moved, latents_db=near.latents_db + shift)


def knows_between(profile: Profile) -> bool:
    """Whether `between` is valid: only if the candidates have few clips, and so gain little by
    refining."""
    clips = [len(one.psnr_db) for one in profile.candidates]
    return 0 < max(clips, default=0) <= MOST_BETWEEN_CLIPS


def between(profile: Profile, count: int) -> CandidatePlan:
    """The scores that calibration's clips should get with a plan of `count` computed steps.

    Their mean is interpolated between the candidates with fewer and with more computed steps. The
    profile must have both.

    Returns:
        The candidate with more computed steps, with these scores.
    """
    by_count = {len(one.computed): one for one in profile.candidates}
    low, high = max(k for k in by_count if k < count), min(k for k in by_count if k > count)
    one, other, share = by_count[low], by_count[high], (high - count) / (high - low)
    moved = other.with_psnr(other.psnr_db - share * (other.psnr_db.mean() - one.psnr_db.mean()))
    lost = share * (other.latents_db.mean() - one.latents_db.mean())
    return dataclasses.replace(moved, latents_db=other.latents_db - lost)


def plan_between(profile: Profile, count: int, quality: float | None = None) -> PlanChoice:
    """A plan for a run as calibrated, made from the error model; `between` predicts its scores."""
    near, error_model = between(profile, count), profile.error_model
    found = search(error_model, count, start=_mapped(profile, profile.sampler, count))
    return _choice_of(error_model, *found, profile, quality, near)


def _choice_of(
    error_model: ErrorModel, plan: Plan, energy: float, profile: Profile, quality: float | None,
    near: CandidatePlan | None = None,
) -> PlanChoice:  # fmt: skip
    """The choice of a plan that was never carried out.

    Args:
        energy: the plan's predicted squared error, relative to the final latents.
        near: a candidate with the scores that calibration's clips should get; None: the nearest
            candidate, with shifted scores.
    """
    count, predicted_db = len(plan.computed), prediction.decibels(energy)
    reach: float | None
    offset, basis = 0.0, "transferred" if profile.candidates else "inner products"
    if profile.candidates:
        near = near or _shifted(profile, count, predicted_db)
        distribution = QualityDistribution.of(near, profile.measured)
        psnr, (low, high) = distribution.mean, distribution.interval
        latents_db = float(near.latents_db.mean())
        reach = distribution.guaranteed_share(quality) if quality is not None else None
    else:  # the PSNR of the latents is used for that of the frames, with a wide interval
        known = profile.evidence
        offset, latents_db = known.offset_db, predicted_db
        psnr = predicted_db + offset
        low, high = psnr - known.half_width, psnr + known.half_width
        reach = known.share(predicted_db, quality) if quality is not None else None
    return PlanChoice.of(
        plan, error_model.sampler,
        QualityEstimate(plan.num_steps / count, count, psnr, low, high, reach, offset, basis),
        notes=(_NOTE.format(profile.rests_on) if profile.candidates else profile.evidence.note,),
        min_bits=prediction.min_bits(plan, error_model, latents_db),
    )  # fmt: skip


def compute_all(
    sampler: SamplerCoefficients, quality: float | None, profile: Profile
) -> PlanChoice:
    """The choice to compute every step: no plan reaches the quality, or no speedup is wanted."""
    notes: tuple[str, ...] = ()
    if quality is not None:
        known = [float(candidate.psnr_db.mean()) for candidate in profile.candidates]
        best = f" (the best gives {max(known):.1f} dB on average)" if known else ""
        source = "of this profile" if profile.candidates else f"from {profile.evidence.words}"
        notes = (
            f"No plan {source} reaches {quality:g} dB for enough clips{best}: every step is "
            "computed.",
        )
    exact = QualityEstimate(1.0, sampler.num_steps, math.inf, math.inf, math.inf, 1.0)
    return PlanChoice.of(Plan(sampler.num_steps, {}), sampler, exact, notes=notes)
