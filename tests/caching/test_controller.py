"""Quality and speed as the target, on real pipelines of tiny width: which profile is of a run,
what is refused, and what the report says."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from profiles import candidate_of, gram_of, profile_of

from dit_accel import SpeedupConfig, accelerate
from dit_accel.caching.controller import RunController
from dit_accel.core.families import family_of
from dit_accel.core.interceptor import RunInfo
from dit_accel.planning.lookup import PROFILE_FILE, cached_path, find_profile, profile_key
from dit_accel.planning.plan import SamplerCoefficients, SecondExpert
from dit_accel.planning.profile import OTHER_SIZE_DB, Profile
from dit_accel.planning.profile_file import ProfileError
from dit_accel.planning.sampler import planned_coefficients
from dit_accel.planning.selection import Target, choose
from dit_accel.planning.transfer import computed_steps

STEPS, GUIDANCE = 12, 4.0
COMPUTED = (0, 1, 2, 4, 7, 10)


def run(pipe: Any, **changes: Any) -> Any:
    given = tiny.CALL | {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE} | changes
    return pipe(**given, generator=torch.Generator().manual_seed(0)).frames


def profile_for(
    pipe: Any,
    mix: tuple[float, ...] = (1.0, 1.0 - GUIDANCE),
    *,
    steps: int = STEPS,
    **identity: Any,
) -> Profile:
    """Of this pipeline, with made-up inner products and one candidate plan."""
    schedule = planned_coefficients(pipe.scheduler, steps, mix)
    given = {"steps": steps, "guidance": GUIDANCE, "height": 16, "width": 16, "frames": 9,
             "dtype": "float32", "parts": len(mix)}  # fmt: skip
    candidate = candidate_of(COMPUTED, [50.0 + i / 10 for i in range(8)], parts=len(mix))
    candidate = dataclasses.replace(
        candidate, error_spread=torch.full((len(COMPUTED),), 100.0, dtype=torch.float64)
    )
    return profile_of(
        [candidate], schedule=schedule, key=profile_key(pipe, **given | identity),
        gram=gram_of(SamplerCoefficients(schedule.coefficients, schedule.timesteps, mix)),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def no_profiles(tmp_path, monkeypatch):
    monkeypatch.setenv("DIT_ACCEL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.tiny_wan()


@pytest.fixture(scope="module")
def stock(pipe: Any) -> Any:
    return run(pipe)


# --- with a profile ---


@pytest.mark.parametrize("target", [{"quality": 30.0}, {"speedup": 2.0}], ids=str)
def test_a_profile_of_this_run_gives_its_measured_plan(pipe, stock, target):
    with accelerate(pipe, profile=profile_for(pipe), **target) as handle:
        assert not np.array_equal(run(pipe), stock)
        report = handle.report()
    assert report.planned == COMPUTED
    assert {site.computed for site in report.sites} == {COMPUTED}
    assert report.notes == ()
    assert report.prediction["psnr_db"] == pytest.approx(50.35, abs=0.01)
    assert (report.quality, report.speedup) == (target.get("quality"), target.get("speedup"))
    assert np.array_equal(run(pipe), stock)
    assert "forward" not in vars(pipe.transformer)


def test_a_quality_out_of_reach_is_bit_equal_to_stock_and_said(pipe, stock):
    with accelerate(pipe, profile=profile_for(pipe), quality=80.0) as handle:
        assert np.array_equal(run(pipe), stock)
        report = handle.report()
    assert report.steps_computed == STEPS
    assert "No plan of this profile reaches 80 dB" in report.notes[0]
    assert report.prediction["psnr_db"] is None  # exact, and JSON has no infinity


def test_a_second_run_does_the_same(pipe):
    with accelerate(pipe, profile=profile_for(pipe), quality=30.0):
        assert np.array_equal(run(pipe), run(pipe))


def test_a_profile_is_read_from_a_file_too(pipe, tmp_path):
    path = tmp_path / "a.safetensors"
    profile_for(pipe).save(path)
    with accelerate(pipe, profile=str(path), quality=30.0) as handle:
        run(pipe)
        assert handle.report().planned == COMPUTED


def test_profiles_are_found_in_the_model_s_folder_and_then_in_the_cache(tmp_path, monkeypatch):
    pipe = tiny.tiny_wan()
    assert find_profile(pipe) is None
    cached = cached_path(profile_key(pipe))
    cached.parent.mkdir(parents=True)
    profile_for(pipe).save(cached)
    assert find_profile(pipe) == cached
    folder = tmp_path / "model"
    folder.mkdir()
    profile_for(pipe).save(folder / PROFILE_FILE)
    pipe.register_to_config(_name_or_path=str(folder))
    assert find_profile(pipe) == folder / PROFILE_FILE == find_profile(folder)
    with accelerate(pipe, quality=30.0) as handle:
        run(pipe)
        assert handle.report().planned == COMPUTED


@pytest.mark.parametrize("target", [{"quality": 5.0}, {"speedup": 2.0}], ids=str)
def test_other_steps_and_another_guidance_are_transferred_and_named(pipe, target):
    with accelerate(pipe, profile=profile_for(pipe), **target) as handle:
        run(pipe, num_inference_steps=16, guidance_scale=6.0)
        report = handle.report()
    assert report.steps == 16
    assert report.steps_computed == len(report.planned) < 16
    assert "The plan was transferred: steps is 12 in the profile, 16 here." in report.notes
    assert "The plan was transferred: guidance is 4.0 in the profile, 6.0 here." in report.notes
    assert any("calibration never ran this plan itself" in note for note in report.notes)


def test_another_size_is_transferred_and_named(pipe):
    with accelerate(pipe, profile=profile_for(pipe), quality=30.0) as handle:
        run(pipe, height=32)
        assert handle.report().notes == (
            "The plan was transferred: height is 16 in the profile, 32 here.",
        )
        run(pipe)
        assert handle.report().notes == ()


def test_clips_of_another_size_are_predicted_worse(pipe):
    """The same plan for the speed; a quality may want more computed steps."""
    predicted = {}
    with accelerate(pipe, profile=profile_for(pipe), speedup=2.0) as handle:
        for height in (16, 32):
            run(pipe, height=height)
            predicted[height] = handle.report().prediction["psnr_db"]
    assert predicted[16] - predicted[32] == pytest.approx(OTHER_SIZE_DB)
    small = profile_for(pipe)
    assert small.key.of_size(16, 16, 9) and not small.key.of_size(16, 16, 5)
    assert dataclasses.replace(small.key, height=0, width=0, frames=0).of_size(16, 16, 9)


def test_another_number_of_frames_is_transferred_and_named(pipe):
    with accelerate(pipe, profile=profile_for(pipe), quality=30.0) as handle:
        run(pipe, num_frames=13)
        assert handle.report().notes == (
            "The plan was transferred: frames is 9 in the profile, 13 here.",
        )


def test_another_dtype_is_transferred_and_named(pipe):
    profile = profile_for(pipe, dtype="bfloat16")
    with accelerate(pipe, profile=profile, quality=30.0) as handle:
        run(pipe)
        (note,) = handle.report().notes
    assert note == "The plan was transferred: dtype is bfloat16 in the profile, float32 here."


# --- a profile of something else ---


def test_a_profile_of_other_weights_is_refused_with_the_difference_named(pipe, stock):
    other = profile_for(tiny.tiny_wan(seed=5))
    mine, theirs = profile_key(pipe).weights, other.key.weights
    with pytest.raises(ProfileError, match=f"weights is {theirs} in the profile, {mine} here"):
        accelerate(pipe, profile=other, quality=30.0)
    assert "forward" not in vars(pipe.transformer)
    assert np.array_equal(run(pipe), stock)


def test_a_profile_of_other_weights_can_be_forced_and_is_noted(pipe):
    other = profile_for(tiny.tiny_wan(seed=5))
    with accelerate(pipe, profile=other, quality=30.0, force=True) as handle:
        run(pipe)
        report = handle.report()
    assert "was forced. It is of another pipeline: weights is" in report.notes[0]
    assert report.planned == COMPUTED


def test_a_profile_of_another_sampler_is_refused(pipe):
    other = tiny.tiny_wan()
    other.scheduler = type(other.scheduler).from_config(other.scheduler.config, shift=7.0)
    with pytest.raises(ProfileError, match="sampler is"):
        accelerate(pipe, profile=profile_for(other), quality=30.0)


def test_guidance_1_against_a_profile_of_two_parts_is_refused_when_the_run_begins(pipe, stock):
    with (
        accelerate(pipe, profile=profile_for(pipe), quality=30.0),
        pytest.raises(ProfileError, match=r"two branches .* this run has one branch"),
    ):
        run(pipe, guidance_scale=1.0)
    assert np.array_equal(run(pipe), stock)


def test_a_profile_of_one_part_is_of_one_guidance(pipe):
    """Calibrated without guidance it is of runs without; guided ones are refused, or noted."""
    profile = profile_for(pipe, mix=(1.0,), guidance=1.0)
    with accelerate(pipe, profile=profile, quality=30.0) as handle:
        run(pipe, guidance_scale=1.0)
        assert (handle.report().planned, handle.report().notes) == (COMPUTED, ())
        with pytest.raises(ProfileError, match="measured at guidance 1, and this run has 4"):
            run(pipe)
    with accelerate(pipe, profile=profile, quality=30.0, force=True) as handle:
        run(pipe)
        assert handle.report().notes == (
            "The profile was forced: it was measured at guidance 1, and this run has 4.",
        )


# --- without a profile ---


@pytest.mark.parametrize("target", [{"quality": 5.0}, {"speedup": 2.0}], ids=str)
def test_without_a_profile_the_first_run_is_planned_from_the_prior(pipe, stock, target):
    with accelerate(pipe, **target) as handle:
        first = run(pipe)
        report = handle.report()
        assert np.array_equal(run(pipe), first) and not np.array_equal(first, stock)
        assert handle.report().planned == report.planned
    assert (
        report.steps_computed
        == len(report.planned)
        <= STEPS * (0.5 if "speedup" in target else 0.9)
    )
    assert report.prediction is not None
    assert report.prediction["high_db"] - report.prediction["low_db"] > 10.0
    assert "Planned from a prior of 4 other models" in report.notes[0]
    assert "measured on 4 models, each left out of the prior in turn" in report.notes[0]


def test_each_kind_of_run_has_its_own_plan_from_the_prior():
    """Other steps, another guidance, another shift: each is planned at once."""
    pipe = tiny.tiny_wan()
    with accelerate(pipe, speedup=2.0) as handle:
        run(pipe)
        one = handle.executor.policy
        run(pipe, guidance_scale=1.0)
        assert handle.report().steps_computed == STEPS / 2
        assert handle.executor.policy.branch_weights == (1.0,)
        run(pipe, num_inference_steps=2 * STEPS)
        assert handle.report().steps_computed == STEPS
        pipe.scheduler.set_shift(9.0)
        run(pipe)
        assert handle.executor.policy.timesteps != one.timesteps
        assert not any("recorded" in note for note in handle.report().notes)


@pytest.mark.usefixtures("without_prior")
@pytest.mark.parametrize("target", [{"quality": 20.0}, {"speedup": 2.0}], ids=str)
def test_without_a_profile_the_first_run_is_recorded_and_the_next_ones_planned(pipe, stock, target):
    with accelerate(pipe, **target) as handle:
        assert np.array_equal(run(pipe), stock)
        first = handle.report()
        assert not np.array_equal(run(pipe), stock)
        second = handle.report()
    assert first.steps_computed == STEPS
    recorded = "No profile was found. This run was computed in full and recorded, and the next"
    assert first.notes[0].startswith(recorded)
    assert first.prediction is None
    assert second.steps_computed == len(second.planned) < STEPS
    assert "Planned from inner products" in second.notes[0]


@pytest.mark.usefixtures("without_prior")
def test_a_recorded_run_that_was_broken_off_is_recorded_anew(pipe):
    class Stop(Exception):
        pass

    def stop(pipe: Any, step: int, *_: Any) -> Any:
        if step == 5:
            raise Stop
        return {}

    with accelerate(pipe, speedup=2.0) as handle:
        with pytest.raises(Stop):
            run(pipe, callback_on_step_end=stop)
        run(pipe)
        assert handle.report().steps_computed == STEPS
        run(pipe)
        assert handle.report().steps_computed == STEPS / 2


@pytest.mark.parametrize("known", [True, False])
def test_a_run_of_few_steps_is_left_alone(pipe, stock, known):
    """As the second stage of LTX-2, which the same pipeline makes; the next run is as before."""
    profile = profile_for(pipe) if known else None
    short = run(pipe, num_inference_steps=4)
    with accelerate(pipe, profile=profile, speedup=2.0) as handle:
        first = run(pipe)
        assert np.array_equal(run(pipe, num_inference_steps=4), short)
        assert handle.report().notes == (
            "Every step was computed: 4 steps are too few for a plan. A threshold accelerates such "
            "runs too.",
        )
        assert not np.array_equal(first, stock)
        run(pipe)
        assert handle.report().steps_computed == STEPS / 2


@pytest.mark.parametrize("there", [None, 1.5, 1.0])
def test_no_window_reaches_from_one_expert_to_the_other(there):
    """The second one's first step is computed, and its weights are those of its own guidance."""
    pipe = tiny.tiny_wan(transformer_2=True, boundary_ratio=0.8)
    with accelerate(pipe, speedup=2.0) as handle:
        run(pipe, guidance_scale_2=there)
        report, policy = handle.report(), handle.executor.policy
    begins = int((pipe.scheduler.timesteps >= 800).sum())
    assert 0 < begins < STEPS
    assert policy.second == SecondExpert(begins, (1 - (there or GUIDANCE)) / (1 - GUIDANCE))
    assert begins in report.planned
    assert report.steps_computed == STEPS / 2
    used = [
        (step, before)
        for step, one in policy.plan.extrapolations.items() for weights in one.weights
        for before in weights
    ]  # fmt: skip
    assert all((before < begins) == (step < begins) for step, before in used)
    assert not report.notes[1:]


