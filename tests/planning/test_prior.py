"""The prior: there and back over its own models, and plans for samplers that no model had."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    KDPM2DiscreteScheduler,
    UniPCMultistepScheduler,
)
from safetensors.torch import load_file, save_file
from schedulers import FLOW

from dit_accel.models import miniature
from dit_accel.planning.error_model import energies
from dit_accel.planning.plan import SecondExpert
from dit_accel.planning.prediction import Evidence
from dit_accel.planning.prior import (
    PLACES,
    SHIPPED,
    Prior,
    SchedulerCache,
    places_of,
    profile_by_prior,
    shipped,
)
from dit_accel.planning.profile import Profile
from dit_accel.planning.profile_file import ProfileError
from dit_accel.planning.sampler import coefficients_of, response_of
from dit_accel.planning.search import fit, search
from dit_accel.planning.selection import Target, choose
from dit_accel.planning.trajectory import Trajectory, trajectory_of

GUIDED = (1.0, -3.0)


def set_up(scheduler: Any, steps: int = 50) -> Any:
    scheduler.set_timesteps(steps)
    return scheduler


def euler(shift: float = 3.0) -> Any:
    return FlowMatchEulerDiscreteScheduler(shift=shift)


def by_prior(scheduler: Any, weights: tuple[float, ...]) -> Profile | None:
    return profile_by_prior(scheduler, coefficients_of(scheduler, weights), 4.0)


@pytest.fixture(scope="module")
def own() -> tuple[Profile, Trajectory]:
    """The miniature's profile, and what it was measured on."""
    profile = Profile.load(miniature.path() / "dit-accel-profile.safetensors")
    return profile, trajectory_of(set_up(euler()), profile.sampler.branch_weights)


def test_worked_example() -> None:
    """Half of the noise in a flow: t = 1/2 is the angle 45°, and u = 0.5 / (3 - 1) = 1/4."""
    assert places_of(torch.tensor([math.pi / 4])).tolist() == pytest.approx([0.25])
    angles = trajectory_of(set_up(euler()), (1.0,)).angles
    torch.testing.assert_close(places_of(angles), PLACES, atol=1e-5, rtol=0)


def test_the_miniature_comes_back_as_it_is(own) -> None:
    profile, trajectory = own
    found = Prior.of([("it", profile, trajectory)]).error_model_for(trajectory)
    assert (found.gram - profile.gram).abs().max() < 1e-4 * profile.gram.abs().max()
    torch.testing.assert_close(found.error_gain, profile.error_gain, rtol=0.05, atol=0)
    assert found.error_memory == pytest.approx(profile.error_memory, rel=1e-3)


def test_models_weigh_alike(own) -> None:
    profile, trajectory = own
    one = Prior.of([("it", profile, trajectory)])
    other = Profile(
        profile.key, profile.sampler, profile.gram * 3, profile.error_gain * 4,
        profile.error_memory, profile.depth, (), {},
    )  # fmt: skip
    both = Prior.of([("it", profile, trajectory), ("other", other, trajectory)])
    torch.testing.assert_close(both.grams[2], one.grams[2] * 2)
    torch.testing.assert_close(both.gains, one.gains * 2)  # the mean of logarithms
    assert both.models == ("it", "other")


