"""Plans: arithmetic that can be followed by hand, and the promises of the search."""

from __future__ import annotations

import math

import pytest
import torch

from dit_accel.planner import Field, Plan, energies, evenly, fit, search


def field_of(
    predictions: list[list[float]],
    *,
    gain: list[float] | None = None,
    memory: float = math.inf,
    others: tuple[list[list[float]], ...] = (),
) -> Field:
    """Of predictions written out as vectors; every step adds one unit of its prediction."""
    rows = [torch.tensor(p, dtype=torch.float64) for p in (predictions, *others)]
    n = len(predictions)
    return Field(
        gram=torch.stack([r @ r.T for r in rows]),
        shares=torch.ones(n, dtype=torch.float64),
        times=torch.arange(n, 0, -1, dtype=torch.float64),
        gain=torch.tensor(gain or [1.0] * n, dtype=torch.float64),
        memory=memory,
    )


def smooth(n: int = 20, seed: int = 0) -> list[list[float]]:
    """Predictions along a curve in 6 dimensions that turns fast at both ends."""
    draw = torch.Generator().manual_seed(seed)
    phases = torch.rand(6, generator=draw, dtype=torch.float64) * 6
    time = torch.linspace(-1, 1, n, dtype=torch.float64) ** 3
    return torch.sin(3 * time[:, None] + phases).tolist()


def test_a_plan_by_hand():
    """Reuse of 1 for 2 leaves -1 of it; the next window, 4 for 5, leaves another -1: -2 in all."""
    field = field_of([[1.0], [2.0], [4.0], [5.0]])
    plan = Plan(4, {1: {0: 1.0}, 3: {2: 1.0}})
    assert plan.computed == (0, 2)
    assert list(plan.windows) == [(0, 2), (2, 4)]
    assert energies(plan, field).tolist() == [4.0]


def test_errors_that_cancel_cost_nothing():
    field = field_of([[1.0], [2.0], [5.0], [4.0]])
    plan = Plan(4, {1: {0: 1.0}, 3: {2: 1.0}})  # -1, then +1
    assert energies(plan, field).tolist() == [0.0]


def test_an_error_that_has_turned_away_does_not_cancel():
    """With no memory at all the two errors of one unit add up like independent ones: 1 + 1."""
    field = field_of([[1.0], [2.0], [5.0], [4.0]], memory=1e-9)
    plan = Plan(4, {1: {0: 1.0}, 3: {2: 1.0}})
    assert energies(plan, field).tolist() == [2.0]


def test_gain_counts_from_where_a_window_ends():
    """The first window's error of -1 is 3 times as large at the end: 3², and 1² of the second."""
    field = field_of([[1.0, 0.0], [2.0, 0.0], [0.0, 5.0], [0.0, 4.0]], gain=[6.0, 6.0, 3.0, 1.0])
    plan = Plan(4, {1: {0: 1.0}, 3: {2: 1.0}})
    assert energies(plan, field).tolist() == [10.0]


def test_a_straight_line_is_forecast_exactly():
    field = field_of([[float(s), 2.0 - s] for s in range(6)])
    plan, energy = fit([0, 1], field, ridge=0.0, depth=2)
    assert energy == pytest.approx(0.0, abs=1e-18)
    assert plan.forecasts[2] == pytest.approx({1: 2.0, 0: -1.0})


def test_all_steps_computed_is_exact():
    plan, energy = fit(range(20), field_of(smooth()))
    assert plan.forecasts == {}
    assert energy == 0.0


@pytest.mark.parametrize("memory", [3.0, 25.0, math.inf])
@pytest.mark.parametrize("ridge", [0.0, 1e-2])
def test_the_energy_of_a_fit_is_that_of_its_plan(memory, ridge):
    """The fast path against the written-out form."""
    gain = torch.linspace(4, 0.5, 20).tolist()
    field = field_of(smooth(), gain=gain, memory=memory, others=(smooth(seed=1), smooth(seed=2)))
    plan, energy = fit([0, 1, 2, 5, 9, 14, 18], field, ridge=ridge)
    assert energies(plan, field).mean().item() == pytest.approx(energy, rel=1e-9)


def test_a_fit_is_no_worse_than_the_line_it_starts_from():
    """Window by window: with all memory and no ridge, the fit is the least squares optimum."""
    field = field_of(smooth())
    _, bent = fit([0, 1, 2], field, ridge=0.0)
    _, line = fit([0, 1, 2], field, ridge=1e12)
    assert bent < line


def test_what_is_read_later_is_what_must_be_kept():
    plan = Plan(6, {2: {1: 2.0, 0: -1.0}, 4: {3: 1.0}, 5: {3: 1.0}})
    assert plan.reads(1) == (0, 1)
    assert plan.reads(2) == ()
    assert plan.reads(3) == (3,)
    assert plan.reads(5) == ()


def test_search_beats_even_spacing_and_computes_more_where_the_curve_turns():
    field = field_of(smooth(40))
    plan, energy = search(field, 10, trials=400)
    assert len(plan.computed) == 10
    assert energy < fit(evenly(40, 10), field)[1]
    ends = sum(step < 10 or step >= 30 for step in plan.computed)
    assert ends >= 6


def test_search_is_the_same_each_time_and_leaves_the_global_generator_alone():
    field = field_of(smooth())
    before = torch.random.get_rng_state()
    first, second = (search(field, 8, trials=200, seed=3)[0] for _ in range(2))
    assert first == second
    assert torch.equal(torch.random.get_rng_state(), before)


def test_search_is_never_worse_than_where_it_began():
    field = field_of(smooth())
    for count in range(2, 19, 4):
        start = evenly(20, count)
        assert search(field, count, trials=50, start=start)[1] <= fit(start, field)[1]


@pytest.mark.parametrize(("total", "count"), [(50, 1), (50, 7), (50, 50), (3, 2)])
def test_evenly_spread_steps(total, count):
    steps = evenly(total, count)
    assert len(steps) == count
    assert steps[0] == 0
    gaps = [b - a for a, b in zip(steps, (*steps[1:], total), strict=True)]
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(
    ("forecasts", "message"),
    [
        ({0: {1: 1.0}}, "step 0 is served; accepted: 1 to 3"),
        ({2: {3: 1.0}}, r"the forecast of step 2 reads \[3\]"),
        ({1: {0: 1.0}, 2: {1: 1.0}}, r"the forecast of step 2 reads \[1\]"),
        ({2: {}}, "the forecast of step 2 reads nothing"),
    ],
)
def test_plans_that_cannot_be_carried_out_are_refused(forecasts, message):
    with pytest.raises(ValueError, match=message):
        Plan(4, forecasts)


def test_bad_input_is_named():
    field = field_of(smooth())
    with pytest.raises(ValueError, match=r"computed is \[1, 2\]; accepted: 0 and steps below 20"):
        fit([1, 2], field)
    with pytest.raises(ValueError, match="count is 21; accepted: 1 to 20"):
        search(field, 21)
    with pytest.raises(ValueError, match=r"accepted: \(P, n, n\)"):
        Field(torch.ones(3, 3), *(torch.ones(3) for _ in range(3)), 1.0)
    with pytest.raises(ValueError, match="is not finite"):
        Field(torch.full((1, 2, 2), math.nan), *(torch.ones(2) for _ in range(3)), 1.0)
    with pytest.raises(ValueError, match="memory or gain is not above 0"):
        Field(torch.ones(1, 2, 2), *(torch.ones(2) for _ in range(3)), 0.0)