def test_guidance_that_changes_in_the_run_is_noted(pipe):
    def change(pipe: Any, step: int, *_: Any) -> Any:
        if step == 4:
            pipe._guidance_scale = 1.5
        return {}

    with accelerate(pipe, profile=profile_for(pipe), speedup=2.0) as handle:
        run(pipe, callback_on_step_end=change)
        assert handle.report().notes[-1] == (
            "Guidance changed from 4 to 1.5 at step 5, but the plan still has the branch weights "
            "of the first step."
        )
        run(pipe)
        assert not any("Guidance changed" in note for note in handle.report().notes)


# --- decisions ---


def test_a_choice_is_not_remembered_for_other_timesteps():
    """Samplers that shift by the clip's size have other timesteps for the same number of steps."""
    pipe = tiny.tiny_wan()
    family = family_of(pipe)
    controller = RunController(pipe, family, profile_for(pipe), Target(speedup=2.0))
    pipe._guidance_scale = GUIDANCE
    plans = []
    for shift in (3.0, 9.0, 3.0):
        pipe.scheduler.set_shift(shift)
        pipe.scheduler.set_timesteps(STEPS)
        policy = controller.start(RunInfo(STEPS, GUIDANCE)).prepare()
        plans.append(policy.plan)
        assert policy.timesteps == tuple(pipe.scheduler.timesteps.double().tolist())
    assert plans[0] is plans[2]


