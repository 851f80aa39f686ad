"""Fits the correction of a window to the residual error of accelerated runs.

In: for each prompt the window's features, and the residual error when the line extrapolates the
window. Out: the correction that leaves the least of it, over all prompts, or over all but one.
Prompts are weighed by the inverse of their error. Knows tensors of features; no model.
Source: ours (docs/how-it-works.md, section 4).
Shapes: P prompts, F features, N numbers of a latent.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

REFIT_RIDGE = 1e-4  # relative to the features' squares
_FLOOR = 1e-6  # of the latents' mean square: bounds the weight of a prompt with hardly any error


class RidgeMoments:
    """The least squares problem of one window, prompt by prompt."""

    def __init__(self) -> None:
        self.matrices: dict[int, torch.Tensor] = {}
        self.vectors: dict[int, torch.Tensor] = {}

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
        rows, wanted = features.double().transpose(0, 1), residual.double()
        floor = _FLOOR * size.to(wanted)
        weight = (wanted.square().mean(1) + floor) ** -0.5 / wanted.shape[1]
        matrices = (rows @ rows.mT * weight[:, None, None]).cpu()
        vectors = (rows @ wanted[:, :, None] * weight[:, None, None])[:, :, 0].cpu()
        self.matrices |= dict(zip(prompts, matrices.unbind(), strict=True))
        self.vectors |= dict(zip(prompts, vectors.unbind(), strict=True))

    def correction(
        self, *, without: int | None = None, least: int = 1, ridge: float = REFIT_RIDGE
    ) -> torch.Tensor | None:
        """`(F,)` float64, fitted to all prompts but one; None with fewer than `least` of them."""
        known = [prompt for prompt in self.matrices if prompt != without]
        if len(known) < max(least, 1):
            return None
        matrix = torch.stack([self.matrices[prompt] for prompt in known]).sum(0)
        vector = torch.stack([self.vectors[prompt] for prompt in known]).sum(0)
        penalised = matrix + torch.diag(ridge * matrix.diagonal() + 1e-30)
        return torch.linalg.solve(penalised, vector)

    def held_out(
        self, prompts: Sequence[int], *, least: int = 1, ridge: float = REFIT_RIDGE
    ) -> torch.Tensor | None:
        """`(P, F)` float64: for each of these known prompts the correction fitted to all others;
        None with fewer than `least` others."""
        if len(self.matrices) - 1 < max(least, 1):
            return None
        matrices = torch.stack([self.matrices[prompt] for prompt in prompts])
        vectors = torch.stack([self.vectors[prompt] for prompt in prompts])
        others = torch.stack(list(self.matrices.values())).sum(0) - matrices
        penalised = others + torch.diag_embed(ridge * others.diagonal(dim1=1, dim2=2) + 1e-30)
        total = torch.stack(list(self.vectors.values())).sum(0)
        return torch.linalg.solve(penalised, total - vectors)
