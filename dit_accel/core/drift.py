"""Relative errors between a cached and a fresh value.

Two tensors come in; a float32 tensor goes out, on the device of the inputs. So callers can read
many results in one host sync. The module knows no sites, steps or models.

Source: UniCP (arXiv 2502.04393) measures the error between attention outputs of different steps,
but does not publish the norm. We use the relative L1 norm, as TeaCache does (arXiv 2411.19108
§3.3).
"""

from __future__ import annotations

import torch


def l1_sums(cached: torch.Tensor, fresh: torch.Tensor) -> torch.Tensor:
    """Sum |fresh - cached| and sum |fresh|, accumulated in float32; their `ratio` is the drift.

    If several ranks have a part of the tokens each, add their sums before the division.

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
    """The first number of each pair over the second, `(..., 2)` -> `(...)`.

    0 if the first is 0; else infinite if the second is 0; NaN if either is NaN.
    """
    change, size = sums.unbind(-1)
    return torch.where(change == 0, change, change / size)


def relative_l2(change: torch.Tensor, fresh: torch.Tensor, dim: int | None = None) -> torch.Tensor:
    """|change| / |fresh| in the L2 norm, over `dim` or over all dimensions.

    The tensors have the same shape, floating point. Returns float32 >= 0: 0 for no change, NaN if
    either has a NaN.
    """
    size = torch.linalg.vector_norm(change, 2, dim=dim, dtype=torch.float32)
    of = torch.linalg.vector_norm(fresh, 2, dim=dim, dtype=torch.float32)
    return torch.where(size == 0, size, size / of)


def projection_coefficient(change: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """<change, direction> / |direction|², 0-dimensional float32, for tensors of the same shape.

    0 for a zero direction, NaN if either has a NaN.
    """
    wide = direction.float()
    size = wide.square().sum()
    return torch.where(size == 0, size, (change.float() * wide).sum() / size)