def test_what_was_chosen_before_the_run_is_used_where_it_is_of_the_run(pipe):
    profile = profile_for(pipe)
    choice = choose(profile, None, Target(speedup=2.0))
    choice = dataclasses.replace(choice, notes=("chosen before",))
    config = SpeedupConfig(2.0, profile=profile, choice=choice)
    assert config == SpeedupConfig(2.0, profile=profile)
    with accelerate(pipe, config) as handle:
        run(pipe)
        assert handle.report().notes == ("chosen before",)
        run(pipe, num_inference_steps=16)
        notes = handle.report().notes
    assert "The plan was chosen again: the run has other timesteps." in notes
    assert "chosen before" not in notes


def test_one_target_is_decided_for(pipe):
    for given in ({}, {"quality": 30.0, "speedup": 2.0}):
        with pytest.raises(ValueError, match=r"quality is .* and speedup is .*; accepted: one of"):
            Target(**given)
    with pytest.raises(ValueError, match="quality=30 and speedup=2 are given"):
        accelerate(pipe, quality=30.0, speedup=2.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"quality": 0.0}, "quality is 0.0; accepted: a finite number above 0"),
        ({"quality": float("inf")}, "quality is inf"),
        ({"speedup": 0.5}, "speedup is 0.5; accepted: a finite number, 1 or more"),
        ({"quality": 30.0, "site": "block"}, "quality is given with site; accepted: alone"),
        ({"threshold": 0.1, "quality": 30.0}, "quality=30 and threshold=0.1 are given"),
    ],
)
def test_bad_targets_are_named_and_nothing_is_installed(pipe, given, message):
    with pytest.raises(ValueError, match=message):
        accelerate(pipe, **given)
    assert "forward" not in vars(pipe.transformer)


