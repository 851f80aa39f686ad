"""Chooses the plan of a run. API, CLI and evaluation all choose it here, and nowhere else.

In: a profile, the sampler's coefficients in the run, a target, the text and the size of the clips.
Out: a `PlanChoice`: the fastest plan with which 95 % of the clips reach a quality, or the plan
nearest to a speedup. A run with other steps or guidance gets a new plan (`planning/transfer.py`).
Knows numbers, and asks a scheduler for coefficients; no tensors of a model. Source: ours.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch

from dit_accel.core.interceptor import RunInfo
from dit_accel.planning import prediction
from dit_accel.planning.candidate import CandidatePlan
from dit_accel.planning.choice import ErrorBand, PlanChoice, QualityEstimate
from dit_accel.planning.margin import QualityMargin
from dit_accel.planning.plan import SamplerCoefficients, SecondExpert
from dit_accel.planning.prediction import COVERAGE, QualityDistribution
from dit_accel.planning.prior import profile_by_prior
from dit_accel.planning.profile import Profile
from dit_accel.planning.profile_file import ProfileError
from dit_accel.planning.sampler import planned_coefficients, response_of, set_timesteps
from dit_accel.planning.transfer import (
    between,
    check_speedup,
    compute_all,
    computed_steps,
    knows_between,
    plan_between,
    transfer_plan,
)

MIN_PLANNED_STEPS = 8  # a run with fewer has steps too far apart to extrapolate
_NOISE_NOTE = (
    "Candidate plans that weigh the starting noise were left out, because the input of this "
    "pipeline's denoiser is not the noise alone. Calibrate again for plans without the noise."
)
SPEEDUP_TOLERANCE = 0.005  # relative to the requested speedup; a larger difference gets a note


class TargetError(ValueError):
    """A target for which the profile has no measurements."""


@dataclass(frozen=True)
class Target:
    """What a run should reach: either a quality or a speedup.

    Args:
        quality: PSNR in dB against the uncached reference, > 0.
        speedup: steps over computed steps, >= 1.

    Raises:
        ValueError: neither or both are given.
    """

    quality: float | None = None
    speedup: float | None = None

    def __post_init__(self) -> None:
        if (self.quality is None) == (self.speedup is None):
            raise ValueError(
                f"quality is {self.quality} and speedup is {self.speedup}; accepted: one of them, "
                "and None for the other"
            )


def choose(
    profile: Profile, sampler: SamplerCoefficients | None, target: Target, *, static: bool = False,
    text: torch.Tensor | None = None, size: tuple[int, int, int] | None = None,
    noise: bool = True,
) -> PlanChoice:  # fmt: skip
    """Choose the plan of a run.

    Args:
        sampler: coefficients of the run; None: as calibrated.
        static: whether all runs with the same steps get the same plan, whatever their text.
        text: `(B, T)` pooled embeddings of the prompts; the quality is then guaranteed for these
            prompts.
        size: height, width and frames of the clips; None: as calibrated.
        noise: whether the run stores the noise that it starts from, so that a plan may weigh it.

    Raises:
        ValueError: the target is out of range, or the run has too few steps.
        ProfileError: the run has other branches than the profile.
    """
    run, given = sampler or profile.sampler, profile
    if not noise:
        profile = profile.without_noise()
    resized = size is not None and not profile.key.of_size(*size)
    for_prompts = profile if static else profile.for_text(text)
    margin = None
    if target.quality is not None and for_prompts is not profile and not resized:
        margin = QualityMargin.of(profile, target.quality)
    profile = for_prompts.for_other_size() if resized else for_prompts
    if needs_search(profile, run, target):
        choice = transfer_plan(profile, run, quality=target.quality, speedup=target.speedup)
    elif target.quality is not None:
        choice = for_quality(profile, target.quality, margin=margin)
    else:
        choice = for_speedup(profile, target.speedup or 1.0)
    if len(profile.candidates) < len(given.candidates):
        choice = dataclasses.replace(choice, notes=(*choice.notes, _NOISE_NOTE))
    predicted = dataclasses.replace(choice.prediction, rests_on=profile.rests_on)
    choice = dataclasses.replace(choice, prediction=predicted)
    return _with_difference(choice, target.speedup)


def _with_difference(choice: PlanChoice, speedup: float | None) -> PlanChoice:
    """The choice, with a note if no whole number of computed steps gives the speedup exactly."""
    n, count = choice.plan.num_steps, len(choice.plan.computed)
    if speedup is None or abs(n / count - speedup) <= SPEEDUP_TOLERANCE * speedup:
        return choice
    note = (
        f"With whole steps, a speedup of {speedup:g} becomes {n / count:.2f}: {count} of {n} steps "
        "are computed."
    )
    return dataclasses.replace(choice, notes=(*choice.notes, note))


def needs_search(profile: Profile, run: SamplerCoefficients, target: Target) -> bool:
    """Whether a plan must be searched, because calibration carried out none for such a run.

    Raises:
        ValueError: the run has too few steps, or the target is out of range.
        ProfileError: the run has other branches than the profile.
    """
    own = profile.sampler
    check_num_steps(run.num_steps)
    if len(run.branch_weights) != len(own.branch_weights):
        raise ProfileError(
            f"the profile has {_branches(own)}, and this run has {_branches(run)}, so its plans do "
            "not fit. Calibrate at this guidance"
        )
    if target.speedup is not None:
        check_speedup(target.speedup, run.num_steps)
    return not _as_calibrated(run, own) or not profile.candidates


def check_num_steps(num_steps: int) -> None:
    """Refuse a run that is too short for a plan.

    Raises:
        ValueError: the run has fewer than `MIN_PLANNED_STEPS` steps.
    """
    if num_steps < MIN_PLANNED_STEPS:
        raise ValueError(
            f"the run has {num_steps} steps, which is too few for a plan; accepted: "
            f"{MIN_PLANNED_STEPS} or more. A threshold accelerates shorter runs"
        )


def branch_weights(
    profile: Profile | None, guidance: float, *, separate: bool, force: bool = False
) -> tuple[float, ...]:
    """The branch weights with which a run is planned.

    Args:
        profile: None: the run has none, and is recorded.
        separate: whether guidance uses separate forward passes (`Family.branches`).
        force: whether a profile with one branch is also used at another guidance.
    """
    if not separate or guidance <= 1:
        return (1.0,)
    one_branch = profile is not None and len(profile.sampler.branch_weights) == 1
    # The profile has one branch, for instance because guidance varied in calibration. So the plan
    # extrapolates the guided prediction as a whole.
    if profile and one_branch and (force or abs(profile.key.guidance - guidance) < 1e-6):
        return (1.0,)
    return (1.0, 1.0 - guidance)


def second_of(run: RunInfo) -> SecondExpert | None:
    """The second expert of a run, with its share of the first one's branch weights."""
    if run.second is None:
        return None
    begin, there = run.second
    here = run.guidance
    if here is None or there is None or here == 1.0:  # one branch
        return SecondExpert(begin)
    return SecondExpert(begin, (1.0 - there) / (1.0 - here))


