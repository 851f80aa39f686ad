"""Fits the correction of a window to the residual error of accelerated runs, near a given centre.

In: the correction that is known without any run, the *centre*; for each prompt the window's
features, and the residual error when the line extrapolates the window. Out: the correction that
leaves the least of it, held near the centre, over all prompts, or over all but one. How strongly it
is held is found by leaving prompts out. Where this shows no gain, it stays the centre. Prompts are
weighed by the inverse of their error. Knows tensors of features; no model.
Source: ours (docs/how-it-works.md, section 4).
Shapes: P prompts, K known ones, F features, N numbers of a latent, S strengths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

# For so many prompts the centre counts. Of equal ones the first is taken: the centre alone.
STRENGTHS = torch.tensor(
    [math.inf, *(10 ** (power / 2) for power in range(4, -13, -1))], dtype=torch.float64
)
MAX_FOLDS = 32  # groups of prompts that are left out in turn: more would take long
_FLOOR = 1e-6  # of the latents' mean square: bounds the weight of a prompt with hardly any error
_DIAGONAL = 1e-3  # share of the ridge on each feature's square alone: features are nearly parallel


class RidgeMoments:
    """The least squares problem of one window, prompt by prompt.

    Args:
        centre: `(F,)`, the correction that others are held to.
    """

    def __init__(self, centre: torch.Tensor) -> None:
        self.centre = centre.double()
        self.matrices: dict[int, torch.Tensor] = {}
        self.vectors: dict[int, torch.Tensor] = {}  # of what the centre leaves

    def add(
        self, prompts: Sequence[int], features: torch.Tensor, residual: torch.Tensor,
        size: torch.Tensor,
    ) -> None:  # fmt: skip
        """Take in prompts; a second time replaces the first.

        Args:
            prompts: P numbers.
            features: `(F, P, N)`, what one unit of each adds to the latents.
            residual: `(P, N)`, what is missing when the line has extrapolated the window.
            size: `(P,)` mean square of the final latents.
        """
        rows = features.double().transpose(0, 1)
        wanted = residual.double() - torch.einsum("f,pfn->pn", self.centre.to(rows), rows)
        floor = _FLOOR * size.to(wanted)
        weight = (wanted.square().mean(1) + floor) ** -0.5 / wanted.shape[1]
        matrices = (rows @ rows.mT * weight[:, None, None]).cpu()
        vectors = (rows @ wanted[:, :, None] * weight[:, None, None])[:, :, 0].cpu()
        self.matrices |= dict(zip(prompts, matrices.unbind(), strict=True))
        self.vectors |= dict(zip(prompts, vectors.unbind(), strict=True))

    def gains(self) -> torch.Tensor:
        """`(folds, S)`: by how much a group's squared error changes from the centre to the fit to
        all other prompts. With one prompt there are no others: 0."""
        matrices, vectors = self._known()
        folds = min(len(matrices), MAX_FOLDS)
        fold = torch.arange(len(matrices)) % folds
        own = matrices.new_zeros(folds, *matrices.shape[1:]).index_add(0, fold, matrices)
        wanted = vectors.new_zeros(folds, *vectors.shape[1:]).index_add(0, fold, vectors)
        found = _added(
            matrices.sum(0) - own, vectors.sum(0) - wanted, len(matrices) - fold.bincount()
        )
        squares = torch.einsum("ksf,kfg,ksg->ks", found, own, found)
        return squares - 2 * torch.einsum("ksf,kf->ks", found, wanted)

    def correction(self, gains: torch.Tensor | None = None) -> torch.Tensor:
        """`(F,)` float64, fitted to all prompts.

        Args:
            gains: `(folds, S)`, of this window and others; None: of this one.
        """
        matrices, vectors = self._known()
        every = matrices.sum(0)[None], vectors.sum(0)[None]
        found = _added(*every, torch.tensor([len(matrices)]))[0]
        return self.centre + found[(self.gains() if gains is None else gains).sum(0).argmin()]

    def held_out(self, prompts: Sequence[int], gains: torch.Tensor | None = None) -> torch.Tensor:
        """`(P, F)` float64: for each of these known prompts the correction fitted to all others, as
        strong as their gains say; `gains` as of `correction`."""
        gains = self.gains() if gains is None else gains
        matrices, vectors = self._known()
        order = list(self.matrices)
        own = [order.index(prompt) for prompt in prompts]
        others = matrices.sum(0) - matrices[own], vectors.sum(0) - vectors[own]
        found = _added(*others, torch.full((len(own),), len(order) - 1))  # (P, S, F)
        of_others = gains.sum(0) - gains[[place % len(gains) for place in own]]
        return self.centre + found[torch.arange(len(own)), of_others.argmin(1)]

    def _known(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`(K, F, F)`, `(K, F)`."""
        return torch.stack([*self.matrices.values()]), torch.stack([*self.vectors.values()])


def _added(matrices: torch.Tensor, vectors: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """`(K, S, F)`: what is added to the centre, from sums over `count` `(K,)` prompts."""
    squares = torch.diag_embed(matrices.diagonal(dim1=1, dim2=2))
    ridge = (matrices + _DIAGONAL * squares) / count.clamp_min(1)[:, None, None]
    finite = STRENGTHS[1:]
    tiny = 1e-12 * squares + 1e-30 * torch.eye(matrices.shape[1])  # a feature may be zero
    penalised = (matrices + tiny)[:, None] + finite[:, None, None] * ridge[:, None]
    found = torch.linalg.solve(penalised, vectors[:, None].expand(-1, len(finite), -1))
    return torch.cat([torch.zeros_like(found[:, :1]), found], 1)