@pytest.mark.parametrize("name", ["profile", "static", "cache_memory", "guard", "force"])
def test_what_a_plan_needs_is_refused_without_a_target(pipe, name):
    switches = {"static": True, "cache_memory": 1, "guard": False, "force": True}
    given = profile_for(pipe) if name == "profile" else switches[name]
    with pytest.raises(ValueError, match=f"{name} is given; accepted: with quality or speedup"):
        accelerate(pipe, **{name: given})


def test_the_preset_unicp_is_a_quality_of_36_db_or_the_target_beside_it(pipe):
    for target, expected in (({}, (36.0, None)), ({"speedup": 2.0}, (None, 2.0))):
        with accelerate(pipe, accel="unicp", profile=profile_for(pipe), **target) as handle:
            run(pipe)
            report = handle.report()
        assert (report.quality, report.speedup) == expected
        assert report.planned == COMPUTED
    with pytest.raises(ValueError, match="accel is 'unicp' with threshold"):
        accelerate(pipe, accel="unicp", threshold=0.1)


# --- neighbours ---


def test_two_pipelines_do_not_influence_each_other():
    one, two = tiny.tiny_wan(seed=1), tiny.tiny_wan(seed=2)
    alone = {}
    for name, pipe in (("one", one), ("two", two)):
        with accelerate(pipe, profile=profile_for(pipe), quality=30.0):
            alone[name] = run(pipe)
    stock = run(two)
    with accelerate(one, profile=profile_for(one), quality=30.0) as first:
        assert np.array_equal(run(one), alone["one"])
        assert np.array_equal(run(two), stock)
        with accelerate(two, profile=profile_for(two), quality=30.0) as second:
            assert np.array_equal(run(two), alone["two"])
            assert np.array_equal(run(one), alone["one"])
            assert first.executor.store is not second.executor.store
        assert np.array_equal(run(two), stock)


