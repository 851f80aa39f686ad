"""Folds what one forward gives or gets by the branches of classifier-free guidance.

Goes in: a tensor of one forward. Comes out: the guided one, or the conditional one. In families
whose branches run in one batch, the unconditional half comes first. It knows no pipeline. Source:
classifier-free guidance (arXiv 2207.12598).
"""

from __future__ import annotations

from typing import Any

import torch


def guided(value: torch.Tensor, guidance: float, branches: str) -> torch.Tensor:
    """The guided value of one forward, where both branches are in one batch.

    Args:
        value: `(B, ...)`: a prediction, or latents that are there twice.
        guidance: the scale s.
        branches: as of `Family`.

    Returns:
        `(B / 2, ...)`: u + s (c - u); the value itself where there is one branch.

    Example:
        >>> guided(torch.tensor([[1.0], [3.0]]), 4.0, "batched")
        tensor([[9.]])
    """
    if branches != "batched" or guidance <= 1:
        return value
    uncond, cond = value.chunk(2)
    return uncond + guidance * (cond - uncond)


def conditional(text: Any, guidance: float, branches: str) -> torch.Tensor | None:
    """The prompts' text embedding of a run's first forward, without the negative prompts'.

    Args:
        text: of the forward, `(B, L, T)`; anything else gives None.
        guidance: the scale s.
        branches: as of `Family`.

    Returns:
        `(B, L, T)`, or `(B / 2, L, T)` where both branches are in one batch.
    """
    if not isinstance(text, torch.Tensor) or text.ndim != 3:
        return None
    return text.chunk(2)[1] if branches == "batched" and guidance > 1 else text
