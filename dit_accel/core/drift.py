"""Relative errors between a cached and a fresh value.

Two tensors come in; a float32 tensor goes out, on the device of the inputs, so that callers read
many results with one host sync. It knows no sites, steps or models.

Source: UniCP (arXiv 2502.04393) measures the error between attention outputs of different steps,
but does not publish the norm. We use the relative L1 norm, as TeaCache (arXiv 2411.19108 §3.3).
"""

from __future__ import annotations

import torch


def l1_sums(cached: torch.Tensor, fresh: torch.Tensor) -> torch.Tensor:
    """Sum |fresh - cached| and sum |fresh|, accumulated in float32; their `ratio` is the drift.

    Where each of several ranks has a part of the tokens, their sums are added before the division.

    Args:
        cached: any shape, floating point.
        fresh: same shape.

    Returns:
        `(2,)` float32.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> ratio(l1_sums(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 2.0]))).item()
        0.25
    """
    if cached.shape != fresh.shape:
        shapes = f"cached has shape {tuple(cached.shape)}, fresh {tuple(fresh.shape)}"
        raise ValueError(f"{shapes}; accepted: equal shapes")
    change = torch.linalg.vector_norm(fresh - cached, 1, dtype=torch.float32)
    return torch.stack([change, torch.linalg.vector_norm(fresh, 1, dtype=torch.float32)])


def ratio(sums: torch.Tensor) -> torch.Tensor:
    """The first over the second of each pair, `(..., 2)` -> `(...)`: 0 where the first is 0, else
    infinite where the second is 0; NaN where either is."""
    change, size = sums.unbind(-1)
    return torch.where(change == 0, change, change / size)


def relative_l2(change: torch.Tensor, fresh: torch.Tensor, dim: int | None = None) -> torch.Tensor:
    """|change| / |fresh| in the L2 norm, over `dim` or all dimensions.

    Tensors are of one shape, floating point. Returns float32 >= 0: 0 for no change, NaN where
    either has a NaN.
    """
    size = torch.linalg.vector_norm(change, 2, dim=dim, dtype=torch.float32)
    of = torch.linalg.vector_norm(fresh, 2, dim=dim, dtype=torch.float32)
    return torch.where(size == 0, size, size / of)


def projection_coefficient(change: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """<change, direction> / |direction|²: 0-dimensional float32, of two tensors of one shape.

    0 for a zero direction, NaN where either has a NaN.
    """
    wide = direction.float()
    size = wide.square().sum()
    return torch.where(size == 0, size, (change.float() * wide).sum() / size)