def test_removal_leaves_nothing():
    pipe = tiny.tiny_wan()
    run(pipe)  # diffusers' own registry of hooks comes with the first call
    before = [sorted(vars(module)) for module in pipe.transformer.modules()]
    handle = accelerate(pipe, profile=profile_for(pipe), quality=30.0)
    run(pipe)
    assert "step" not in vars(pipe.scheduler)
    handle.remove()
    assert [sorted(vars(module)) for module in pipe.transformer.modules()] == before
    assert (handle.executor.store, handle.executor.store.noise) == ({}, {})
    assert handle.report().planned == COMPUTED


# --- identity ---


def test_a_key_is_known_by_weights_configuration_and_sampler(pipe):
    mine = profile_key(pipe)
    assert profile_key(tiny.tiny_wan()) == mine
    assert profile_key(tiny.tiny_wan(seed=1)).weights != mine.weights
    assert profile_key(tiny.tiny_wan(transformer_2=True)).weights != mine.weights
    other = tiny.tiny_wan()
    other.scheduler = type(other.scheduler).from_config(other.scheduler.config, shift=7.0)
    assert (profile_key(other).weights, profile_key(other).sampler != mine.sampler) == (
        mine.weights, True,
    )  # fmt: skip


# --- speed as asked ---

KNOWN = {  # what is known of the run: the profile, and what the run has otherwise
    "one recorded run": (None, {}),
    "a profile": (0, {}),
    "a profile of another size": (0, {"height": 32}),
    "a profile at another guidance": (0, {"guidance_scale": 6.0}),
    "a profile of other steps": (0, {"num_inference_steps": 16}),
    "a profile of another model": (1, {}),
}


def latents_change(pipe, step, time, tensors):
    return {"latents": tensors["latents"] * 30.0} if step == 5 else {}


def text_changes(pipe, step, time, tensors):
    return {"prompt_embeds": -tensors["prompt_embeds"]} if step == 6 else {}


@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize("speedup", [2.0, 3.0, 4.0])
def test_a_speed_that_is_asked_for_comes_within_one_step(known, speedup):
    seed, changes = KNOWN[known]
    pipe = tiny.tiny_wan()
    profile = None if seed is None else profile_for(tiny.tiny_wan(seed=seed))
    more = []
    with accelerate(pipe, speedup=speedup, profile=profile, force=bool(seed)) as handle:
        if profile is None:
            run(pipe, output_type="latent")
        for fault in (None, latents_change, text_changes):
            run(
                pipe, callback_on_step_end=fault, output_type="latent",
                callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"], **changes,
            )  # fmt: skip
            report = handle.report()
            assert len(report.planned) == computed_steps(speedup, report.steps)
            more.append(report.steps_computed - len(report.planned))
            assert bool(fault) == any(note.startswith("Guard after step") for note in report.notes)
    assert more[0] == 0
    assert max(more) <= 1
