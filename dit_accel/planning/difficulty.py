"""How hard a prompt is to accelerate, told by its text before the first step.

Clips differ in what a plan leaves of them, and part of that is in the words: three subjects and a
camera that pans are harder than one on a plain ground. A ridge regression from the mean of the
text's embeddings to the decibels that calibration's clips got, over all plans together, foretells
it; its strength is the one that foretells clips best that were left out. Clips of calibration are
then shifted to the difficulty of the prompt at hand: a promise is made for it, and not for a mean.

Knows numbers; no text encoder. Ours.
Shapes: P clips of calibration, T channels of a text embedding, K plans.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

MIN_FITTED_CLIPS = 45  # clips, below which nothing is fitted
_RIDGES = torch.logspace(-1, 6, 29, dtype=torch.float64)


@dataclass(frozen=True)
class PromptDifficulty:
    """A line over pooled embeddings, in standard deviations of PSNR; higher is harder.

    Args:
        centre: `(T,)` mean embedding.
        weights: `(T,)`.
        known: `(P,)` of calibration's clips, each as foretold without it.
    """

    centre: torch.Tensor
    weights: torch.Tensor
    known: torch.Tensor

    @classmethod
    def fitted(cls, texts: torch.Tensor, psnr_db: torch.Tensor) -> PromptDifficulty | None:
        """Fit it; None where there are too few clips, or texts do not differ.

        Args:
            texts: `(P, T)` pooled embeddings.
            psnr_db: `(K, P)`, what every clip got of every plan.
        """
        if len(texts) < MIN_FITTED_CLIPS or not len(psnr_db):
            return None
        rows, plans = texts.double(), psnr_db.double()
        centre = rows.mean(0)
        spread = (rows - centre).std(0)
        scale = torch.where(spread > 1e-6 * spread.max(), 1 / spread.clamp_min(1e-30), 0.0)
        if not bool(scale.any()):
            return None
        level = plans.std(1, keepdim=True).clamp_min(1e-9)
        wanted = -((plans - plans.mean(1, keepdim=True)) / level).mean(0)
        left, values, right = torch.linalg.svd((rows - centre) * scale, full_matrices=False)
        kept = values**2 / (values**2 + _RIDGES[:, None])  # (ridges, directions)
        seen = torch.einsum("pd,rd,d->rp", left, kept, left.T @ wanted)
        leverage = torch.einsum("pd,rd->rp", left**2, kept) + 1 / len(rows)
        missed = (wanted - seen) / (1 - leverage).clamp_min(1e-6)  # each clip's, without it
        best = int((missed**2).sum(1).argmin())
        factors = values / (values**2 + _RIDGES[best])
        weights = scale * (right.T @ (factors * (left.T @ wanted)))
        return cls(centre, weights, wanted - missed[best])

    def of(self, text: torch.Tensor) -> float:
        """Of the hardest of some prompts.

        Args:
            text: `(B, T)` pooled embeddings.

        Raises:
            ValueError: the embeddings have another width.
        """
        if text.shape[-1] != len(self.centre):
            raise ValueError(f"text has {text.shape[-1]} channels; accepted: {len(self.centre)}")
        return float(((text.double().cpu() - self.centre) @ self.weights).max())

    def shifted(self, psnr_db: torch.Tensor, to: float) -> torch.Tensor:
        """What calibration's clips would have got of a plan, were they as hard as this: `(P,)`."""
        return psnr_db + self.shift(psnr_db) * (to - self.known)

    def shift(self, psnr_db: torch.Tensor) -> torch.Tensor:
        """What a unit of difficulty does to what calibration's clips got of a plan, `(P,)`: one
        number in dB, at most 0."""
        centred = self.known - self.known.mean()
        size = (centred**2).sum().clamp_min(1e-12)
        return ((centred * psnr_db).sum() / size).clamp_max(0.0)


def pooled(text: torch.Tensor) -> torch.Tensor:
    """`(B, L, T)` text embeddings -> `(B, T)` float64 on the CPU: the mean, less padding of zeros.

    Texts that have no token but padding are zero.
    """
    values = text.detach().double().cpu()
    there = (values != 0).any(-1, keepdim=True)
    return values.sum(1) / there.sum(1).clamp_min(1)
