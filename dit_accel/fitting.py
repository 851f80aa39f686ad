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

Prompts are weighed by the inverse square of what their line leaves: it is relative error that
decibels measure. Knows tensors of features and numbers; no model. Ours.

Shapes: F features, N numbers of a latent.
"""

from __future__ import annotations

import torch

RIDGE = 1e-4  # how strongly a change fitted on accelerated runs is held back
_FLOOR = 1e-6  # of the target's own size: a prompt whose line is all but exact weighs no more


class Moments:
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
        rows, wanted = features.double(), left.double()
        weight = 1 / float(wanted.square().mean() + _FLOOR * size) / wanted.numel()
        self.matrices[prompt] = rows @ rows.T * weight
        self.vectors[prompt] = rows @ wanted * weight

    def change(
        self, *, without: int | None = None, least: int = 1, ridge: float = RIDGE
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
