"""What changes a window's line, fitted to what accelerated runs really left.

A plan fitted on uncached runs pays back errors as they are foretold. On an accelerated run they are
there to be seen: when a window opens, all that the computed predictions before it have added to the
latents, right and wrong, is known, and so is what the uncached twin of the same prompt adds until
the window closes. The change that leaves least of the difference is a small least squares problem,
over the features of the window (the predictions that its forecasts read, and the noise).

Prompts come one after the other, and only the moments of the problem are kept: a matrix of the
size of the features, and a vector, for each prompt by itself, so that a prompt can be left out. The
run of a prompt can be served by changes that have not seen it, and so its error is an honest one.
Later prompts run with changes fitted to the earlier ones, on trajectories that these changes shape
themselves (as imitation learning gathers its data, arXiv 1011.0686 §3).

Prompts are weighed by the inverse of what their line leaves: between the plain sum of squares,
which serves the few hardest prompts alone, and relative errors, which decibels measure, and which
leave the hardest ones behind (docs/planning.md has the three). Knows tensors of features and
numbers; no model. Ours.

Shapes: F features, N numbers of a latent.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

REFIT_RIDGE = 1e-4  # how strongly a change fitted on accelerated runs is held back
_FLOOR = 1e-6  # of the target's own size: a prompt whose line is all but exact weighs no more


class RidgeMoments:
    """The least squares problem of one window, prompt by prompt."""

    def __init__(self) -> None:
        self.matrices: dict[int, torch.Tensor] = {}
        self.vectors: dict[int, torch.Tensor] = {}

    def add(self, prompt: int, features: torch.Tensor, left: torch.Tensor, size: float) -> None:
        """Take in one prompt; a second time replaces the first.

        Args:
            prompt: its number.
            features: `(F, N)`, what one unit of each adds to the latents.
            left: `(N,)`, what is still to be added when the line has served the window.
            size: mean square of what a whole run adds, > 0.
        """
        self.add_all([prompt], features[:, None], left[None], torch.tensor([size]))

    def add_all(
        self, prompts: Sequence[int], features: torch.Tensor, left: torch.Tensor, size: torch.Tensor
    ) -> None:
        """As `add`, of several prompts: `(F, P, N)`, `(P, N)` and `(P,)`, on any device."""
        rows, wanted = features.double().transpose(0, 1), left.double()
        floor = _FLOOR * size.to(wanted)
        weight = (wanted.square().mean(1) + floor) ** -0.5 / wanted.shape[1]
        matrices = (rows @ rows.mT * weight[:, None, None]).cpu()
        vectors = (rows @ wanted[:, :, None] * weight[:, None, None])[:, :, 0].cpu()
        self.matrices |= dict(zip(prompts, matrices.unbind(), strict=True))
        self.vectors |= dict(zip(prompts, vectors.unbind(), strict=True))

    def change(
        self, *, without: int | None = None, least: int = 1, ridge: float = REFIT_RIDGE
    ) -> torch.Tensor | None:
        """`(F,)` float64: the change fitted to all prompts but one; None where fewer than `least`
        are known."""
        known = [prompt for prompt in self.matrices if prompt != without]
        if len(known) < max(least, 1):
            return None
        matrix = torch.stack([self.matrices[prompt] for prompt in known]).sum(0)
        vector = torch.stack([self.vectors[prompt] for prompt in known]).sum(0)
        held = matrix + torch.diag(ridge * matrix.diagonal() + 1e-30)
        return torch.linalg.solve(held, vector)

    def changes_without(
        self, prompts: Sequence[int], *, least: int = 1, ridge: float = REFIT_RIDGE
    ) -> torch.Tensor | None:
        """`(P, F)` float64: for each of these prompts, which are all known, the change fitted to
        all others; None where fewer than `least` others are known."""
        if len(self.matrices) - 1 < max(least, 1):
            return None
        matrices = torch.stack([self.matrices[prompt] for prompt in prompts])
        vectors = torch.stack([self.vectors[prompt] for prompt in prompts])
        others = torch.stack(list(self.matrices.values())).sum(0) - matrices
        held = others + torch.diag_embed(ridge * others.diagonal(dim1=1, dim2=2) + 1e-30)
        return torch.linalg.solve(held, torch.stack(list(self.vectors.values())).sum(0) - vectors)
