"""FLOPs of a forward by PyTorch's own counter, which sees every operation: the reference."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def forward_arguments(module: torch.nn.Module) -> list[Arguments]:
    """A list that every later call of the module adds its arguments to."""
    calls: list[Arguments] = []
    module.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    return calls


def counted_flops(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, int]:
    """FLOPs of one forward by module path; "" is the whole module."""
    # The counter misses some fused attentions (the CPU's), but knows all plain products.
    with (
        torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter
    ):  # fmt: skip
        module(*args, **kwargs)
    root = type(module).__name__ + "."
    counts = {
        path.removeprefix(root): sum(operations.values())
        for path, operations in counter.get_flop_counts().items()
        if path.startswith(root)
    }
    return counts | {"": counter.get_total_flops()}
