"""Combines or separates the branches of classifier-free guidance in a forward's tensors.

Goes in: a tensor of one forward. Comes out: the guided tensor, or the conditional one. In families
whose branches run in one batch, the unconditional half comes first. If a pipeline does not report
how it weighs its branches, `FirstStep` measures it. It knows no pipeline. Source: classifier-free
guidance (arXiv 2207.12598).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

_TRIMS = 4  # repetitions of a fit with the half of the numbers that fits best
MAX_MISFIT = 0.05  # largest residual of measured weights, relative to the guided prediction


def guided(value: torch.Tensor, guidance: float, branches: str) -> torch.Tensor:
    """The guided value of one forward, if both branches are in one batch.

    Args:
        value: `(B, ...)`: a prediction, or latents that the batch has twice.
        guidance: the scale s.
        branches: see `Family`.

    Returns:
        `(B / 2, ...)`: u + s (c - u); the value itself if there is one branch.

    Example:
        >>> guided(torch.tensor([[1.0], [3.0]]), 4.0, "batched")
        tensor([[9.]])
    """
    if branches != "batched" or guidance <= 1:
        return value
    uncond, cond = value.chunk(2)
    return uncond + guidance * (cond - uncond)


def conditional(text: Any, guidance: float, branches: str) -> torch.Tensor | None:
    """The text embedding of the prompts in a run's first forward, without the negative prompts.

    Args:
        text: the forward's text, `(B, L, T)`; anything else gives None.
        guidance: the scale s.
        branches: see `Family`.

    Returns:
        `(B, L, T)`, or `(B / 2, L, T)` if both branches are in one batch.
    """
    if not isinstance(text, torch.Tensor) or text.ndim != 3:
        return None
    return text.chunk(2)[1] if branches == "batched" and guidance > 1 else text


Main = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class FirstStep:
    """What a run's first step showed.

    Args:
        components: the first branch's prediction, then each other branch's difference from it.
        guided: the guided prediction that the sampler got; None: it is not known.
        noise: the latents before the step, in the predictions' shape; None: they are not known.
        main: returns the part of a component that the sampler gets; None: the sampler gets all.
    """

    components: Sequence[torch.Tensor]
    guided: torch.Tensor | None
    noise: torch.Tensor | None = None
    main: Main | None = None

    def weights(self) -> tuple[float, ...] | None:
        """The weights of the components in the guided prediction, scaled so that the first is 1.

        They are found by least squares, in one host sync. None: the guided prediction is not a
        weighted sum of the components.

        Example:
            >>> cond, uncond = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0.5, 1.0, 1.0])
            >>> FirstStep((cond, uncond - cond), uncond + 3.0 * (cond - uncond)).weights()
            (1.0, -2.0)
        """
        if self.guided is None:
            return None
        fits = [_fit(rows, self.guided) for rows in self._rows(self.guided.shape)]
        found, misfit = min(fits, key=lambda fit: fit[1], default=(torch.zeros(1), math.inf))
        # One forward; it may have both branches as halves. Without fits, nothing can be compared.
        if len(self.components) == 1:
            return (1.0,) if misfit <= MAX_MISFIT or not fits else None
        first, *others = found.tolist()
        if not misfit <= MAX_MISFIT or not first:
            return None
        return (1.0, *(round(other / first, 2) for other in others))  # bfloat16's precision

    def _rows(self, shape: torch.Size) -> Iterator[list[torch.Tensor]]:
        """The forms in which the sampler may have got the components, each of this shape: as they
        are, as halves of a batch, or without their first or last frames or channels."""
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
    """The first or last part of a tensor with this shape; None: the tensor is too small."""
    if row.ndim != len(shape):
        return None
    for dim, (own, wanted) in enumerate(zip(row.shape, shape, strict=True)):
        if own < wanted:
            return None
        row = row.narrow(dim, own - wanted if last else 0, wanted)
    return row


def _fit(rows: Sequence[torch.Tensor], guided: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Weights of the rows in a prediction by least squares, and the relative residual.

    If the fit is bad, it is repeated with the half of the numbers that fits best. A pipeline may
    overwrite frames that were given to it; the other half has no such frames.
    """
    flat = torch.stack([row.float().flatten() for row in (*rows, guided)])
    found, misfit = _least_squares(flat)
    if misfit > MAX_MISFIT:
        for _ in range(_TRIMS):
            left = (flat[-1] - found.to(flat) @ flat[:-1]).abs()
            found, misfit = _least_squares(flat[:, left <= left.median()])
    return found, misfit


def _least_squares(flat: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Weights of all rows but the last in the last row, and the relative residual.

    If a row is not finite, the residual is 1: LAPACK would raise an error.
    """
    gram = (flat @ flat.T).double().cpu()
    if not gram.isfinite().all():
        return torch.zeros(len(gram) - 1, dtype=gram.dtype), 1.0
    sizes = gram.diagonal().sqrt().clamp_min(1e-30)
    gram = gram / sizes / sizes[:, None]  # else a small row is lost in a large one's rounding
    found = torch.linalg.lstsq(gram[:-1, :-1], gram[:-1, -1:], driver="gelsd").solution[:, 0]
    misfit = (1 - found @ gram[:-1, -1]).clamp_min(0).sqrt()
    return found / sizes[:-1] * sizes[-1], float(misfit)
