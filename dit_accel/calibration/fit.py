"""Fits the correction of a window to the residual error of accelerated runs, near a given centre.

In: the correction that is known without any run, the *centre*; for each prompt the window's
features, and the residual error when the line extrapolates the window. Out: the correction that
leaves the least of it, shrunk towards the centre, over all prompts, or over all but one. How
strongly it is shrunk is found by leaving prompts out. Where this shows no gain, it stays the
centre; one or two prompts cannot say. Prompts are weighed by the inverse of their error. Knows
tensors of features; no model.
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
MIN_CLIPS = 3  # that say how strongly to shrink
USUAL = 4  # the place in STRENGTHS, 3, for one or two clips (research/LOG.md)
MAX_FOLDS = 32  # groups of prompts that are left out in turn: more would take long
_FLOOR = 1e-6  # of the latents' mean square: bounds the weight of a prompt with hardly any error
_DIAGONAL = 1e-3  # share of the ridge on each feature's square alone: features are nearly parallel


class RidgeMoments:
    """The least squares problem of one window, prompt by prompt.

    Args:
        centre: `(F,)`, the correction that others are shrunk towards.
    """

    def __init__(self, centre: torch.Tensor) -> None:
        self.centre = centre.double()
        self.matrices: dict[int, torch.Tensor] = {}
        self.vectors: dict[int, torch.Tensor] = {}  # of what the centre leaves
        self.squares: dict[int, float] = {}  # of the same
        self.weights: dict[int, float] = {}  # that the three have

    def add(
        self, prompts: Sequence[int], features: torch.Tensor, residual: torch.Tensor,
        size: torch.Tensor, expected: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        """Take in prompts; a second time replaces the first.

        Where a clip's run has left the uncached one's path, what is missing says little of the
        weights. So a clip pulls as strongly as one with the expected error at most (Huber, 1964).

        Args:
            prompts: P numbers.
            features: `(F, P, N)`, what one unit of each adds to the latents.
            residual: `(P, N)`, what is missing when the line has extrapolated the window.
            size: `(P,)` mean square of the final latents.
            expected: `(P,)` mean square of what the centre should leave; None: not known.
        """
        rows = features.double().transpose(0, 1)
        wanted = residual.double() - torch.einsum("f,pfn->pn", self.centre.to(rows), rows)
        if expected is not None:
            share = (expected.to(wanted) / wanted.square().mean(1).clamp_min(1e-30)).sqrt()
            wanted *= share.clamp_max(1.0)[:, None]
        floor = _FLOOR * size.to(wanted)
        weight = (wanted.square().mean(1) + floor) ** -0.5 / wanted.shape[1]
        matrices = (rows @ rows.mT * weight[:, None, None]).cpu()
        vectors = (rows @ wanted[:, :, None] * weight[:, None, None])[:, :, 0].cpu()
        self.matrices |= dict(zip(prompts, matrices.unbind(), strict=True))
        self.vectors |= dict(zip(prompts, vectors.unbind(), strict=True))
        squares = (wanted.square().sum(1) * weight).tolist()
        self.squares |= dict(zip(prompts, squares, strict=True))
        self.weights |= dict(zip(prompts, weight.tolist(), strict=True))

    def gains(self) -> torch.Tensor:
        """How the squared error of prompts that a fit has not seen changes, from the centre to the
        fit, at every strength.

        Returns:
            `(S,)` float64, over all groups of prompts that are left out in turn; while fewer than
            `MIN_CLIPS` are known, -1 at the usual strength and 0 elsewhere.
        """
        number = len(self.matrices)
        if number < MIN_CLIPS:
            usual = torch.zeros(len(STRENGTHS), dtype=torch.float64)
            usual[USUAL] = -1.0
            return usual
        matrices, vectors = self._known(None)
        folds = min(len(matrices), MAX_FOLDS)
        fold = torch.arange(len(matrices)) % folds
        own = matrices.new_zeros(folds, *matrices.shape[1:]).index_add(0, fold, matrices)
        wanted = vectors.new_zeros(folds, *vectors.shape[1:]).index_add(0, fold, vectors)
        counts = len(matrices) - fold.bincount()
        found = _added(matrices.sum(0) - own, vectors.sum(0) - wanted, counts)
        squares = torch.einsum("ksf,kfg,ksg->ks", found, own, found)
        return (squares - 2 * torch.einsum("ksf,kf->ks", found, wanted)).sum(0)

    def correction(self, gains: torch.Tensor, *, without: int | None = None) -> torch.Tensor:
        """`(F,)` float64, fitted to all prompts but one, at the strength that gains most.

        Args:
            gains: `(S,)`, of this window or summed over several.
            without: the prompt that has no part in it.
        """
        matrices, vectors = self._known(without)
        counts = torch.tensor([len(matrices)])
        found = _added(matrices.sum(0)[None], vectors.sum(0)[None], counts)[0]
        return self.centre + found[gains.argmin()]

    def changed(self, prompt: int, gains: torch.Tensor) -> float:
        """The squared norm of what the window would add otherwise to a prompt's latents, were its
        correction fitted without that prompt.

        Args:
            gains: as of `correction`.
        """
        change = self.correction(gains, without=prompt) - self.correction(gains)
        matrix = self.matrices[prompt].double()
        return float(change @ matrix @ change) / self.weights[prompt]

    def _known(self, without: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        """`(K, F, F)`, `(K, F)`, of all prompts but one."""
        known = [prompt for prompt in self.matrices if prompt != without]
        count = len(self.centre)
        matrices = [torch.zeros(0, count, count), *(self.matrices[q][None] for q in known)]
        vectors = [torch.zeros(0, count), *(self.vectors[q][None] for q in known)]
        return torch.cat(matrices).double(), torch.cat(vectors).double()


def _added(matrices: torch.Tensor, vectors: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """`(K, S, F)`: what is added to the centre, from K sums, each over so many prompts."""
    squares = torch.diag_embed(matrices.diagonal(dim1=1, dim2=2))
    ridge = (matrices + _DIAGONAL * squares) / counts.clamp_min(1)[:, None, None]
    # a feature may be zero, and there may be no prompt
    tiny = 1e-12 * squares + 1e-30 * torch.eye(matrices.shape[1], dtype=torch.float64)
    finite = STRENGTHS[1:, None, None]
    penalised = (matrices + tiny)[:, None] + finite * ridge[:, None]
    found = torch.linalg.solve(penalised, vectors[:, None].expand(-1, len(finite), -1))
    return torch.cat([torch.zeros_like(found[:, :1]), found], 1)
