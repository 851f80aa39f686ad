"""TODO dit_accel.core.guidance."""

from __future__ import annotations

from typing import Any

import torch


def guided(value: torch.Tensor, guidance: float, branches: str) -> torch.Tensor:
    """What one forward's prediction is to the sampler: where both branches of classifier-free
    guidance came in one batch, the unconditional one first, they are combined.

    Args:
        value: `(B, ...)`, of a forward; or what it was given, twice.
        guidance: the scale s.
        branches: as in `families.Family`.

    Returns:
        the value itself, or `(B / 2, ...)`: u + s (c - u).
    """
    if branches != "batched" or guidance <= 1:
        return value
    uncond, cond = value.chunk(2)
    return uncond + guidance * (cond - uncond)


def conditional(text: Any, guidance: float, branches: str) -> torch.Tensor | None:
    """The text of the prompts themselves, of what a run's first forward is given: `(B, L, T)`.

    Args:
        text: of the forward; None where it has none of that form.
        guidance: the scale s.
        branches: as in `families.Family`.
    """
    if not isinstance(text, torch.Tensor) or text.ndim != 3:
        return None
    return text.chunk(2)[1] if branches == "batched" and guidance > 1 else text
