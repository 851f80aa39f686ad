"""Fits the correction of a window to the residual error of accelerated runs, near a given centre.

In: the *centre*, a correction that is known without any run; for each prompt, the window's features
and the residual error after the line has extrapolated the window. Out: the correction that leaves
the least residual error over all prompts, or over all but one. It is shrunk towards the centre.
The strength of shrinking is found by cross-validation over prompts. If no strength gives a gain,
the correction is the centre. One or two prompts are too few for this, and get a fixed strength.
Prompts are weighed by the inverse of their error.
Knows tensors of features; no model.
Source: ours (docs/how-it-works.md, section 4).
Shapes: P prompts, K known ones, F features, N numbers of a latent, S strengths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

# A strength is the number of prompts that the centre counts as. The first one, infinity, gives the
# centre alone; among equal strengths the first wins.
STRENGTHS = torch.tensor(
    [math.inf, *(10 ** (power / 2) for power in range(4, -13, -1))], dtype=torch.float64
)
MIN_CLIPS = 3  # with fewer clips there is no cross-validation
USUAL = 5  # index in STRENGTHS for one or two clips; the strength is 1 (research/LOG.md)
# Times the expected norm of an error; a run with a larger error has diverged. It is two standard
# deviations, as errors of prompts differ by 6 dB.
DIVERGED = 4.0
MAX_FOLDS = 32  # groups of prompts that are left out in turn; more would take too long
_FLOOR = 1e-6  # over the latents' mean square; bounds the weight of a prompt with little error
_DIAGONAL = 1e-3  # share of a diagonal ridge, needed because features are nearly parallel


class RidgeMoments:
    """The least squares problem of one window, as one pair of moments for each prompt.

    Args:
        centre: `(F,)`, the correction towards which fits are shrunk.
        penalty: `(F, F)`, positive semidefinite: the moments that are expected of one prompt
            (`expected_moments`). They are the metric of shrinking. With a prompt's own moments as
            the metric, fits to one prompt would move far where other prompts have larger features.
    """

    def __init__(self, centre: torch.Tensor, penalty: torch.Tensor) -> None:
        self.centre, self.penalty = centre.double(), penalty.double()
        self.matrices: dict[int, torch.Tensor] = {}
        self.vectors: dict[int, torch.Tensor] = {}  # features times the error after the centre
        self.squares: dict[int, float] = {}  # squared norm of that error
        self.weights: dict[int, float] = {}  # each prompt's weight, included in the other three
        self.diverged: dict[int, bool] = {}  # the error was over `DIVERGED` times the expected

    def add(
        self, prompts: Sequence[int], features: torch.Tensor, residual: torch.Tensor,
        size: torch.Tensor, expected: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        """Add prompts; a prompt that was added before is replaced.

        If an accelerated run has drifted far from the uncached one, its residual says little about
        the weights. So if the centre leaves a larger error than expected, it is scaled down to the
        expected one (Huber, 1964). If it is over `DIVERGED` times as large, the prompt asks for no
        change, as long as there are too few prompts for cross-validation.

        Args:
            prompts: P numbers that identify the prompts.
            features: `(F, P, N)`, what one unit of each feature adds to the latents.
            residual: `(P, N)`, what the latents lack after the line has extrapolated the window.
            size: `(P,)`, mean square of the final latents.
            expected: `(P,)`, mean square of the error that the centre should leave; None: unknown.
        """
        rows = features.double().transpose(0, 1)
        wanted = residual.double() - torch.einsum("f,pfn->pn", self.centre.to(rows), rows)
        share = torch.ones_like(wanted[:, 0])
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
        self.diverged |= dict(zip(prompts, (share < 1 / DIVERGED).tolist(), strict=True))

    def gains(self) -> torch.Tensor:
        """The change of the held-out squared error from the centre to the fit, at every strength.

        Groups of prompts are left out of the fit in turn, and the error is that of these prompts.

        Returns:
            `(S,)` float64, summed over the groups; below 0 is better. With fewer than `MIN_CLIPS`
            prompts it is -1 at the usual strength and 0 elsewhere.
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
        found = _added(matrices.sum(0) - own, vectors.sum(0) - wanted, self.penalty)
        squares = torch.einsum("ksf,kfg,ksg->ks", found, own, found)
        return (squares - 2 * torch.einsum("ksf,kf->ks", found, wanted)).sum(0)

    def correction(self, gains: torch.Tensor, *, without: int | None = None) -> torch.Tensor:
        """`(F,)` float64: the correction at the best strength, fitted to the prompts added so far.

        Args:
            gains: `(S,)`, as `gains` returns it, or a sum over several windows.
            without: the prompt that is left out; None: no prompt.
        """
        matrices, vectors = self._known(without)
        found = _added(matrices.sum(0)[None], vectors.sum(0)[None], self.penalty)[0]
        return self.centre + found[gains.argmin()]

    def changed(self, prompt: int, gains: torch.Tensor) -> float:
        """How much a prompt changes its own correction, as a squared norm in its latents.

        It is the squared norm of a difference: what the window adds to the prompt's latents with a
        correction fitted without the prompt, less what it adds with the usual correction.

        Args:
            gains: as in `correction`.
        """
        change = self.correction(gains, without=prompt) - self.correction(gains)
        matrix = self.matrices[prompt].double()
        return float(change @ matrix @ change) / self.weights[prompt]

    def _known(self, without: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The moments `(K, F, F)` and `(K, F)` of all prompts but one.

        Among few prompts, a diverged one asks for no change.
        """
        known = [prompt for prompt in self.matrices if prompt != without]
        count = len(self.centre)
        matrices = [torch.zeros(0, count, count), *(self.matrices[q][None] for q in known)]
        few = len(self.matrices) < MIN_CLIPS
        wanted = [self.vectors[q] * (not (few and self.diverged[q])) for q in known]
        vectors = [torch.zeros(0, count), *(each[None] for each in wanted)]
        return torch.cat(matrices).double(), torch.cat(vectors).double()


def expected_moments(gram: torch.Tensor, size: float, error: float) -> torch.Tensor:
    """`(F, F)`: the moments of a prompt as an error model expects them, weighted as in `add`.

    Args:
        gram: `(F, F)`, inner products of the features over the squared norm of the final latents.
        size: mean square of the final latents.
        error: what the centre should leave, as a squared error relative to the final latents.
    """
    return gram * math.sqrt(size / (error + _FLOOR))


def _added(matrices: torch.Tensor, vectors: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    """`(K, S, F)`: what is added to the centre at every strength, from K sums of moments."""
    squares = torch.diag_embed(matrices.diagonal(dim1=1, dim2=2))
    ridge = penalty + _DIAGONAL * torch.diag(penalty.diagonal())
    # The matrix needs an inverse also if a feature is zero, or if there are no prompts.
    tiny = 1e-12 * squares + 1e-30 * torch.eye(matrices.shape[1], dtype=torch.float64)
    penalised = (matrices + tiny)[:, None] + STRENGTHS[1:, None, None] * ridge
    found = torch.linalg.solve(penalised, vectors[:, None].expand(-1, len(STRENGTHS) - 1, -1))
    return torch.cat([torch.zeros_like(found[:, :1]), found], 1)
