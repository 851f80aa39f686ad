"""Predicts from a prompt's text how hard it is to accelerate, before the first step.

In: pooled text embeddings, and the PSNR of calibration's clips with each plan.
Out: a score, in standard deviations of PSNR; calibration's PSNR shifted to the score of a prompt.
The score is a ridge regression on the embeddings; its ridge has the least leave-one-out error.
Knows numbers; no text encoder.
Source: ours.
Shapes: P clips of calibration, T channels of a text embedding, K plans.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

MIN_FITTED_CLIPS = 45  # with fewer clips nothing is fitted
_RIDGES = torch.logspace(-1, 6, 29, dtype=torch.float64)


@dataclass(frozen=True)
class PromptDifficulty:
    """A linear score of pooled embeddings; higher is harder.

    Args:
        centre: `(T,)` mean embedding.
        weights: `(T,)` weights of the embedding less the centre.
        held_out: `(P,)` scores of calibration's clips, each predicted without the clip itself.
    """

    centre: torch.Tensor
    weights: torch.Tensor
    held_out: torch.Tensor

    @classmethod
    def fit(cls, texts: torch.Tensor, psnr_db: torch.Tensor) -> PromptDifficulty | None:
        """Fit the score; None if there are too few clips, or if the texts do not differ.

        Args:
            texts: `(P, T)` pooled embeddings.
            psnr_db: `(K, P)`, PSNR of every clip with every plan.
        """
        if len(texts) < MIN_FITTED_CLIPS or not len(psnr_db):
            return None
        rows, plans = texts.double(), psnr_db.double()
        centre = rows.mean(0)
        spread = (rows - centre).std(0)
        scale = torch.where(spread > 1e-6 * spread.max(), 1 / spread.clamp_min(1e-30), 0.0)
        if not bool(scale.any()):
            return None
        deviation = plans.std(1, keepdim=True).clamp_min(1e-9)
        target = -((plans - plans.mean(1, keepdim=True)) / deviation).mean(0)
        # One SVD is enough for all ridges: prediction = U diag(s² / (s² + ridge)) Uᵀ target. The
        # leave-one-out error of clip p is its error over 1 - leverage_p.
        left, values, right = torch.linalg.svd((rows - centre) * scale, full_matrices=False)
        shrinkage = values**2 / (values**2 + _RIDGES[:, None])  # (ridges, directions)
        predicted = torch.einsum("pd,rd,d->rp", left, shrinkage, left.T @ target)
        leverage = torch.einsum("pd,rd->rp", left**2, shrinkage) + 1 / len(rows)
        errors = (target - predicted) / (1 - leverage).clamp_min(1e-6)
        best = int((errors**2).sum(1).argmin())
        factors = values / (values**2 + _RIDGES[best])
        weights = scale * (right.T @ (factors * (left.T @ target)))
        return cls(centre, weights, target - errors[best])

    def score(self, text: torch.Tensor) -> float:
        """The score of the hardest of several prompts.

        Args:
            text: `(B, T)` pooled embeddings.

        Raises:
            ValueError: the embeddings have another width.
        """
        if text.shape[-1] != len(self.centre):
            raise ValueError(f"text has {text.shape[-1]} channels; accepted: {len(self.centre)}")
        return float(((text.double().cpu() - self.centre) @ self.weights).max())

    def shifted(self, psnr_db: torch.Tensor, score: float) -> torch.Tensor:
        """The PSNR of a plan as if all calibration clips had this score: `(P,)` -> `(P,)`."""
        return psnr_db + self.slope(psnr_db) * (score - self.held_out)

    def slope(self, psnr_db: torch.Tensor) -> torch.Tensor:
        """The change of a plan's PSNR `(P,)` in dB if the score rises by 1; at most 0."""
        centred = self.held_out - self.held_out.mean()
        size = (centred**2).sum().clamp_min(1e-12)
        return ((centred * psnr_db).sum() / size).clamp_max(0.0)


def pooled(text: torch.Tensor) -> torch.Tensor:
    """The mean over the tokens of text embeddings `(B, L, T)`: `(B, T)` float64 on the CPU.

    Tokens of zeros are padding and are left out. A text of padding alone gives zeros.
    """
    values = text.detach().double().cpu()
    present = (values != 0).any(-1, keepdim=True)
    return values.sum(1) / present.sum(1).clamp_min(1)
