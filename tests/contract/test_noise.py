"""Plans that weigh the starting noise, on pipelines whose denoiser gets it alone or not."""

from __future__ import annotations

import dataclasses

import pytest
from profiles import made_for
from tiny_models import MODELS, STEPS, VARIANTS

from dit_accel import accelerate
from dit_accel.caching.chooser import keeps_noise
from dit_accel.core.families import family_of
from dit_accel.planning.plan import Extrapolation, Plan

PLAN = Plan(STEPS, {step: Extrapolation(({step - 1: 1.0},), noise_weight=0.01) for step in (3, 5)})
ALONE = {"wan", "hunyuan-video", "cogvideox", "ltx", "wan-vace"}  # the denoiser gets it
NAMES = sorted({name for name in MODELS if MODELS[name].row.blocks} - {*VARIANTS})


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_of_ones_own_runs_as_it_is_or_is_refused(name):
    model = MODELS[name]
    pipe = model.build()
    assert keeps_noise(pipe, family_of(pipe)) == (name in ALONE)
    if name not in ALONE:
        with pytest.raises(ValueError, match="plan weighs the starting noise, but the input of"):
            accelerate(pipe, plan=PLAN)
        assert "forward" not in vars(pipe.transformer)
        return
    with accelerate(pipe, plan=PLAN) as handle:
        model.run(pipe)
        assert handle.report().steps_computed == STEPS - len(PLAN.extrapolations)


@pytest.mark.skipif("hunyuan-video-1.5" not in MODELS, reason="newer diffusers only")
def test_candidates_of_a_profile_that_weigh_it_are_left_out_with_a_note():
    model = MODELS["hunyuan-video-1.5"]
    pipe = model.build()
    model.run(pipe)  # sets the timesteps
    profile = made_for(
        pipe, (0, 1, 2, 5), steps=STEPS, guidance=4.0, mix=(1.0, -3.0), size=(16, 16, 9)
    )
    (candidate,) = profile.candidates
    weighed = dataclasses.replace(candidate, corrections=candidate.corrections.clone())
    weighed.corrections[:, :] = 0.01
    profile = dataclasses.replace(profile, candidates=(weighed,))
    with accelerate(pipe, profile=profile, speedup=2.0, guard=False) as handle:
        model.run(pipe)
        report = handle.report()
    assert report.steps_computed == STEPS / 2
    assert any("weigh the starting noise were left out" in note for note in report.notes)
