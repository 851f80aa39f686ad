"""Folds what one forward gives or gets by the branches of classifier-free guidance.

Goes in: a tensor of one forward. Comes out: the guided one, or the conditional one. In families
whose branches run in one batch, the unconditional half comes first. Where a pipeline does not say
how it weighs its branches, `FirstStep` measures it. It knows no pipeline. Source: classifier-free
guidance (arXiv 2207.12598).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

MAX_MISFIT = 0.05  # of a measured guidance, relative to the guided prediction


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


@dataclass(frozen=True, eq=False)
class FirstStep:
    """What a run's first step showed.

    Args:
        components: the first branch's prediction, then every other one's difference from it.
        guided: what the sampler got for them; None: it is not known.
        noise: the latents before the step, of the predictions' shape; None: they are not known.
    """

    components: Sequence[torch.Tensor]
    guided: torch.Tensor | None
    noise: torch.Tensor | None = None

    def weights(self) -> tuple[float, ...] | None:
        """The components' weights in the guided prediction, where the first one weighs 1.

        By least squares, in one host sync. None: the guided prediction is no such sum.

        Example:
            >>> cond, uncond = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0.5, 1.0, 1.0])
            >>> FirstStep((cond, uncond - cond), uncond + 3.0 * (cond - uncond)).weights()
            (1.0, -2.0)
        """
        if len(self.components) == 1:
            return (1.0,)
        if self.guided is None or self.guided.shape != self.components[0].shape:
            return None
        flat = torch.stack([row.float().flatten() for row in (*self.components, self.guided)])
        gram = (flat @ flat.T).double().cpu()
        sizes = gram.diagonal().sqrt().clamp_min(1e-30)
        gram = gram / sizes / sizes[:, None]  # so that no row is lost in another one's rounding
        found = torch.linalg.lstsq(gram[:-1, :-1], gram[:-1, -1:], driver="gelsd").solution[:, 0]
        misfit = (1 - found @ gram[:-1, -1]).clamp_min(0).sqrt()
        first, *others = (found / sizes[:-1]).tolist()
        if not misfit <= MAX_MISFIT or not first:
            return None
        return (1.0, *(round(other / first, 2) for other in others))  # to bfloat16's rounding
