"""Folds what one forward gives or gets by the branches of classifier-free guidance.

Goes in: a tensor of one forward. Comes out: the guided one, or the conditional one. In families
whose branches run in one batch, the unconditional half comes first. Where a pipeline does not say
how it weighs its branches, `FirstStep` measures it. It knows no pipeline. Source: classifier-free
guidance (arXiv 2207.12598).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

_TRIMS = 4  # until the half that fits is found
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


Main = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class FirstStep:
    """What a run's first step showed.

    Args:
        components: the first branch's prediction, then every other one's difference from it.
        guided: what the sampler got for them; None: it is not known.
        noise: the latents before the step, of the predictions' shape; None: they are not known.
        main: takes what the sampler gets out of a component, where it has more; None: all.
    """

    components: Sequence[torch.Tensor]
    guided: torch.Tensor | None
    noise: torch.Tensor | None = None
    main: Main | None = None

    def weights(self) -> tuple[float, ...] | None:
        """The components' weights in the guided prediction, where the first one weighs 1.

        By least squares, in one host sync. None: the guided prediction is no such sum.

        Example:
            >>> cond, uncond = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0.5, 1.0, 1.0])
            >>> FirstStep((cond, uncond - cond), uncond + 3.0 * (cond - uncond)).weights()
            (1.0, -2.0)
        """
        if self.guided is None:
            return None
        fits = [_fit(rows, self.guided) for rows in self._rows(self.guided.shape)]
        found, misfit = min(fits, key=lambda fit: fit[1], default=(torch.zeros(1), math.inf))
        if len(self.components) == 1:  # also where both branches are halves of it
            return (1.0,) if misfit <= MAX_MISFIT or not fits else None  # else nothing is compared
        first, *others = found.tolist()
        if not misfit <= MAX_MISFIT or not first:
            return None
        return (1.0, *(round(other / first, 2) for other in others))  # to bfloat16's rounding

    def _rows(self, shape: torch.Size) -> Iterator[list[torch.Tensor]]:
        """The components as the sampler may have got them, each of this shape: whole, as the halves
        of a batch, without their first or last frames or channels."""
        rows = map(self.main, self.components) if self.main else self.components
        halves = [half for row in rows for half in _halves(row, shape)]
        if halves and (len(halves) == len(self.components) or len(self.components) == 1):
            for last in (False, True):
                cut = [_cut(half, shape, last=last) for half in halves]
                found = [row for row in cut if row is not None]
                if len(found) == len(halves):
                    yield found


def _halves(row: torch.Tensor, shape: torch.Size) -> tuple[torch.Tensor, ...]:
    times = len(row) // max(shape[0], 1)
    return row.chunk(times) if times in (1, 2) and len(row) == times * shape[0] else ()


def _cut(row: torch.Tensor, shape: torch.Size, *, last: bool) -> torch.Tensor | None:
    """The first or last part of a tensor, of this shape; None: it is none of its parts."""
    if row.ndim != len(shape):
        return None
    for dim, (own, wanted) in enumerate(zip(row.shape, shape, strict=True)):
        if own < wanted:
            return None
        row = row.narrow(dim, own - wanted if last else 0, wanted)
    return row


def _fit(rows: Sequence[torch.Tensor], guided: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Weights of the rows in a prediction, by least squares, and what they leave of it.

    Where they do not fit, one more time with the half that fits best: a pipeline holds frames that
    were given.
    """
    flat = torch.stack([row.float().flatten() for row in (*rows, guided)])
    found, misfit = _least_squares(flat)
    if misfit > MAX_MISFIT:
        for _ in range(_TRIMS):
            left = (flat[-1] - found.to(flat) @ flat[:-1]).abs()
            found, misfit = _least_squares(flat[:, left <= left.median()])
    return found, misfit


def _least_squares(flat: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Weights of all rows but the last in the last one, and the share of it that is left: all,
    where a row is not finite, at which LAPACK raises an error."""
    gram = (flat @ flat.T).double().cpu()
    if not gram.isfinite().all():
        return torch.zeros(len(gram) - 1, dtype=gram.dtype), 1.0
    sizes = gram.diagonal().sqrt().clamp_min(1e-30)
    gram = gram / sizes / sizes[:, None]  # so that no row is lost in another one's rounding
    found = torch.linalg.lstsq(gram[:-1, :-1], gram[:-1, -1:], driver="gelsd").solution[:, 0]
    misfit = (1 - found @ gram[:-1, -1]).clamp_min(0).sqrt()
    return found / sizes[:-1] * sizes[-1], float(misfit)
