"""Extrapolate a value from earlier ones with the polynomial through them.

Positions and tensors come in; weights and weighted sums go out. Order 0 reuses the last value,
order 1 is the line through two values, order 2 the parabola through three. The positions are the
scheduler's timesteps. Under flow matching they are proportional to the noise level, and a
trajectory is smoother in the noise level than in the step index. The module knows numbers and
tensors, no sites and no models.

Source: TaylorSeer (arXiv 2503.06923 §3.2) uses finite differences over steps. We use Lagrange's
form, which gives the same polynomial and also works for uneven steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def lagrange_weights(positions: Sequence[float], at: float) -> tuple[float, ...]:
    """Weights of the known values in the extrapolated one; they sum to 1.

    Args:
        positions: of the known values; at least one, all different.
        at: position of the extrapolated value.

    Returns:
        One weight per known value. They are exactly 1 and 0 if `at` is one of the positions.

    Raises:
        ValueError: there is no position, or two are equal.

    Example:
        >>> lagrange_weights([10.0, 8.0], 6.0)
        (-1.0, 2.0)
    """
    if not positions or len(set(positions)) < len(positions):
        raise ValueError(f"positions is {[*positions]}; accepted: at least one, all different")
    return tuple(
        math.prod((at - other) / (own - other) for other in positions if other != own)
        for own in positions
    )


def remainder_factor(positions: Sequence[float], at: float) -> float:
    """The product of distances in Newton's remainder, >= 0. The extrapolation error grows with it.

    Example:
        >>> remainder_factor([10.0, 8.0], 6.0)
        8.0
    """
    return math.prod(abs(at - position) for position in positions)


def weighted_sum(weights: Sequence[float], values: Sequence[torch.Tensor]) -> torch.Tensor:
    """The weighted sum of values in their dtype; it is accumulated in float32 or wider.

    Args:
        weights: one per value.
        values: at least one, of equal shape and dtype. A single value with weight 1 is returned
            itself.
    """
    if len(values) == 1 and weights[0] == 1:
        return values[0]
    # Weights of both signs amplify the rounding errors of half precision.
    wide = torch.promote_types(values[0].dtype, torch.float32)
    total = values[0].to(wide) * weights[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total.add_(value, alpha=weight)
    return total.to(values[0].dtype)