SAMPLERS = {
    "another shift": (euler(7.0), 40, GUIDED),
    "UniPC": (UniPCMultistepScheduler(**FLOW), 30, (1.0, -4.0)),
    "DDIM": (
        CogVideoXDDIMScheduler(
            prediction_type="v_prediction", rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
        ), 50, (1.0,),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_is_planned(name) -> None:
    scheduler, steps, weights = SAMPLERS[name]
    profile = by_prior(set_up(scheduler, steps), weights)
    assert profile is not None
    model = profile.error_model
    size = model.gram.abs().max()
    assert torch.linalg.eigvalsh(model.gram[0])[0] > -1e-6 * size
    rows = torch.cat([*(w * model.sampler.coefficients for w in weights), torch.ones(1).double()])
    assert float(rows @ model.gram[0] @ rows) == pytest.approx(1.0)
    half = choose(profile, profile.sampler, Target(speedup=2.0))
    assert len(half.plan.computed) == steps // 2
    even, _ = fit(range(0, steps, 2), model)
    assert energies(half.plan, model) < energies(even, model)
    assert "Planned from a prior of 4 other models" in half.notes[0]


def test_the_prior_plans_as_the_models_own_runs_do(own) -> None:
    """A plan for a sampler that the miniature was not measured on, judged by its own profile."""
    profile, trajectory = own
    model = shipped().error_model_for(trajectory)
    computed = [0, 1, 2, 3, 4, 6, 8, 10, 13, 16, 20, 24, 28, 33, 38, 43, 47]
    plan, predicted = fit(computed, model)
    best, _ = fit(computed, profile.error_model)
    assert energies(plan, profile.error_model) < 1.05 * energies(best, profile.error_model)
    assert predicted == pytest.approx(float(energies(best, profile.error_model)), rel=0.1)


def test_a_quality_is_fast_from_the_first_clip_on() -> None:
    profile = by_prior(set_up(euler(5.0)), GUIDED)
    assert profile is not None
    low, high = (choose(profile, profile.sampler, Target(quality=q)) for q in (26.0, 34.0))
    assert len(low.plan.computed) < len(high.plan.computed) <= 50
    assert len(low.plan.computed) <= 30
    assert low.prediction is not None and (low.prediction.reach or 0) >= 0.95
    assert low.prediction.psnr_db > 26.0 + 1.6 * profile.evidence.deviation_db


def test_what_was_searched_once_is_not_searched_again(monkeypatch) -> None:
    """A pipeline is often accelerated anew for each clip, with a profile of equal numbers."""
    counts: list[int] = []
    monkeypatch.setattr(
        "dit_accel.planning.transfer.search",
        lambda model, count, **given: counts.append(count) or search(model, count, **given),
    )
    made = []
    for shift in (3.25, 3.25, 3.5):
        profile = by_prior(set_up(euler(shift), 18), GUIDED)
        assert profile is not None
        made.append(choose(profile, profile.sampler, Target(speedup=2.0)).plan)
    assert counts == [9, 9] and made[0] == made[1] != made[2]


def test_a_run_that_the_prior_does_not_know_has_no_profile() -> None:
    assert by_prior(set_up(euler()), (1.0, -3.0, 0.5)) is None
    unknown = set_up(KDPM2DiscreteScheduler(), 10)
    assert by_prior(unknown, (1.0,)) is None
    # Where clean clips are predicted, the final latents are the last one, whatever came before.
    assert by_prior(set_up(EulerDiscreteScheduler(prediction_type="sample"), 10), (1.0,)) is None


def test_a_second_expert_weighs_guidance_otherwise(own) -> None:
    """Planned with its own weights: the final latents have norm 1 by these, and no window reaches
    across."""
    scheduler = set_up(euler())
    sampler = coefficients_of(scheduler, GUIDED)
    second = dataclasses.replace(sampler, second=SecondExpert(12, 0.5))
    profile = profile_by_prior(scheduler, second, 4.0)
    assert profile is not None
    rows = torch.cat([*(w * sampler.coefficients for w in second.step_weights), torch.ones(1)])
    assert float(rows @ profile.gram[0] @ rows) == pytest.approx(1.0)
    assert 12 in choose(profile, second, Target(speedup=2.5)).plan.computed


def test_a_scheduler_is_measured_once_a_state_for_coefficients_and_profile(monkeypatch) -> None:
    measured: list[Any] = []
    monkeypatch.setattr(
        "dit_accel.planning.prior.response_of", lambda *of: measured.append(of) or response_of(*of)
    )
    monkeypatch.setattr("dit_accel.planning.trajectory.response_of", None)  # not a second time
    scheduler, known = set_up(euler(), 20), SchedulerCache()
    sampler = known.response(scheduler, 0, 20).sampler(GUIDED)
    profile = known.profile(scheduler, sampler, 4.0)
    assert profile is known.profile(scheduler, sampler, 4.0) and len(measured) == 1
    assert known.profile(scheduler, sampler, 5.0) is not profile and len(measured) == 1
    known.response(set_up(scheduler, 30), 0, 30)
    assert len(measured) == 2
    monkeypatch.undo()
    fresh = by_prior(set_up(scheduler, 20), GUIDED)
    assert profile is not None and fresh is not None and torch.equal(profile.gram, fresh.gram)


def test_evidence_of_models_left_out() -> None:
    """Means 2 and -4: -1 on average, squares 9 + 9; clips within a model deviate by 3 and 4.

    Between models (18 + 36) / 2 = 27, times 1 + 1/2 = 40.5; and within (9 + 16) / 2: 53, with
    2 (53 / 40.5)² degrees of freedom.
    """
    found = Evidence.of_left_out(torch.tensor([[2.0, 3.0], [-4.0, 4.0]]).double(), 3)
    assert found.offset_db == -1.0 and found.freedom == pytest.approx(2 * (53 / 40.5) ** 2)
    assert found.deviation_db == pytest.approx(math.sqrt(53))
    assert found.share(31.0, 30.0) == pytest.approx(0.5)
    assert "3 other models" in found.words and "2 models, each left out" in found.reliability
    # Two models do not determine the deviation of a third; of three, the variance is that of
    # Student's distribution: squares 9 + 9 + 0 and 36 over 3, times 4/3, times 3.
    assert found.between_db == math.inf
    more = Evidence.of_left_out(torch.tensor([[2.0, 3.0], [-4.0, 4.0], [-1.0, 5.0]]).double(), 3)
    assert more.between_db == pytest.approx(math.sqrt(54 / 3 * 4 / 3 * 3))
    none = Evidence.of_left_out(torch.zeros(0, 2).double(), 1)
    assert none.offset_db == 0 and "assumed, not measured" in none.reliability
    assert none.share(30.0, 30.0) == pytest.approx(0.5)


def test_the_file_keeps_what_is_in_it(tmp_path) -> None:
    prior = shipped()
    judged = torch.tensor([[1.0, 5.0]]).double()
    path = tmp_path / "prior.safetensors"
    Prior(prior.grams, prior.gains, prior.memory, prior.models, judged).save(path)
    found = Prior.load(path)
    assert found.models == prior.models and found.memory == prior.memory
    assert torch.equal(found.judged, judged) and torch.equal(found.grams[1], prior.grams[1])
    assert SHIPPED.stat().st_size < 300_000


@pytest.mark.parametrize("field", ["gram.1", "gains"])
def test_a_damaged_file_is_refused_by_name(tmp_path, field) -> None:
    from safetensors import safe_open

    with safe_open(str(SHIPPED), "pt") as file:
        head = file.metadata()
    tensors = load_file(SHIPPED)
    tensors[field][3] = math.nan
    path = tmp_path / "prior.safetensors"
    save_file(tensors, path, metadata=head)
    with pytest.raises(ProfileError, match=field):
        Prior.load(path)
    with pytest.raises(ProfileError, match="dit-accel-prior"):
        Prior.load(miniature.path() / "dit-accel-profile.safetensors")
