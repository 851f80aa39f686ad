"""What a plan is: extrapolated steps by hand, lines and changes in sums, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from dit_accel.planning.plan import (
    Extrapolation,
    Plan,
    SamplerCoefficients,
    line_sums,
    used_steps,
    windows,
)


def schedule_of(n: int, mix: tuple[float, ...] = (1.0,), coefficients: list[float] | None = None):
    """Timesteps n, n - 1, ... 1; every step adds one unit, where no coefficients are given."""
    return SamplerCoefficients(
        torch.tensor(coefficients or [1.0] * n, dtype=torch.float64),
        torch.arange(n, 0, -1, dtype=torch.float64),
        mix,
    )


def reused(step: int, parts: int = 1) -> Extrapolation:
    return Extrapolation(tuple({step: 1.0} for _ in range(parts)))


def test_worked_example():
    """A run of six steps that computes four of them."""
    line, reuse = Extrapolation(({1: 2.0, 0: -1.0},)), Extrapolation(({3: 1.0},))
    plan = Plan(6, {2: line, 4: reuse})
    assert plan.computed == (0, 1, 3, 5)
    # a window is a computed step and those after it that are not
    assert list(plan.windows) == [(0, 1), (1, 3), (3, 5), (5, 6)]
    # predictions 1, 2, -, 5, -, 6: step 2 gets 2 x 2 - 1 x 1 = 3, step 4 gets 5
    computed = {0: 1.0, 1: 2.0, 3: 5.0, 5: 6.0}
    values = {
        step: sum(weight * computed[at] for at, weight in extrapolation.weights[0].items())
        for step, extrapolation in plan.extrapolations.items()
    }
    assert values == {2: 3.0, 4: 5.0}
    # after step 1 both 0 and 1 are still needed (by step 2), after step 2 nothing is
    assert (plan.needed_steps(1), plan.needed_steps(2), plan.needed_steps(3)) == ((0, 1), (), (3,))
    # without fitted corrections every window is the line through the last two computed steps
    assert Plan.of((0, 1, 3, 5), schedule_of(6), {}, depth=2).extrapolations[2] == line


def test_a_plan_knows_its_steps_and_windows():
    plan = Plan(6, {2: reused(1), 3: reused(1), 5: reused(4)})
    assert plan.computed == (0, 1, 4)
    assert list(plan.windows) == [(0, 1), (1, 4), (4, 6)]
    assert list(windows((0, 3), 5)) == [(0, 3), (3, 5)]


def test_what_is_read_later_is_what_must_be_cached():
    plan = Plan(6, {2: Extrapolation(({1: 2.0, 0: -1.0},)), 4: reused(3), 5: reused(3)})
    assert plan.needed_steps(1) == (0, 1)
    assert plan.needed_steps(2) == ()
    assert plan.needed_steps(3) == (3,)
    assert plan.needed_steps(5) == ()


def test_every_part_is_read():
    plan = Plan(4, {3: Extrapolation(({2: 1.0}, {0: 1.0, 1: 1.0}))})
    assert plan.needed_steps(2) == (0, 1, 2)


def test_the_last_computed_steps_are_read_latest_first():
    assert used_steps((0, 2, 5, 9), 5, 2) == [5, 2]
    assert used_steps((0, 2, 5, 9), 5, 4) == [5, 2, 0]
    assert used_steps((0, 2, 5, 9), 9, 1) == [9]


def test_lines_by_hand():
    """Steps 2 and 3 on the line through 1 and 0 are 2a - b and 3a - 2b: 5a - 3b in all; the noise
    has no part in a line."""
    ends = torch.tensor([1]), torch.tensor([4])
    assert line_sums(torch.tensor([[1, 0]]), *ends, schedule_of(4)).tolist() == [[5.0, -3.0, 0.0]]


def test_lines_weigh_steps_by_their_shares_and_parts_by_the_mix():
    """Shares 10 and 1: 10 (2a - b) + (3a - 2b) = 23a - 12b; -3 times that of the second."""
    schedule = schedule_of(4, mix=(1.0, -3.0), coefficients=[7.0, 7.0, 10.0, 1.0])
    ends = torch.tensor([1]), torch.tensor([4])
    found = line_sums(torch.tensor([[1, 0]]), *ends, schedule)
    assert found.tolist() == [[23.0, -12.0, -69.0, 36.0, 0.0]]


def test_a_line_through_one_step_is_reuse_and_a_third_step_has_no_part_in_it():
    ends = torch.tensor([0]), torch.tensor([3])
    assert line_sums(torch.tensor([[0]]), *ends, schedule_of(4)).tolist() == [[2.0, 0.0]]
    ends = torch.tensor([2]), torch.tensor([4])
    found = line_sums(torch.tensor([[2, 1, 0]]), *ends, schedule_of(4))
    assert found.tolist() == [[2.0, -1.0, 0.0, 0.0]]


def test_a_plan_without_changes_is_made_of_lines():
    plan = Plan.of((0, 1, 3), schedule_of(5), {}, depth=3)
    assert plan.extrapolations == {
        2: Extrapolation(({1: 2.0, 0: -1.0},)),
        4: Extrapolation(({3: 1.5, 1: -0.5, 0: 0.0},)),
    }


def test_a_change_is_spread_evenly_over_the_extrapolated_steps():
    """The window of steps 2 and 3 shall add 6 of step 1, 4 of step 0 and 2 of the noise more:
    half of each at each step, on top of the line."""
    change = torch.tensor([6.0, 4.0, 2.0])
    plan = Plan.of((0, 1), schedule_of(4), {1: change}, depth=2)
    assert plan.extrapolations == {
        2: Extrapolation(({1: 5.0, 0: 1.0},), noise_weight=1.0),
        3: Extrapolation(({1: 6.0, 0: 0.0},), noise_weight=1.0),
    }


def test_a_change_of_two_parts_is_of_what_they_add_after_the_mix():
    """A part that counts -2 times must change by half of the other sign; shares by their size."""
    schedule = schedule_of(3, mix=(1.0, -2.0), coefficients=[1.0, 1.0, 0.5])
    plan = Plan.of((0, 1), schedule, {1: torch.tensor([1.0, 0.0, 1.0, 0.0, 3.0])}, depth=2)
    assert plan.extrapolations == {
        2: Extrapolation(({1: 4.0, 0: -1.0}, {1: 1.0, 0: -1.0}), noise_weight=6.0)
    }


@pytest.mark.parametrize("parts", [1, 2])
def test_what_a_plan_adds_is_its_lines_and_changes(parts):
    """The sums over a window's forecasts, written out, are `lines` plus the change."""
    draw = torch.Generator().manual_seed(parts)
    mix = (1.0, -3.5)[:parts]
    schedule = schedule_of(9, mix, torch.rand(9, generator=draw).tolist())
    change = torch.randn(parts * 3 + 1, generator=draw, dtype=torch.float64)
    plan = Plan.of((0, 2, 3, 7), schedule, {3: change}, depth=3)
    read = used_steps(plan.computed, 3, 3)
    sums = torch.zeros(parts * 3 + 1, dtype=torch.float64)
    for step in range(4, 7):
        share, extrapolated = float(schedule.coefficients[step]), plan.extrapolations[step]
        sums[-1] += share * extrapolated.noise_weight
        for part, weights in enumerate(extrapolated.weights):
            for place, at in enumerate(read):
                sums[part * 3 + place] += share * mix[part] * weights[at]
    line = line_sums(torch.tensor([read]), torch.tensor([3]), torch.tensor([7]), schedule)[0]
    assert torch.allclose(sums, line + change)