def coefficients_before_run(
    profile: Profile, scheduler: Any, num_steps: int, guidance: float, *, separate: bool,
    sigmas: bool = False, guidance_2: float | None = None, begin: int = 0,
) -> SamplerCoefficients | None:  # fmt: skip
    """Coefficients of a run that has not begun; None if only the run itself can set the timesteps.

    Args:
        scheduler: the run's, which is not changed; None: it is unknown, and `num_steps` must be the
            profile's.
        num_steps, begin: the timesteps that are set, and the first one that runs.
        guidance, separate: as in `branch_weights`.
        sigmas: as in `set_timesteps`.
        guidance_2: guidance scale of the second expert; None: as calibrated.

    Raises:
        ValueError: the number of steps is not the profile's, and there is no scheduler.
    """
    weights = branch_weights(profile, guidance, separate=separate)
    own = dataclasses.replace(profile.sampler, branch_weights=weights)
    second = own.second
    if second is not None and guidance_2 is not None:
        run = RunInfo(num_steps, guidance, second=(second.begin, guidance_2))
        second = second_of(run)
        own = dataclasses.replace(own, second=second)
    if scheduler is None and num_steps != own.num_steps:
        raise ValueError(
            f"steps is {num_steps}, and the profile was measured with {own.num_steps} steps; "
            f"accepted: {own.num_steps}, or another number with the model's scheduler"
        )
    if scheduler is None:
        return own
    try:
        found = planned_coefficients(scheduler, num_steps, weights, sigmas=sigmas, begin=begin)
        if second is not None:  # it begins between the same timesteps as in calibration
            time = own.timesteps[second.begin - 1 : second.begin + 1].mean()
            second = dataclasses.replace(second, begin=int((found.timesteps > time).sum()))
        return dataclasses.replace(found, second=second)
    except ValueError:
        return own if num_steps == own.num_steps and not begin else None


