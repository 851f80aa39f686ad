import math

import pytest
import torch

from dit_accel.core.drift import l1_sums, projection_coefficient, ratio


def relative_l1(cached: torch.Tensor, fresh: torch.Tensor) -> torch.Tensor:
    return ratio(l1_sums(cached, fresh))


def test_closed_form():
    cached, fresh = torch.tensor([1.0, 2.0, 5.0]), torch.tensor([2.0, -2.0, 4.0])
    assert relative_l1(cached, fresh).item() == pytest.approx((1 + 4 + 1) / 8)


def test_equal_is_exactly_zero_even_when_zero():
    x = torch.randn(3, 4)
    assert relative_l1(x, x.clone()).item() == 0.0
    assert relative_l1(torch.zeros(2), torch.zeros(2)).item() == 0.0


def test_what_is_not_finite_stays_visible():
    assert math.isinf(relative_l1(torch.ones(2), torch.zeros(2)).item())
    assert math.isnan(relative_l1(torch.tensor([1.0, math.nan]), torch.ones(2)).item())


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_does_not_depend_on_scale(scale):
    cached, fresh = torch.randn(64), torch.randn(64)
    expected = relative_l1(cached, fresh).item()
    assert relative_l1(cached * scale, fresh * scale).item() == pytest.approx(expected, rel=1e-5)


def test_half_precision_is_summed_in_float32():
    fresh = torch.full((100_000,), 1.0, dtype=torch.float16)  # the sum overflows float16
    assert relative_l1(fresh * 0.5, fresh).item() == pytest.approx(0.5)


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"cached has shape \(2,\), fresh \(3,\); accepted: equal"):
        relative_l1(torch.ones(2), torch.ones(3))


def test_share_is_how_often_a_direction_lies_in_a_change():
    """(3, 4) along (2, 0): 6 of 4; nothing lies in no direction."""
    assert float(projection_coefficient(torch.tensor([3.0, 4.0]), torch.tensor([2.0, 0.0]))) == 1.5
    assert float(projection_coefficient(torch.tensor([3.0, 4.0]), torch.zeros(2))) == 0.0


def test_sums_of_parts_give_the_drift_of_the_whole():
    """Each rank has a part of the tokens: sums are added, ratios would not be."""
    fresh = torch.tensor([1.0, 1.0, 4.0, 4.0])
    cached = torch.tensor([0.0, 0.0, 4.0, 3.0])
    parts = [l1_sums(cached[rows], fresh[rows]) for rows in (slice(0, 2), slice(2, 4))]
    assert [ratio(part).item() for part in parts] == [1.0, 0.125]
    assert ratio(parts[0] + parts[1]).item() == relative_l1(cached, fresh).item()
    assert relative_l1(cached, fresh).item() == pytest.approx(3 / 10)
    assert ratio(torch.tensor([[0.0, 0.0], [1.0, 4.0]])).tolist() == [0.0, 0.25]
