"""Extrapolation: arithmetic that can be followed by hand."""

from __future__ import annotations

import pytest
import torch

from dit_accel.core.extrapolation import lagrange_weights, remainder_factor, weighted_sum


def test_worked_example():
    """A value was 5 at timestep 10 and 7 at timestep 8: which is it at timestep 6?"""
    weights = lagrange_weights([8.0, 10.0], 6.0)
    # the line: w(8) = (6 - 10) / (8 - 10) = 2 and w(10) = (6 - 8) / (10 - 8) = -1
    assert weights == (2.0, -1.0)
    # 2 x 7 - 1 x 5 = 9: the value grew by 1 for each unit of time, and goes on so
    assert weighted_sum(weights, [torch.tensor(7.0), torch.tensor(5.0)]).item() == 9.0
    # the parabola through 1, 4 and 9 at 1, 2 and 3 is t^2, so 16 at 4: 1 - 3 x 4 + 3 x 9
    weights = lagrange_weights([1.0, 2.0, 3.0], 4.0)
    assert weights == (1.0, -3.0, 3.0)
    assert weighted_sum(weights, [torch.tensor(x) for x in (1.0, 4.0, 9.0)]).item() == 16.0
    # reuse is order 0: one value, with weight 1
    assert lagrange_weights([7.0], 2.0) == (1.0,)


def test_one_value_is_reused_as_it_is():
    value = torch.tensor([3.0])
    assert lagrange_weights([7.0], 2.0) == (1.0,)
    assert weighted_sum((1.0,), [value]) is value


def test_what_a_line_misses_of_a_parabola_is_in_proportion_to_its_reach():
    """t² has the second derivative 2, over 2 factorial: the line misses it by the reach itself."""
    for known, at in (((10.0, 8.0), 6.0), ((10.0, 7.0), 1.0), ((3.0, 2.0), 3.0)):
        line = sum(w * t**2 for w, t in zip(lagrange_weights(known, at), known, strict=True))
        assert abs(line - at**2) == pytest.approx(remainder_factor(known, at))


@pytest.mark.parametrize("degree", [0, 1, 2])
def test_polynomials_up_to_the_order_are_exact_at_uneven_places(degree):
    known, at = [1000.0, 857.0, 602.0][: degree + 1], 311.0
    coefficients = [2.0, -0.5, 0.01][: degree + 1]

    def value(t: float) -> float:
        return sum(c * t**k for k, c in enumerate(coefficients))

    found = sum(w * value(t) for w, t in zip(lagrange_weights(known, at), known, strict=True))
    assert found == pytest.approx(value(at))


def test_weights_sum_to_one_and_hit_the_known_values():
    known = [900.0, 700.0, 650.0]
    assert sum(lagrange_weights(known, 123.0)) == pytest.approx(1.0)
    assert lagrange_weights(known, 700.0) == (0.0, 1.0, 0.0)


def test_the_sum_of_one_value_is_that_value():
    values = [torch.ones(2), torch.full((2,), 3.0)]
    assert weighted_sum((2.0, -1.0), values).tolist() == [-1.0, -1.0]
    assert values[0].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("known", [[], [3.0, 3.0]])
def test_positions_must_differ(known):
    with pytest.raises(ValueError, match="at least one, all different"):
        lagrange_weights(known, 1.0)
