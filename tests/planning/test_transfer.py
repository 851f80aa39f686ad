"""Plans for other steps than were calibrated: where they compute, and what is expected of them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from profiles import CANDIDATES, FAST, MIDDLE, candidate_of, profile_of, schedule_of, spread_out

from dit_accel.planning import transfer
from dit_accel.planning.choice import PlanChoice
from dit_accel.planning.error_model import energies
from dit_accel.planning.prediction import decibels
from dit_accel.planning.profile import Profile
from dit_accel.planning.profile_file import ProfileError
from dit_accel.planning.search import fit, search
from dit_accel.planning.selection import for_quality
from dit_accel.planning.transfer import transfer_plan

# Refining gave them nothing beyond what their inner products say.
PLAIN = [dataclasses.replace(c, latents_db=c.psnr_db - 30) for c in CANDIDATES]


def test_worked_example():
    """A profile of 20 steps, and a run of 40: the computed steps stay at their timesteps."""
    profile, run = profile_of([candidate_of(FAST, spread_out(34.0, 1.0))]), schedule_of(40)
    # step 8 of 20 is at timestep 1000 (1 - 8/20) = 600, and so is step 16 of 40
    assert profile.sampler.timesteps[8] == run.timesteps[16] == 600.0
    choice = transfer_plan(profile, run, speedup=8.0)  # 40 / 8 = 5 computed steps, as many as FAST
    assert transfer._mapped(profile, run, 5) == [0, 4, 8, 16, 28]
    assert len(choice.plan.computed) == 5
    # FAST gave 34 dB. Without a run of this plan 4 dB are taken off, as refining is worth so much;
    # a plan of as many computed steps is never expected to do better: 30 dB at most.
    assert transfer.UNREFINED_DB == 4.0
    assert choice.prediction.psnr_db <= 30.0 + 1e-9


def test_other_steps_are_planned_at_the_timesteps_of_a_candidate():
    choice = transfer_plan(profile_of(CANDIDATES), schedule_of(40), speedup=2.5)
    assert choice.plan.num_steps == 40
    assert len(choice.plan.computed) == 16
    assert choice.timesteps == tuple(schedule_of(40).timesteps.tolist())
    assert "calibration never ran this plan itself" in choice.notes[0]


def test_steps_are_mapped_by_their_timesteps():
    """Step 2 k of forty is at the timestep of step k of twenty."""
    found = transfer._mapped(profile_of([CANDIDATES[1]]), schedule_of(40), 8)
    assert found == [2 * step for step in MIDDLE]


def test_a_quality_is_transferred_with_a_margin():
    """A quality well below the fastest candidate's needs as few computed steps, whatever their
    share; one that its measured runs would just have reached is not guaranteed any more."""
    profile = profile_of(PLAIN)
    easy = transfer_plan(profile, schedule_of(40), quality=15.0)
    assert len(easy.plan.computed) == len(FAST)
    close = transfer_plan(profile, profile.sampler, quality=21.0)  # predicted the same: 34 - 4 dB
    assert len(close.plan.computed) > len(FAST)
    assert for_quality(profile, 21.0).plan.computed == FAST


def test_what_is_transferred_to_itself_is_expected_to_give_what_it_gave_less_refining():
    choice = transfer_plan(profile_of([PLAIN[1]]), schedule_of(), speedup=2.5)
    assert choice.prediction.psnr_db >= 42.0 - transfer.UNREFINED_DB - 1e-6


def test_a_quality_that_is_not_reached_elsewhere_computes_every_step():
    choice = transfer_plan(profile_of(CANDIDATES), schedule_of(30), quality=90.0)
    assert choice.plan.computed == tuple(range(30))
    assert "every step is computed" in choice.notes[0]


def test_a_profile_without_candidates_plans_from_inner_products():
    choice = transfer_plan(profile_of(), schedule_of(30), quality=5.0)
    assert len(choice.plan.computed) < 30
    choice = transfer_plan(profile_of(), schedule_of(30), quality=300.0)
    assert choice.plan.computed == tuple(range(30))
    assert "0.0 dB" not in choice.notes[0]


def test_what_runs_taught_leaves_the_priors_steps_where_others_are_hardly_better(monkeypatch):
    """By the prior and by what was learnt together. The weights are the prior's in any case."""
    prior, gram = profile_of(), profile_of().gram.clone()
    gram[:, 5:9] *= 4.0  # of four steps predictions are otherwise
    gram[:, :, 5:9] *= 4.0
    learnt = profile_of(gram=gram, prior=prior)

    def choice(of: Profile) -> PlanChoice:
        transfer._steps.cache_clear()
        return transfer_plan(of, of.sampler, speedup=2.5)

    models = learnt.error_model, prior.error_model_for(prior.sampler)
    usual = choice(prior)
    before = usual.plan.computed
    both = search(models[0], len(before), beside=models[1])[0].computed
    found = [sum(decibels(fit(s, m)[1]) for m in models) for s in (both, before)]
    assert both != before and found[0] > found[1] + transfer.LEARNT_DB
    mine = choice(learnt)
    assert mine.plan.computed == both
    assert mine.plan.extrapolations == fit(both, models[1], ridge=3e-2)[0].extrapolations
    assert mine.prediction.psnr_db >= usual.prediction.psnr_db
    monkeypatch.setattr(transfer, "LEARNT_DB", found[0] - found[1] + 0.1)
    assert choice(learnt).plan.extrapolations == usual.plan.extrapolations


def test_a_schedule_of_other_parts_is_refused():
    with pytest.raises(ProfileError, match="branches is 2; accepted with this profile: 1"):
        transfer_plan(profile_of(CANDIDATES), schedule_of(30, mix=(1.0, -3.0)), speedup=2.0)


def test_what_refining_gave_a_candidate_is_not_transferred():
    """The latents' PSNR is at most what the plan's own inner products predict, less 4 dB."""
    latents_db = torch.full((8,), 100.0, dtype=torch.float64)
    refined = dataclasses.replace(CANDIDATES[1], latents_db=latents_db)
    profile, run = profile_of([refined]), schedule_of(40)
    choice = transfer_plan(profile, run, speedup=5.0)  # 8 computed steps, as it has
    own = decibels(float(energies(choice.plan, profile.error_model_for(run)).mean()))
    assert own < 100.0
    expected = 42.0 + (own - 100.0) - transfer.UNREFINED_DB
    assert choice.prediction.psnr_db == pytest.approx(expected, abs=1e-6)