def test_rows_of_the_schedule():
    """Two parts of four steps and the noise: nine rows; the noise is the last."""
    schedule = schedule_of(4, mix=(1.0, -3.0), coefficients=[1.0, 2.0, 4.0, 8.0])
    assert (schedule.num_steps, schedule.num_rows) == (4, 9)
    assert schedule.feature_rows(torch.tensor([[2, 0]])).tolist() == [[2, 0, 6, 4, 8]]
    missing = schedule.omitted(torch.tensor([0]), torch.tensor([3]))
    assert missing.tolist() == [[0.0, -2.0, -4.0, 0.0, 0.0, 6.0, 12.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("forecasts", "message"),
    [
        ({0: reused(1)}, "step 0 is extrapolated; accepted: 1 to 3"),
        ({4: reused(1)}, "step 4 is extrapolated; accepted: 1 to 3"),
        (
            {2: reused(3)},
            r"extrapolation of step 2 uses \[3\]; accepted: steps computed before it",
        ),
        ({1: reused(0), 2: reused(1)}, r"the extrapolation of step 2 uses \[1\]"),
        ({2: Extrapolation(({1: 1.0}, {2: 1.0}))}, r"the extrapolation of step 2 uses \[2\]"),
        ({2: Extrapolation(({1: 1.0}, {}))}, "the extrapolation of step 2 uses no step; accepted"),
        ({2: Extrapolation(())}, "the extrapolation of step 2 uses no step; accepted: steps"),
    ],
)
def test_plans_that_cannot_be_carried_out_are_refused(forecasts, message):
    with pytest.raises(ValueError, match=message):
        Plan(4, forecasts)


@pytest.mark.parametrize(
    ("shares", "times", "message"),
    [
        (torch.ones(3), torch.ones(4), r"shapes \(\(3,\), \(4,\)\); accepted: \(n,\), \(n,\)"),
        (torch.ones(3, 1), torch.ones(3, 1), r"accepted: \(n,\), \(n,\)"),
        (torch.full((3,), math.nan), torch.ones(3), "coefficients or timesteps has NaN or inf"),
        (torch.ones(3), torch.full((3,), math.inf), "coefficients or timesteps has NaN or inf"),
    ],
)
def test_a_schedule_that_does_not_fit_is_refused(shares, times, message):
    with pytest.raises(ValueError, match=message):
        SamplerCoefficients(shares, times)
