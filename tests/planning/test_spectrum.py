"""Spectrum's steps and forecast weights."""

from __future__ import annotations

import pytest
import torch

from dit_accel.planning import spectrum
from dit_accel.planning.spectrum import forecast_weights, growing_windows, spectrum_plan


def test_worked_example():
    """Ten steps, two first ones, windows from 2 that grow by 1: step 2 is cached and 3 computed,
    the window is 3; 4, 5 cached, 6 computed, the window is 4; 7, 8, 9 cached, 10 would be next."""
    assert growing_windows(10, 1.0, first=2) == [0, 1, 3, 6]


def test_the_published_settings_compute_the_published_numbers_of_steps():
    assert len(growing_windows(50, 0.75)) == 14
    assert len(growing_windows(50, 3.0)) == 10


@pytest.mark.parametrize("count", [1, 2, 8, 10, 13, 17, 20, 25, 40, 49])
def test_a_plan_computes_exactly_so_many_steps(count):
    plan = spectrum_plan(50, count)
    assert len(plan.computed) == count and plan.computed[0] == 0


def test_without_a_penalty_polynomials_are_forecast_exactly(monkeypatch):
    monkeypatch.setattr(spectrum, "RIDGE", 1e-12)
    used, n = [0, 1, 2, 3, 4, 6, 8], 20
    for degree, share in ((2, 0.5), (4, 1.0)):  # Newton's part is of order 2
        monkeypatch.setattr(spectrum, "CHEBYSHEV_SHARE", share)
        values = torch.tensor([(s / n) ** degree for s in used])
        found = float(values @ torch.tensor(forecast_weights(used, 9, n)))
        assert found == pytest.approx((9 / n) ** degree, abs=1e-5)


def test_the_ridge_is_the_one_of_its_normal_equations(monkeypatch):
    """Against least squares with the penalty as more rows."""
    monkeypatch.setattr(spectrum, "CHEBYSHEV_SHARE", 1.0)
    used, n, width = [0, 1, 2, 4, 7], 12, spectrum.DEGREE + 1
    values = torch.linspace(0, 1, 5).double().sin()[:, None]
    basis = spectrum._chebyshev([*used, 9], n)
    rows = torch.cat([basis[:-1], spectrum.RIDGE**0.5 * torch.eye(width).double()])
    wanted = torch.cat([values, torch.zeros(width, 1).double()])
    fitted = torch.linalg.lstsq(rows, wanted).solution
    weights = torch.tensor(forecast_weights(used, 9, n)).double()
    assert float(weights @ values[:, 0]) == pytest.approx(float(basis[-1] @ fitted[:, 0]))
