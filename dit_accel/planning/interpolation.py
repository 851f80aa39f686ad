"""Interpolates Gram matrices between places of a run, and adds what neighbours do not determine.

In: inner products of rows at known places; a place is a number along a run. Out: inner products of
rows at other places.

A row at a new place y is a weighted sum S of the known rows at x, plus a remainder that is
orthogonal to all of them. Without the remainder, new rows would be exact sums of others; a search
would rely on that, and find plans that no run confirms. Let k be a kernel over places, Q the
inverse of k(x, x) on vectors that sum to 0, and σ² the squared error of the known rows when they
are interpolated from their neighbours:

    K(y, y) = S K(x, x) Sᵀ + σ(y) C σ(y),      C: the conditional covariance by k at y, given x
    σ² = diag(Q K Q) / diag(Q),                the leave-one-out error over its expectation

Knows numbers; no sampler.
Source: kriging with an unknown mean, its leave-one-out errors in closed form (Dubrule 1983). The
Matérn kernel and its length have the least leave-one-out error (research/LOG.md).
"""

from __future__ import annotations

import math

import torch

LENGTH = 0.3  # length scale of the kernel; the run has length 1
_JITTER = 1e-8  # added to the kernel's diagonal
_LEAST = 1e-15  # lower bound of a remainder's squared norm


def interpolate_gram(gram: torch.Tensor, known: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The inner products of rows at other places.

    Args:
        gram: `(R, R)` float64, inner products of R = B k + 1 rows: B components by place, then one
            row without a place (the noise), which is not interpolated.
        known: `(k,)` different places, rising or falling, at least 3.
        wanted: `(m,)` places.

    Returns:
        `(B m + 1, B m + 1)` float64.

    Example:
        >>> places = torch.linspace(0, 1, 5, dtype=torch.float64)
        >>> rows = torch.stack([places, places**2], 1)
        >>> gram = torch.zeros(6, 6, dtype=torch.float64)
        >>> gram[:5, :5] = rows @ rows.T
        >>> found = interpolate_gram(gram, places, torch.tensor([0.5, 0.6]).double())
        >>> [round(value, 2) for value in found.diag().tolist()]
        [0.31, 0.47, 0.0]
    """
    k, m = len(known), len(wanted)
    components = (len(gram) - 1) // k
    inverse, sums, left = _kriging(known.double(), wanted.double())
    one = torch.ones(1, 1, dtype=torch.float64)
    rows = torch.block_diag(*[sums] * components, one)  # type: ignore[no-untyped-call]
    found = rows @ gram @ rows.T
    for component in range(components):
        own = slice(component * k, (component + 1) * k)
        size = _remainder(inverse, gram[own, own], known, wanted)
        at = slice(component * m, (component + 1) * m)
        found[at, at] += size[:, None] * left * size
    return (found + found.T) / 2


def _kriging(
    known: torch.Tensor, wanted: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Q `(k, k)`, S `(m, k)` and C `(m, m)` of the module's docstring."""
    kernel = _matern(known, known) + _JITTER * torch.eye(len(known), dtype=torch.float64)
    inverse = torch.linalg.inv(kernel)
    totals = inverse.sum(1)
    across = _matern(wanted, known)
    plain = across @ inverse
    missing = 1 - plain.sum(1)  # the weights must sum to 1, so that constants stay constant
    sums = plain + missing[:, None] * totals / totals.sum()
    left = _matern(wanted, wanted) - plain @ across.T
    left = left + missing[:, None] * missing / totals.sum()
    return inverse - totals[:, None] * totals / totals.sum(), sums, left


def _matern(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The Matérn kernel with ν = 3/2: it allows rows to bend freely, but not to jump."""
    distance = math.sqrt(3) / LENGTH * (one[:, None] - other).abs()
    return (1 + distance) * torch.exp(-distance)


def _remainder(
    inverse: torch.Tensor, gram: torch.Tensor, known: torch.Tensor, wanted: torch.Tensor
) -> torch.Tensor:
    """σ at the wanted places `(m,)`: smoothed over neighbours, and interpolated as logarithms."""
    squares = (inverse @ gram @ inverse).diagonal() / inverse.diagonal()
    logs = squares.clamp_min(_LEAST).log()
    padded = torch.cat([logs[:1], logs, logs[-1:]])
    smooth = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    return (linear_weights(known, wanted) @ smooth / 2).exp()


def linear_weights(known: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """`(m, k)`: the weights of known values in a linear interpolation at the wanted places.

    Beyond the ends the last value is used.

    Args:
        known: `(k,)` places, rising or falling.
        wanted: `(m,)` places.
    """
    order = known.argsort()
    places = known[order].contiguous()
    inside = wanted.clamp(float(places[0]), float(places[-1])).contiguous()
    above = torch.searchsorted(places, inside).clamp(1, len(places) - 1)
    share = (inside - places[above - 1]) / (places[above] - places[above - 1])
    rows = torch.arange(len(wanted))
    weights = torch.zeros(len(wanted), len(known), dtype=torch.float64)
    weights[rows, order[above - 1]] = 1 - share
    weights[rows, order[above]] += share
    return weights
