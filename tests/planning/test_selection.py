"""Targets on made-up profiles: the fastest plan that reaches it, and what is said of it."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from profiles import (
    CANDIDATES,
    FAST,
    MIDDLE,
    SLOW,
    STEPS,
    candidate_of,
    profile_of,
    schedule_of,
    spread_out,
)
from scipy import stats

from dit_accel.config.keywords import config_of
from dit_accel.planning.choice import describe
from dit_accel.planning.difficulty import PromptDifficulty
from dit_accel.planning.margin import MAX_MARGIN_DB, QualityMargin
from dit_accel.planning.prediction import clopper_pearson_lower
from dit_accel.planning.profile import Profile
from dit_accel.planning.selection import Target, TargetError, choose, for_quality, for_speedup
from dit_accel.planning.transfer import computed_steps, transfer_plan


def known(deviation: float, count: int) -> float:
    """The deviation after so many clips: 6 dB of other models has 20 degrees of freedom."""
    return math.sqrt((20 * 6.0**2 + (count - 1) * deviation**2) / (19 + count))


def guaranteed(mean: float, deviation: float, count: int) -> float:
    """The quality that so many clips reach, with 90 % confidence in mean and deviation."""
    share, sure = float(stats.norm.ppf(0.95)), float(stats.norm.ppf(0.9))
    below = share
    for _ in range(100):  # of below = share + sure * (its own uncertainty)
        below = share + sure * math.sqrt(1 / count + below**2 / (2 * (19 + count)))
    return mean - below * known(deviation, count)


def test_worked_example():
    """Three candidate plans, each with the PSNR of 8 calibration clips: mean 50, 42 and 34 dB."""
    profile = profile_of(CANDIDATES)
    # The clips have a deviation of 1 dB, 7 degrees of freedom; other models' have 6 dB, 20 of them.
    # (20 * 36 + 7 * 1) / 27 = 26.9, whose root is 5.19. 95 % are above mean - 1.645 * 5.19.
    # Mean and deviation are estimated: with 90 % confidence it is mean - z * 5.19, where
    # z = 1.645 + 1.282 sqrt(1/8 + z² / (2 * 27)) = 2.243: mean - 11.64, 38.4, 30.4 and 22.4 dB.
    assert 1.645 + 1.282 * math.sqrt(1 / 8 + 2.243**2 / 54) == pytest.approx(2.243, abs=1e-3)
    for quality, computed in ((22.0, FAST), (30.0, MIDDLE), (38.0, SLOW)):
        choice = for_quality(profile, quality)
        assert choice.plan.computed == computed
        assert choice.prediction.reach >= 0.95
    # No plan reaches 39 dB for 95 % of the clips: every step is computed.
    assert for_quality(profile, 39.0).plan.computed == tuple(range(20))
    # A speedup of 2.5 wants 20 / 2.5 = 8 computed steps, which MIDDLE has.
    choice = for_speedup(profile, 2.5)
    assert (choice.plan.computed, choice.prediction.psnr_db) == (MIDDLE, pytest.approx(42.0))


@pytest.mark.parametrize(
    ("quality", "computed"), [(20.0, FAST), (30.0, MIDDLE), (38.0, SLOW), (1.0, FAST)]
)
def test_the_fastest_candidate_that_reaches_the_quality(quality, computed):
    choice = for_quality(profile_of(CANDIDATES), quality)
    assert choice.plan.computed == computed
    assert choice.prediction.reach >= 0.95
    assert choice.prediction.speedup == pytest.approx(STEPS / len(computed))


def test_a_quality_between_two_candidates_takes_a_plan_between_them():
    """MIDDLE has 8 steps and 42 dB, SLOW 12 and 50: 10 steps should give 46. 46 - 11.64 = 34.4 dB
    are guaranteed then, and 44 - 11.64 = 32.4 by 9 steps."""
    choice = for_quality(profile_of(CANDIDATES), 34.0)
    assert len(choice.plan.computed) == 10 and choice.prediction.reach >= 0.95
    assert choice.prediction.psnr_db == pytest.approx(46.0)
    assert "calibration never ran this plan itself" in choice.notes[0]
    assert for_speedup(profile_of(CANDIDATES), 2.0).prediction.psnr_db == pytest.approx(46.0)
    # plans of more clips are refined, and this one is not
    more = [candidate_of(SLOW, spread_out(50.0, 1.0, 9)), candidate_of(FAST, [34.0] * 9)]
    assert for_quality(profile_of(more), 34.0).plan.computed == SLOW


def test_the_guarantee_holds_up_to_the_last_tenth_of_a_decibel():
    """0.05 dB below what is guaranteed it is chosen; 0.05 above, one more step is."""
    edge = guaranteed(42.0, 1.0, 8)
    assert for_quality(profile_of(CANDIDATES), edge - 0.05).plan.computed == MIDDLE
    assert len(for_quality(profile_of(CANDIDATES), edge + 0.05).plan.computed) == 9


def test_few_prompts_guarantee_less():
    """The same mean and spread of three prompts says less of the next one."""
    profile = profile_of([candidate_of(MIDDLE, spread_out(42.0, 1.0, 3))])
    assert for_quality(profile, 30.0).plan.computed == tuple(range(STEPS))
    assert for_quality(profile_of(CANDIDATES), 30.0).plan.computed == MIDDLE


def test_the_order_of_the_candidates_does_not_matter():
    for order in (CANDIDATES, CANDIDATES[::-1]):
        assert for_quality(profile_of(order), 30.0).plan.computed == MIDDLE


def test_a_quality_that_no_plan_reaches_computes_every_step_and_says_so():
    choice = for_quality(profile_of(CANDIDATES), 60.0)
    assert choice.plan.computed == tuple(range(STEPS))
    assert choice.notes == (
        "No plan of this profile reaches 60 dB for enough clips (the best gives 50.0 dB on "
        "average): every step is computed.",
    )
    assert choice.prediction.psnr_db == math.inf
    assert describe(choice) == "computes all 20 steps: exact"


def test_what_is_expected_is_what_the_prompts_got():
    choice = for_quality(profile_of(CANDIDATES), 30.0)
    expected = choice.prediction
    assert expected.psnr_db == pytest.approx(42.0)
    half = known(1.0, 8) * math.sqrt(1 + 1 / 8) * float(stats.t.ppf(0.95, 27))
    assert expected.high_db - expected.psnr_db == pytest.approx(half)
    assert expected.psnr_db - expected.low_db == pytest.approx(half)
    assert describe(choice) == ("computes 8 of 20 steps (2.50x), expected 42.0 dB [32.6, 51.4]")


def test_the_bands_are_those_of_the_candidate_from_its_third_step_on():
    choice = for_quality(profile_of(CANDIDATES), 30.0)
    assert tuple(choice.bands) == MIDDLE[2:]
    band = choice.bands[5]
    assert (band.mean, band.spread) == pytest.approx((math.log(0.1), math.log(1.2)))


# --- a speed ---


@pytest.mark.parametrize(
    ("speedup", "computed"), [(4.0, FAST), (2.5, MIDDLE), (2.4, MIDDLE), (1.7, SLOW)]
)
def test_a_speed_chooses_the_candidate_that_is_as_near_as_whole_steps_allow(speedup, computed):
    choice = for_speedup(profile_of(CANDIDATES), speedup)
    assert choice.plan.computed == computed
    assert choice.prediction.reach is None


@pytest.mark.parametrize(("speedup", "count"), [(3.0, 7), (3.3, 6), (10.0, 2), (1.1, 18)])
def test_a_speed_without_a_candidate_is_planned_and_says_so(speedup, count):
    choice = for_speedup(profile_of(CANDIDATES), speedup)
    assert len(choice.plan.computed) == count
    assert "calibration never ran this plan itself" in choice.notes[0]
    assert choice.bands == {}


@pytest.mark.parametrize("num_steps", range(8, 51))
def test_a_speed_is_the_nearest_that_whole_steps_give_by_a_candidate_or_a_new_plan(num_steps):
    """One rule, whoever makes the plan; the difference is noted."""
    for speedup in (1.5, 2.0, 2.5, 3.3, 4.0):
        count = computed_steps(speedup, num_steps)
        others = [abs(num_steps / other - speedup) for other in range(2, num_steps + 1)]
        assert abs(num_steps / count - speedup) == min(others)


@pytest.mark.parametrize(
    ("speedup", "noted"), [(2.5, None), (2.4, "2.4 becomes 2.50"), (3.0, "3 becomes 2.86")]
)
def test_what_whole_steps_do_not_give_is_noted_before_the_run(speedup, noted):
    choice = choose(profile_of(CANDIDATES), None, Target(speedup=speedup))
    notes = [note for note in choice.notes if "whole steps" in note]
    count = len(choice.plan.computed)
    expected = f"With whole steps, a speedup of {noted}: {count} of 20 steps are computed."
    assert notes == ([] if noted is None else [expected])


def test_the_speed_of_one_computes_every_step():
    choice = for_speedup(profile_of(CANDIDATES), 1.0)
    assert (len(choice.plan.computed), choice.notes) == (STEPS, ())


# --- refusals ---


@pytest.mark.parametrize("quality", [0.0, -3.0, math.inf, math.nan])
def test_a_quality_out_of_range_is_refused(quality):
    with pytest.raises(ValueError, match=rf"quality is {quality}.*accepted: a number of dB above"):
        for_quality(profile_of(CANDIDATES), quality)
    with pytest.raises(ValueError, match=rf"quality is {quality}"):
        transfer_plan(profile_of(CANDIDATES), schedule_of(30), quality=quality)


@pytest.mark.parametrize("speedup", [0.5, 10.1, math.nan])
def test_a_speed_out_of_range_is_refused(speedup):
    message = rf"speedup is {speedup}; accepted: 1 to 10 at 20 steps"
    with pytest.raises(ValueError, match=message):
        for_speedup(profile_of(CANDIDATES), speedup)
    with pytest.raises(ValueError, match=message):
        transfer_plan(profile_of(CANDIDATES), schedule_of(), speedup=speedup)


def test_a_quality_needs_candidates():
    with pytest.raises(TargetError, match="has no candidate plans; calibrate with speedups"):
        for_quality(profile_of(), 40.0)


def test_one_target_is_accepted():
    for given in ({}, {"quality": 30.0, "speedup": 2.0}):
        texts = f"quality is {given.get('quality')} and speedup is {given.get('speedup')}; accepted"
        with pytest.raises(ValueError, match=texts):
            transfer_plan(profile_of(CANDIDATES), schedule_of(30), **given)
    with pytest.raises(ValueError, match=r"quality=30 and speedup=2.5 are given; accepted: one"):
        config_of(quality=30.0, speedup=2.5)


def test_decisions_are_the_same_every_time():
    first, second = (
        transfer_plan(profile_of(CANDIDATES), schedule_of(40), speedup=3.0) for _ in range(2)
    )
    assert first == second
    before = torch.random.get_rng_state()
    for_speedup(profile_of(CANDIDATES), 3.0)
    assert torch.equal(torch.random.get_rng_state(), before)


# --- the choice as a whole ---


def two_kinds(fast: tuple[float, float], slow: float = 50.0) -> Profile:
    """50 easy clips and 50 hard ones, which their texts distinguish, and two plans."""
    known = torch.tensor([-1.0] * 50 + [1.0] * 50, dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    candidates = [
        candidate_of((0, 1, 2, 4), [fast[0]] * 50 + [fast[1]] * 50),
        candidate_of((0, 1, 2, 3, 4, 6), [slow] * 100),
    ]
    return profile_of(candidates, difficulty=PromptDifficulty(torch.zeros_like(one), one, known))


def test_margin_is_what_the_choice_as_a_whole_can_spare():
    """Fast gives easy clips 40 dB and hard ones 30; of 35 dB, 5 less would give hard ones the fast
    plan, and half of all clips would miss the quality."""
    profile = two_kinds((40.0, 30.0))
    margin = QualityMargin.of(profile, 35.0)
    assert margin == QualityMargin(4.75, clopper_pearson_lower(100, 100))
    for text, computed in ((-1.0, 4), (1.0, 6)):
        for_prompt = profile.for_text(torch.full((1, 1), text))
        choice = for_quality(for_prompt, 35.0, margin=margin)
        assert len(choice.plan.computed) == computed
        assert choice.prediction.reach == pytest.approx(clopper_pearson_lower(100, 100))


def test_margin_does_not_count_hard_clips_against_easy_texts():
    """Two hard clips get 26 dB. Shifted to the easy text they get 36, two of a hundred below 38,
    so that one cannot be sure of 95 %; but no hard text is given the fast plan."""
    profile = two_kinds((40.0, 30.0))
    fast, slow = profile.candidates
    psnr = fast.psnr_db.clone()
    psnr[-2:] = 26.0
    profile = dataclasses.replace(
        profile, candidates=(dataclasses.replace(fast, psnr_db=psnr), slow)
    )
    easy, hard = (profile.for_text(torch.full((1, 1), text)) for text in (-1.0, 1.0))
    margin = QualityMargin.of(profile, 38.0)
    assert margin == QualityMargin(MAX_MARGIN_DB, clopper_pearson_lower(100, 100))
    assert len(for_quality(easy, 38.0).plan.computed) == 6
    assert len(for_quality(easy, 38.0, margin=margin).plan.computed) == 4
    assert len(for_quality(hard, 38.0, margin=margin).plan.computed) == 6


def test_there_is_no_margin_where_little_is_known():
    profile = two_kinds((40.0, 30.0))
    few = dataclasses.replace(profile.difficulty, held_out=profile.difficulty.held_out[::5])
    for changes in ({"difficulty": None}, {"difficulty": few}):
        assert QualityMargin.of(dataclasses.replace(profile, **changes), 35.0) == QualityMargin()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("quality", [25.0, 30.0, 35.0])
def test_with_margin_enough_of_calibrations_clips_reach_the_quality(seed, quality):
    """And none is slower than without."""
    draw = torch.Generator().manual_seed(seed)
    known = torch.randn(120, generator=draw, dtype=torch.float64)
    noise = torch.randn(4, 120, generator=draw, dtype=torch.float64)
    candidates = [
        candidate_of(tuple(range(4 + k)), (28 + 6 * k - 4 * known + 2 * noise[k]).tolist())
        for k in range(4)
    ]
    one = torch.ones(1, dtype=torch.float64)
    profile = profile_of(candidates, difficulty=PromptDifficulty(0 * one, one, known))
    margin = QualityMargin.of(profile, quality)
    reached = 0
    for clip in range(120):
        for_prompt = profile.for_text(known[clip].view(1, 1))
        bold, plain = (for_quality(for_prompt, quality, margin=s) for s in (margin, None))
        count = len(bold.plan.computed)
        assert count <= len(plain.plan.computed)
        psnr = {len(r.computed): float(r.psnr_db[clip]) for r in profile.candidates}
        reached += psnr.get(count, 100.0) >= quality
    assert clopper_pearson_lower(reached, 120) >= 0.95 or margin.db == 0


def test_a_run_without_its_noise_is_planned_without_it():
    weighed = dataclasses.replace(CANDIDATES[1], corrections=torch.full((8, 4), 0.1))
    profile = profile_of([CANDIDATES[0], weighed])
    target = Target(speedup=2.5)
    assert choose(profile, None, target).plan.computed == MIDDLE
    assert choose(profile, None, target).plan.weighs_noise
    choice = choose(profile, None, target, noise=False)
    assert len(choice.plan.computed) == 8 and not choice.plan.weighs_noise
    assert choice.prediction.basis == "transferred"
    assert any("weigh the starting noise were left out" in note for note in choice.notes)
    plain = choose(profile_of(), None, target)
    assert plain.plan.weighs_noise and not any("left out" in note for note in plain.notes)
