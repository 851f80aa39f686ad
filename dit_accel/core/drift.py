"""How far a kept value is from a fresh one: relative errors.

Knows tensors, nothing of sites, steps or models. Results stay on the device of their inputs as
0-dimensional float32 tensors; whoever needs numbers reads many of them at once.

Sources: UniCP (arXiv 2502.04393) measures the error between attention outputs of different steps;
the norm is not public. We take the relative L1 norm, as TeaCache (arXiv 2411.19108 §3.3) does.
"""

from __future__ import annotations

import torch


def relative_l1(kept: torch.Tensor, fresh: torch.Tensor) -> torch.Tensor:
    """Drift: sum |fresh - kept| / sum |fresh|, accumulated in float32.

    Args:
        kept: any shape, floating point.
        fresh: the same shape as `kept`.

    Returns:
        A 0-dimensional float32 tensor >= 0 on the device of `fresh`; 0 for two equal tensors (also
        when both are zero), infinite when only `fresh` is zero, NaN when either holds a NaN.

    Raises:
        ValueError: the shapes differ.
    """
    if kept.shape != fresh.shape:
        shapes = f"kept has shape {tuple(kept.shape)}, fresh {tuple(fresh.shape)}"
        raise ValueError(f"{shapes}; accepted: equal shapes")
    change = torch.linalg.vector_norm(fresh - kept, 1, dtype=torch.float32)
    size = torch.linalg.vector_norm(fresh, 1, dtype=torch.float32)
    return torch.where(change == 0, change, change / size)


def relative_l2(change: torch.Tensor, fresh: torch.Tensor, dim: int | None = None) -> torch.Tensor:
    """Norm of a change over the norm of what it is a change of, in float32.

    Args:
        change: any shape, floating point.
        fresh: the same shape.
        dim: the dimension that norms are taken over; None: all.

    Returns:
        A float32 tensor >= 0, 0-dimensional or without `dim`; 0 for no change, NaN when either
        holds a NaN.
    """
    size = torch.linalg.vector_norm(change, 2, dim=dim, dtype=torch.float32)
    of = torch.linalg.vector_norm(fresh, 2, dim=dim, dtype=torch.float32)
    return torch.where(size == 0, size, size / of)


def projection_coefficient(change: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """How many times a direction lies in a change: <change, direction> / |direction|^2, in float32.

    Args:
        change: any shape, floating point.
        direction: the same shape.

    Returns:
        A 0-dimensional float32 tensor; 0 where the direction is nothing, NaN when either holds one.
    """
    wide = direction.float()
    size = wide.square().sum()
    return torch.where(size == 0, size, (change.float() * wide).sum() / size)
