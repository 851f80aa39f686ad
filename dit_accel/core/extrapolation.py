"""A site's next value from its kept ones: the polynomial through them, read further on.

Order 0 is the kept value itself (reuse), order 1 the line through the last two, order 2 the
parabola through the last three. The axis is the scheduler's timestep, which for flow matching is
the noise level up to a factor: a trajectory is smooth in the noise level, not in the step number.
Knows numbers and tensors, nothing of sites and models.

A polynomial amplifies what is not smooth: the sum of the absolute weights of a line, over kept
values that lie one apart and a forecast g further on, is 2g + 1. So a high order pays over short
gaps and loses over long ones.

Sources: TaylorSeer (arXiv 2503.06923 §3.2) extrapolates features by finite differences over the
step; Lagrange's form gives the same polynomial for steps that lie unevenly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def lagrange_weights(kept: Sequence[float], at: float) -> tuple[float, ...]:
    """Weights of kept values in the forecast, by Lagrange: they sum to 1.

    Args:
        kept: where the values were kept, all different; at least one.
        at: where the value is wanted.

    Returns:
        one a kept value; exactly 1 and 0 where `at` is one of `kept`.

    Raises:
        ValueError: there is nothing kept, or two were kept at the same place.

    >>> lagrange_weights([10.0, 8.0], 6.0)
    (-1.0, 2.0)
    """
    if not kept or len(set(kept)) < len(kept):
        raise ValueError(f"kept is {list(kept)}; accepted: at least one place, all different")
    return tuple(
        math.prod((at - other) / (place - other) for other in kept if other != place)
        for place in kept
    )


def remainder_factor(kept: Sequence[float], at: float) -> float:
    """How far a polynomial reaches, to which what it misses is in proportion: Newton's remainder.

    Args:
        kept: where the values were kept that it goes through.
        at: where it is read.

    Returns:
        the product of the distances, >= 0; times the next derivative over a factorial, the error.

    >>> remainder_factor([10.0, 8.0], 6.0)
    8.0
    """
    return math.prod(abs(at - place) for place in kept)


def weighted_sum(
    factors: Sequence[float | torch.Tensor], values: Sequence[torch.Tensor]
) -> torch.Tensor:
    """The weighted sum of kept values.

    Args:
        factors: one a value: a number, or a tensor that is broadcast over it.
        values: of equal shape and dtype; at least one.

    Returns:
        the first value itself where it is alone with factor 1, else a new tensor of its shape and
        dtype; added up in float32 at least, since weights of both signs amplify rounding.
    """
    if len(values) == 1 and not isinstance(factors[0], torch.Tensor) and factors[0] == 1:
        return values[0]
    wide = torch.promote_types(values[0].dtype, torch.float32)
    total = values[0].to(wide) * factors[0]
    for factor, value in zip(factors[1:], values[1:], strict=True):
        if isinstance(factor, torch.Tensor):
            total.add_(value * factor)
        else:
            total.add_(value, alpha=factor)
    return total.to(values[0].dtype)
