"""Fitted plans: arithmetic that can be followed by hand, and what the search guarantees."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from error_models import field_of, reusing

from dit_accel.planning import search as search_module
from dit_accel.planning.error_model import ErrorModel, energies
from dit_accel.planning.plan import SecondExpert
from dit_accel.planning.search import fit, search
from dit_accel.planning.spacing import evenly, with_fixed


def smooth(n: int = 20, seed: int = 0) -> list[list[float]]:
    """Predictions along a curve in 6 dimensions that turns fast at both ends."""
    draw = torch.Generator().manual_seed(seed)
    phases = torch.rand(6, generator=draw, dtype=torch.float64) * 6
    time = torch.linspace(-1, 1, n, dtype=torch.float64) ** 3
    pace = torch.linspace(1, 5, 6, dtype=torch.float64)
    return torch.sin(pace * time[:, None] + phases).tolist()


def test_worked_example():
    """Four predictions of one number each: 1, 2, 4, 5. A step adds one unit of its prediction."""
    field = field_of([[1.0], [2.0], [4.0], [5.0]])
    # Fitted weights: step 1 = 2 x step 0 and step 3 = 5/4 x step 2 leave nothing.
    plan, energy = fit([0, 2], field, ridge=0.0, depth=1)
    assert energy == pytest.approx(0.0, abs=1e-12)
    assert plan.extrapolations[1].weights[0] == pytest.approx({0: 2.0})
    assert plan.extrapolations[3].weights[0] == pytest.approx({2: 1.25})


def test_a_straight_line_is_forecast_exactly():
    field = field_of([[float(s), 2.0 - s] for s in range(6)])
    plan, energy = fit([0, 1], field, ridge=0.0, depth=2)
    assert energy == pytest.approx(0.0, abs=1e-18)
    assert plan.extrapolations[2].weights[0] == pytest.approx({1: 2.0, 0: -1.0})
    assert plan.extrapolations[2].noise_weight == 0.0


def test_a_fit_takes_from_the_noise_what_the_predictions_do_not_have():
    """Step 1 is step 0 and a half of the noise, which point in different directions."""
    field = field_of([[1.0, 0.0], [1.0, 0.5]], noise=[0.0, 1.0])
    plan, energy = fit([0], field, ridge=0.0)
    assert energy == pytest.approx(0.0, abs=1e-18)
    assert plan.extrapolations[1].weights[0] == pytest.approx({0: 1.0})
    assert plan.extrapolations[1].noise_weight == pytest.approx(0.5)


def test_energies_are_prompt_by_prompt_and_a_fit_is_for_their_mean():
    """One prompt wants twice step 0 at step 1, the other all but none of it: 1 is in between."""
    field = field_of([[1.0], [2.0]], others=([[1.0], [0.0]],))
    assert energies(reusing(2, {1: 0}), field).tolist() == [1.0, 1.0]
    plan, energy = fit([0], field, ridge=0.0)
    assert plan.extrapolations[1].weights[0] == pytest.approx({0: 1.0})
    assert energy == pytest.approx(1.0)


def test_all_steps_computed_is_exact():
    field = field_of(smooth(), others=(smooth(seed=1),))
    plan, energy = fit(range(20), field)
    assert plan.extrapolations == {}
    assert energy == 0.0
    assert energies(plan, field).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("memory", [3.0, 25.0, math.inf])
@pytest.mark.parametrize("ridge", [0.0, 1e-2])
def test_the_energy_of_a_fit_is_that_of_its_plan(memory, ridge):
    """The fast path against the written-out form."""
    gain = torch.linspace(4, 0.5, 20).tolist()
    field = field_of(
        smooth(), error_gain=gain, error_memory=memory, others=(smooth(seed=1), smooth(seed=2))
    )
    plan, energy = fit([0, 1, 2, 5, 9, 14, 18], field, ridge=ridge)
    assert energies(plan, field).mean().item() == pytest.approx(energy, rel=1e-9)


@pytest.mark.parametrize("ridge", [1e-6, 1e-2])
def test_so_it_is_with_two_parts_and_the_noise(ridge):
    field = field_of(
        smooth(), second=smooth(seed=4), noise=[1.0, -1.0, 0.5, 0.0, 2.0, 0.3], mix=(1.0, -4.0),
        error_gain=torch.linspace(4, 0.5, 20).tolist(), error_memory=12.0, others=(smooth(seed=1),),
    )  # fmt: skip
    plan, energy = fit([0, 1, 2, 5, 9, 14, 18], field, ridge=ridge)
    assert len(plan.extrapolations[3].weights) == 2
    assert plan.extrapolations[3].noise_weight != 0.0
    assert energies(plan, field).mean().item() == pytest.approx(energy, rel=1e-7)


def test_a_fit_is_no_worse_than_the_line_it_starts_from():
    """Window by window: with all memory and no ridge, the fit is the least squares optimum."""
    field = field_of(smooth())
    _, bent = fit([0, 1, 2], field, ridge=0.0)
    _, line = fit([0, 1, 2], field, ridge=1e12)
    assert bent < line


def test_search_beats_even_spacing_and_computes_more_where_the_curve_turns():
    field = field_of(smooth(40))
    plan, energy = search(field, 10)
    assert len(plan.computed) == 10
    assert energy < fit(evenly(40, 10), field)[1]
    ends = sum(step < 10 or step >= 30 for step in plan.computed)
    assert ends >= 6


def test_search_is_the_same_each_time_and_leaves_the_global_generator_alone():
    field = field_of(smooth())
    before = torch.random.get_rng_state()
    first, second = (search(field, 8)[0] for _ in range(2))
    assert first == second
    assert torch.equal(torch.random.get_rng_state(), before)


def test_search_is_never_worse_than_where_it_began():
    field = field_of(smooth())
    for count in range(2, 19, 4):
        start = evenly(20, count)
        assert search(field, count, start=start)[1] <= fit(start, field)[1]


def test_of_two_error_models_the_mean_logarithm_counts_whatever_their_sizes():
    """Two curves, and two ways for errors to grow; then the second one's errors are ten times as
    large."""
    gain = torch.linspace(4, 0.5, 20).tolist()
    one, other = field_of(smooth(seed=3), error_gain=gain), field_of(smooth(seed=5))
    larger = dataclasses.replace(other, gram=100 * other.gram)

    def mean_log(computed):
        return sum(math.log(fit(computed, field)[1]) for field in (one, other))

    both, energy = search(one, 7, beside=other)
    assert energy == pytest.approx(fit(both.computed, one)[1])
    assert search(one, 7, beside=larger)[0].computed == both.computed
    alone = [search(field, 7)[0].computed for field in (one, other)]
    assert both.computed not in alone
    assert mean_log(both.computed) < min(map(mean_log, alone))


@pytest.mark.parametrize("steps", [20, 110])
def test_what_is_best_by_one_of_two_models_is_not_searched_again(monkeypatch, steps):
    """Of more than 100 steps, none is searched by one of the two alone."""
    one, other, count = field_of(smooth(steps, 3)), field_of(smooth(steps, 5)), steps // 3
    both, usual = search(one, count, beside=other), search(other, count)[0].computed
    searched = list[ErrorModel]()
    stock = search_module.search

    def watched(error_model, *args, **given):
        searched.append(error_model)
        return stock(error_model, *args, **given)

    monkeypatch.setattr(search_module, "search", watched)
    assert stock(one, count, beside=other, usual=usual) == both
    assert not any(model is other for model in searched)
    assert sum(model is one for model in searched) == (steps <= 100)


def test_a_start_of_another_count_is_filled_or_cut():
    field = field_of(smooth())
    for start in ([0, 5], [0, 1, 2, 3, 4, 5, 6, 7, 8]):
        assert len(search(field, 6, start=start)[0].computed) == 6


def test_in_place_of_a_long_run_a_shorter_one_is_searched(monkeypatch):
    """Two plans are worked out for all of its steps, however long it is."""
    searched = []
    evaluate = search_module._evaluate

    def watched(computed, error_model, *more):
        searched.append((len(computed) > 2, error_model.num_steps))
        return evaluate(computed, error_model, *more)

    monkeypatch.setattr(search_module, "_evaluate", watched)
    gain = torch.linspace(4, 0.5, 301).tolist()
    noise, others = [1.0, -1.0, 0.5, 0.0, 2.0, 0.3], (smooth(301, 1), smooth(301, 2))
    long = field_of(smooth(301), noise=noise, error_gain=gain, others=others)
    for count, nodes in ((250, 50), (31, 98)):
        searched.clear()
        plan, error = search(long, count)
        assert len(plan.computed) == count and plan.computed[0] == 0
        assert {steps for many, steps in searched if many} == {nodes}
        assert error == pytest.approx(fit(plan.computed, long)[1])
    assert error < fit(evenly(301, 31), long)[1] / 2
    ends = sum(step < 75 or step >= 226 for step in plan.computed)
    assert ends > 0.6 * 31, "it computes more where the curve turns"
    assert search(long, 31, start=plan.computed)[1] <= error


def test_a_long_run_of_few_computed_steps_is_searched_step_by_step():
    """Ten times as many nodes as there are computed steps would be hardly fewer than its steps."""
    long = field_of(smooth(110))
    plan, error = search(long, 9)
    assert len(plan.computed) == 9 and error < fit(evenly(110, 9), long)[1]


def test_in_a_long_run_no_window_reaches_into_the_second_expert():
    long = field_of(smooth(203))
    sampler = dataclasses.replace(long.sampler, second=SecondExpert(71))
    plan, _ = search(dataclasses.replace(long, sampler=sampler), 60)
    assert len(plan.computed) == 60 and {0, 71} <= {*plan.computed}


@pytest.mark.parametrize(("total", "count"), [(50, 1), (50, 7), (50, 50), (3, 2)])
def test_evenly_spread_steps(total, count):
    steps = evenly(total, count)
    assert len(steps) == count
    assert steps[0] == 0
    gaps = [b - a for a, b in zip(steps, (*steps[1:], total), strict=True)]
    assert max(gaps) - min(gaps) <= 1


def test_bad_input_is_named():
    field = field_of(smooth())
    with pytest.raises(ValueError, match=r"computed is \[1, 2\]; accepted: steps below 20, with 0"):
        fit([1, 2], field)
    with pytest.raises(ValueError, match=r"computed is \[0, 20\]; accepted: .* below 20, with 0$"):
        fit([0, 20], field)
    with pytest.raises(ValueError, match="count is 21; accepted: 1 to 20"):
        search(field, 21)


# --- two experts ---


def test_a_window_of_the_second_expert_uses_its_own_predictions():
    """Four predictions of one number: 1, 2 of the first expert, 10, 11 of the second."""
    field = field_of([[1.0], [2.0], [10.0], [11.0]])
    field = dataclasses.replace(
        field, sampler=dataclasses.replace(field.sampler, second=SecondExpert(2))
    )
    plan, error = fit([0, 2], field, ridge=0.0)
    # Step 1 is 2 times step 0. Step 3 is 1.1 times step 2, and no share of step 0.
    assert plan.extrapolations[1].weights[0] == pytest.approx({0: 2.0})
    assert plan.extrapolations[3].weights[0] == pytest.approx({2: 1.1})
    assert error == pytest.approx(0.0)
    with pytest.raises(ValueError, match=r"computed is \[0, 1\]; accepted: .*, with 0 and 2$"):
        fit([0, 1], field)


@pytest.mark.parametrize("share", [1.0, 0.3, 0.0])
def test_with_two_experts_the_written_out_form_gives_the_same_error(share):
    """Two components, whose second weighs another number at the second expert."""
    field = field_of(
        smooth(), second=smooth(seed=1), noise=[0.3] * 6, mix=(1.0, -3.0), error_memory=9.0
    )
    sampler = dataclasses.replace(field.sampler, second=SecondExpert(8, share))
    field = dataclasses.replace(field, sampler=sampler)
    plan, error = search(field, 7)
    assert {0, 8} <= {*plan.computed}
    assert len(plan.computed) == 7
    assert energies(plan, field).item() == pytest.approx(error, rel=1e-9)
    assert error == pytest.approx(fit(plan.computed, field)[1])
    for step, one in plan.extrapolations.items():
        assert all(
            (used < 8) == (step < 8) and math.isfinite(weight)
            for weights in one.weights for used, weight in weights.items()
        )  # fmt: skip


def test_a_missing_first_step_of_an_expert_takes_the_nearest_steps_place():
    sampler = dataclasses.replace(field_of(smooth()).sampler, second=SecondExpert(8))
    assert with_fixed([0, 3, 9, 12], sampler.fixed_steps) == [0, 3, 8, 12]
    assert with_fixed([0, 8, 9], sampler.fixed_steps) == [0, 8, 9]


def test_a_search_takes_one_thread_and_gives_them_back(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, real = list[int](), search_module._evaluate

    def noted(*args):
        seen.append(torch.get_num_threads())
        return real(*args)

    monkeypatch.setattr(search_module, "_evaluate", noted)
    torch.set_num_threads(2)
    try:
        search(field_of(smooth()), 4)
        with pytest.raises(ValueError, match="count is 0"):
            search(field_of(smooth()), 0)
        assert torch.get_num_threads() == 2 and set(seen) == {1}
    finally:
        torch.set_num_threads(1)
