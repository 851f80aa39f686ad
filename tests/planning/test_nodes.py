"""Nodes, Adams-Bashforth weights, and samplers that are weighted sums."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from dit_accel.planning.nodes import LinearSampler, Nodes, adams_bashforth, shifted


def flow(*times: float) -> Nodes:
    found = torch.tensor(times, dtype=torch.float64)
    return Nodes("flow", found, 1000 * found[:-1])


def test_worked_example():
    """Three steps of Adams-Bashforth 2 by hand, times 1, 0.75, 0.5, 0.

    Step 0 has one prediction: Euler, -0.25 v0. Step 1 is even: -0.25 (3/2 v1 - 1/2 v0). Step 2 is
    twice as long as the one before: the line through v1 and v2, integrated over 0.5, is
    -0.5 (v2 + (v2 - v1) (0.25 / 0.25)) = -v2 + 0.5 v1. The weights of a row add up to the time so
    far.
    """
    sampler = adams_bashforth(flow(1, 0.75, 0.5, 0), 2)
    assert sampler.increments == pytest.approx(
        torch.tensor([[-0.25, 0, 0], [0.125, -0.375, 0], [0, 0.5, -1.0]], dtype=torch.float64)
    )
    assert sampler.weights.sum(1).tolist() == pytest.approx([-0.25, -0.5, -1.0])


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_even_times_give_the_textbook_coefficients(order):
    textbook = {1: [1], 2: [-1 / 2, 3 / 2], 3: [5 / 12, -16 / 12, 23 / 12],
                4: [-9 / 24, 37 / 24, -59 / 24, 55 / 24]}  # fmt: skip
    even = flow(*(1 - s / 8 for s in range(9)))
    last = adams_bashforth(even, order).increments[-1, -order:]
    assert (last * -8).tolist() == pytest.approx(textbook[order])


def error_on_a_linear_equation(order: int, steps: int) -> float:
    """dx/dt = x from 1 to 0 on even times, x(1) = e: the exact end is 1.

    The first steps are exact, as lower orders at the start would hide the order.
    """
    nodes = flow(*(1 - s / steps for s in range(steps + 1)))
    sampler, values, x = adams_bashforth(nodes, order), [], math.e
    for step in range(steps):
        values.append(math.exp(float(nodes.times[step])) if step < order - 1 else x)
        if step < order - 1:
            x = math.exp(float(nodes.times[step + 1]))
        else:
            row = sampler.increments[step].tolist()
            x += sum(w * v for w, v in zip(row, values, strict=False))
    return abs(x - 1)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_error_on_a_linear_equation_falls_with_the_order(order):
    errors = [error_on_a_linear_equation(order, steps) for steps in (40, 80, 160)]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_uneven_times_integrate_polynomials_exactly(order):
    """dx/dt = t^(order - 1): after the first steps the method is exact."""
    nodes = flow(1, 0.93, 0.8, 0.55, 0.3, 0.05, 0)
    added = adams_bashforth(nodes, order).increments
    values = nodes.times[:-1] ** (order - 1)
    exact = (nodes.times**order / order).diff()
    assert (added @ values)[order - 1 :] == pytest.approx(exact[order - 1 :], abs=1e-12)


def test_times_are_those_in_which_the_prediction_is_the_derivative():
    """x0 and noise are constant: x at a later time less x now, over the step, nears v."""
    x0, noise, step = 0.7, -1.3, 1e-6
    for kind in ("flow", "v"):
        nodes = Nodes(
            kind, torch.tensor([0.8, 0.8 - step, 0.0], dtype=torch.float64), torch.zeros(2)
        )
        x = nodes.alphas * x0 + nodes.sigmas * noise
        alpha, sigma = float(nodes.alphas[0]), float(nodes.sigmas[0])
        v = noise - x0 if kind == "flow" else alpha * noise - sigma * x0
        assert float((x[0] - x[1]) / step) == pytest.approx(v, abs=1e-4)


def test_shifts_multiply():
    shares = torch.linspace(0, 1, 7).double()
    assert shifted(shifted(shares, 3.0), 0.5) == pytest.approx(shifted(shares, 1.5))


def test_nodes_and_samplers_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="falling"):
        flow(1, 1, 0)
    with pytest.raises(ValueError, match="rising"):
        flow(1, 0.5, 0).at([1])
    with pytest.raises(ValueError, match="order is 5"):
        adams_bashforth(flow(1, 0), 5)
    one = torch.ones(2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"weights of later steps, .*; accepted: a lower tri"):
        LinearSampler(one, one, torch.ones(2, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match="labels, noise or weights has NaN or infinity; accepted"):
        LinearSampler(one, one * math.nan, torch.zeros(2, 2, dtype=torch.float64))
