"""Spectrum's plan: its computed steps and the weights of its forecast. It needs no measurement.

In: the number of steps of a run, and of computed steps. Out: a `Plan`. Spectrum's forecast is
linear in the stored outputs, so it can be written as weights:

    τ = 2 (step - n / 2) / n,   φ = (T_0, ..., T_4)(τ), Chebyshev's polynomials
    forecast = (1 - w) Newton of order 2 + w φ(τ) (ΦᵀΦ + λ I)⁻¹ Φᵀ f,   over the last 10 outputs f

Knows numbers; no model.
Source: Spectrum, arXiv 2603.01623, with its published settings (5 first steps, windows from 2,
λ 0.1, w 0.5). We depart: we forecast the output of the denoiser, not of its last block. And we
choose the growth of the windows so that exactly k steps are computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from dit_accel.core.extrapolation import lagrange_weights
from dit_accel.planning.plan import Extrapolation, Plan

FIRST_STEPS, FIRST_WINDOW = 5, 2.0
DEGREE, HISTORY, RIDGE, NEWTON_ORDER, CHEBYSHEV_SHARE = 4, 10, 0.1, 2, 0.5


def spectrum_plan(num_steps: int, count: int) -> Plan:
    """The plan that computes `count` of `num_steps` steps."""
    computed = spectrum_steps(num_steps, count)
    planned = {}
    for step in range(num_steps):
        if step not in computed:
            used = [s for s in computed if s < step][-HISTORY:]
            weights = forecast_weights(used, step, num_steps)
            planned[step] = Extrapolation((dict(zip(used, weights, strict=True)),))
    return Plan(num_steps, planned)


def growing_windows(num_steps: int, growth: float, first: int = FIRST_STEPS) -> list[int]:
    """Computed steps: all of the first ones, then one at the end of each window; windows grow.

    Example:
        >>> len(growing_windows(50, 0.75)), len(growing_windows(50, 3.0))
        (14, 10)
    """
    computed, window, cached = list(range(min(first, num_steps))), FIRST_WINDOW, 0
    for step in range(first, num_steps):
        if (cached + 1) % math.floor(window) == 0:
            window = round(window + growth, 3)
            computed.append(step)
            cached = 0
        else:
            cached += 1
    return computed


def spectrum_steps(num_steps: int, count: int) -> list[int]:
    """Exactly `count` computed steps.

    The growth is the smallest that leaves at most `count` computed steps. If there are fewer, the
    earliest of the other steps are added. With a small count there are fewer first steps.

    Raises:
        ValueError: `count` is out of range.
    """
    if not 1 <= count <= num_steps:
        raise ValueError(f"count is {count}; accepted: 1 to {num_steps}")
    first = min(FIRST_STEPS, max(1, count // 2))
    found = [0]  # if even the widest windows leave too many steps
    for growth in (0.05 * number for number in range(20 * num_steps)):
        steps = growing_windows(num_steps, growth, first)
        if len(steps) <= count:
            found = steps
            break
    missing = [step for step in range(num_steps) if step not in found]
    return sorted(found + missing[: count - len(found)])


def forecast_weights(used: Sequence[int], step: int, num_steps: int) -> list[float]:
    """The weights of the outputs at the `used` steps in the forecast of a step.

    Args:
        used: computed steps in rising order, at least one.
    """
    last = list(used[-NEWTON_ORDER - 1 :])
    newton = [0.0] * (len(used) - len(last)) + [*lagrange_weights([float(s) for s in last], step)]
    basis = _chebyshev([*used, step], num_steps)
    known, wanted = basis[:-1], basis[-1]
    gram = known.T @ known + RIDGE * torch.eye(DEGREE + 1, dtype=torch.float64)
    ridge = (known @ torch.linalg.solve(gram, wanted)).tolist()
    share = CHEBYSHEV_SHARE
    return [(1 - share) * a + share * b for a, b in zip(newton, ridge, strict=True)]


def _chebyshev(steps: Sequence[int], num_steps: int) -> torch.Tensor:
    """`(steps, DEGREE + 1)` float64: T_0 to T_DEGREE at τ."""
    times = 2 * (torch.tensor(steps, dtype=torch.float64) - num_steps / 2) / num_steps
    return torch.cos(torch.arange(DEGREE + 1) * times.clamp(-1, 1).arccos()[:, None])