def prior_before_run(
    scheduler: Any, num_steps: int, guidance: float, *, separate: bool,
    sigmas: bool, boundary: float | None, guidance_2: float | None,
) -> Profile | None:  # fmt: skip
    """The prior's profile for a run that has not begun.

    It is None if the prior does not know such a run, or only the run itself can set the timesteps.

    Args:
        scheduler, guidance, separate, sigmas: as in `coefficients_before_run`.
        boundary: the timestep below which a second expert runs; None: there is none.
        guidance_2: guidance scale of the second expert; None: that of the first.

    Raises:
        NotLinearError: plans cannot be made for this scheduler.
    """
    own = copy.deepcopy(scheduler)
    try:
        set_timesteps(own, num_steps, sigmas=sigmas)
    except Exception:  # some schedulers need more than the steps, such as a size or a stage
        return None
    weights = branch_weights(None, guidance, separate=separate)
    response = response_of(own)
    sampler = response.sampler(weights)
    begin = num_steps if boundary is None else int((sampler.timesteps >= boundary).sum())
    if 0 < begin < sampler.num_steps:
        there = guidance if guidance_2 is None else guidance_2
        run = RunInfo(num_steps, guidance, second=(begin, there))
        sampler = dataclasses.replace(sampler, second=second_of(run))
    return profile_by_prior(own, sampler, guidance, response)


def _branches(sampler: SamplerCoefficients) -> str:
    two = len(sampler.branch_weights) > 1
    return "two branches (guidance above 1)" if two else "one branch"


def _as_calibrated(run: SamplerCoefficients, own: SamplerCoefficients) -> bool:
    return (
        run.num_steps == own.num_steps
        and torch.allclose(run.timesteps, own.timesteps, rtol=1e-3)
        and torch.allclose(run.coefficients, own.coefficients, rtol=1e-2, atol=1e-4)
        and run.fixed_steps == own.fixed_steps
        and torch.allclose(run.step_weights, own.step_weights, rtol=0.0, atol=1e-6)
    )


def for_quality(
    profile: Profile, quality: float, *, margin: QualityMargin | None = None
) -> PlanChoice:
    """The fastest plan with which 95 % of the clips (`COVERAGE`) reach `quality` dB.

    It is a candidate, or a plan between two candidates. If no plan reaches the quality, all steps
    are computed.

    Args:
        profile: with candidate plans.
        quality: PSNR in dB against the uncached reference, > 0.
        margin: by how much the quality may be lowered if the profile is for one text; None: not at
            all.

    Raises:
        ValueError: the quality is out of range.
        TargetError: the profile has no candidate plans.
    """
    if not 0 < quality < math.inf:
        raise ValueError(f"quality is {quality}; accepted: a number of dB above 0")
    if not profile.candidates:
        raise TargetError(
            "the profile has no candidate plans; calibrate with speedups to guarantee a quality"
        )
    margin = margin or QualityMargin()
    known = {len(one.computed): one for one in profile.candidates}
    counts = sorted(known)
    if knows_between(profile):
        counts = [*range(counts[0], counts[-1] + 1)]
    for count in counts:
        candidate = known.get(count) or between(profile, count)
        distribution = QualityDistribution.of(candidate, profile.measured)
        reach = distribution.guaranteed_share(quality - margin.db)
        if reach >= COVERAGE and count in known:
            return _choice_of(profile, candidate, margin.reach if margin.db else reach)
        if reach >= COVERAGE:
            return plan_between(profile, count, quality)
    return compute_all(profile.sampler, quality, profile)


def for_speedup(profile: Profile, speedup: float) -> PlanChoice:
    """The plan whose number of computed steps comes nearest to a speedup.

    Args:
        profile: if it has no candidate with that number, a new plan is made.
        speedup: steps over computed steps, >= 1.

    Raises:
        ValueError: the speedup is out of range.
    """
    n = profile.sampler.num_steps
    count = computed_steps(speedup, n)
    if count >= n:
        return compute_all(profile.sampler, None, profile)
    for candidate in profile.candidates:
        if len(candidate.computed) == count:
            return _choice_of(profile, candidate, None)
    counts = [len(candidate.computed) for candidate in profile.candidates]
    if knows_between(profile) and min(counts) < count < max(counts):
        return plan_between(profile, count)
    return transfer_plan(profile, profile.sampler, speedup=n / count)


def _choice_of(profile: Profile, candidate: CandidatePlan, reach: float | None) -> PlanChoice:
    sampler, plan = profile.sampler, profile.plan_of(candidate)
    distribution = QualityDistribution.of(candidate, profile.measured)
    estimate = QualityEstimate(
        sampler.num_steps / distribution.count, distribution.count, distribution.mean,
        *distribution.interval, reach, distribution.mean - float(candidate.psnr_db.mean()),
    )  # fmt: skip
    errors, spreads = candidate.extrapolation_error.tolist(), candidate.error_spread.tolist()
    bands = dict(zip(candidate.computed, map(ErrorBand, errors, spreads), strict=True))
    # A line needs two earlier computed steps of the same expert. The first two computed steps of an
    # expert do not have them, so they get no band.
    for first in sampler.fixed_steps:
        for step in [step for step in candidate.computed if step >= first][:2]:
            bands.pop(step, None)
    return PlanChoice.of(
        plan, sampler, estimate, bands=bands,
        min_bits=prediction.min_bits(plan, profile.error_model, float(candidate.latents_db.mean())),
    )  # fmt: skip
