"""The final error of given plans: arithmetic that can be followed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from error_models import field_of, reusing

from dit_accel.planning.error_model import ErrorModel, energies, noise_energy
from dit_accel.planning.plan import Extrapolation, Plan, SamplerCoefficients


def test_worked_example():
    """Four predictions of one number each: 1, 2, 4, 5. A step adds one unit of its prediction."""
    field = field_of([[1.0], [2.0], [4.0], [5.0]])
    # Reuse 0 for step 1: 1 instead of 2, an error of -1. Reuse 2 for step 3: 4 instead of 5, -1.
    # Together the final latents miss -2, whose square is 4.
    assert energies(reusing(4, {1: 0, 3: 2}), field).tolist() == [4.0]
    # With 4 and 5 exchanged the second error is +1 and the two cancel: (-1 + 1)^2 = 0.
    exchanged = [[1.0], [2.0], [5.0], [4.0]]
    assert energies(reusing(4, {1: 0, 3: 2}), field_of(exchanged)).tolist() == [0.0]
    # Without memory the first error has lost its direction by then: 1^2 + 1^2 = 2.
    forgetful = field_of(exchanged, error_memory=1e-9)
    assert energies(reusing(4, {1: 0, 3: 2}), forgetful).tolist() == [2.0]


def test_gain_counts_from_where_a_window_ends():
    """The first window's error of -1 is 3 times as large at the end: 3², and 1² of the second."""
    field = field_of(
        [[1.0, 0.0], [2.0, 0.0], [0.0, 5.0], [0.0, 4.0]], error_gain=[6.0, 6.0, 3.0, 1.0]
    )
    plan = reusing(4, {1: 0, 3: 2})
    assert energies(plan, field).tolist() == [10.0]


def test_two_parts_by_hand():
    """Guidance 2: c - (u - c). Step 1 should be 2 - 3 = -1; reuse of both parts gives 1 - 1 = 0, an
    error of 1; twice the second part gives 1 - 2 = -1, which is right."""
    field = field_of([[1.0], [2.0]], second=[[1.0], [3.0]], mix=(1.0, -1.0))
    plan = Plan(2, {1: Extrapolation(({0: 1.0}, {0: 1.0}))})
    assert energies(plan, field).tolist() == [1.0]
    plan = Plan(2, {1: Extrapolation(({0: 1.0}, {0: 2.0}))})
    assert energies(plan, field).tolist() == [0.0]


def test_the_noise_by_hand():
    """Step 1 should be 4; reuse gives 1, and the noise, which is 2, adds 3 when taken 1.5 times."""
    field = field_of([[1.0], [4.0]], noise=[2.0])
    assert energies(reusing(2, {1: 0}), field).tolist() == [9.0]
    plan = Plan(2, {1: Extrapolation(({0: 1.0},), noise_weight=1.5)})
    assert energies(plan, field).tolist() == [0.0]


def test_noise_on_cached_values_adds_up_as_it_does_in_a_linear_sampler():
    """Steps 0 and 1 computed of 4, two parts, shares of -1/4 and mix (1, -3). Of part 0 step 1 is
    read by 2 + 3 = 5 quarters and step 0 by -1 - 2 = -3; of part 1 step 1 by 1 + 0.5, times -3; of
    the noise 0.5 quarters. A later error is twice as large at the end."""
    quarters = torch.full((4,), -0.25, dtype=torch.float64)
    times = torch.arange(4, 0, -1, dtype=torch.float64)
    schedule = SamplerCoefficients(quarters, times, (1.0, -3.0))
    extrapolations = {
        2: Extrapolation(({1: 2.0, 0: -1.0}, {1: 1.0}), noise_weight=0.5),
        3: Extrapolation(({1: 3.0, 0: -2.0}, {1: 0.5})),
    }
    diagonal = torch.arange(1.0, schedule.num_rows + 1, dtype=torch.float64)
    for gain, late in ((1.0, 1.0), (2.0, 2.0)):
        gains = torch.tensor([1.0, 1.0, 1.0, gain], dtype=torch.float64)
        field = ErrorModel(schedule, torch.diag(diagonal)[None], gains, math.inf)
        by_row = {0: -1 - 2 * late, 1: 2 + 3 * late, 5: -3 * (1 + 0.5 * late), 8: 0.5}
        expected = sum((factor / 4) ** 2 * float(diagonal[row]) for row, factor in by_row.items())
        assert noise_energy(Plan(4, extrapolations), field) == pytest.approx(expected)


def test_a_plan_that_computes_all_has_nothing_to_be_spoilt():
    field = field_of([[1.0, 2.0]] * 4, noise=[3.0, 4.0])
    assert noise_energy(Plan(4, {}), field) == 0.0


def test_bad_input_is_named():
    schedule = SamplerCoefficients(torch.ones(2), torch.ones(2))
    with pytest.raises(ValueError, match=r"accepted: \(P, 3, 3\), \(2,\)"):
        ErrorModel(schedule, torch.ones(1, 2, 2), torch.ones(2), 1.0)
    with pytest.raises(
        ValueError, match="gram or error_gain has NaN or infinity; accepted: finite"
    ):
        ErrorModel(schedule, torch.full((1, 3, 3), math.nan), torch.ones(2), 1.0)
    for gain, memory in ((torch.ones(2), 0.0), (torch.zeros(2), 1.0)):
        message = f"error_memory is {memory:g}, and the least error_gain is {gain[0]:g}; accepted"
        with pytest.raises(ValueError, match=message):
            ErrorModel(schedule, torch.ones(1, 3, 3), gain, memory)
