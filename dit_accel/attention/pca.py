"""PCA-based slicing (PCAS), the maths: attention at a rank below the width of its heads.

Second moments of queries and keys come in; projections, ranks and error bounds go out:

    q·(k - μ) ≈ (q A)·((k - μ) B),   first r columns of A = S_q^-½ U and B = S_q^½ U
    mean over all pairs of (logit error)² = (σ²[r] + ... + σ²[D - 1]) / D

with S_q^½ S_k S_q^½ = U diag(σ²) Uᵀ (docs/how-it-works.md, section 9). Values are the same problem
with the rows of the output projection as queries. It knows no steps, sites or models.
Source: UniCP (arXiv 2502.04393, PCAS) applies PCA to queries and keys without public details. In
our reading the queries' moments count too, and the error bound chooses the rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch

from dit_accel.core.checks import require
from dit_accel.core.private_names import weights_of

QUERY_RIDGE = 1e-5  # of the mean variance, added to S_q so that unseen directions stay invertible


class CovarianceAccumulator:
    """Mean and second moments of vectors per head, streamed in float32.

    Example:
        >>> moments = CovarianceAccumulator().add(torch.tensor([[[1.0, 0.0]], [[3.0, 0.0]]]))
        >>> moments.mean.tolist(), moments.covariance[0, 0, 0].item()
        ([[2.0, 0.0]], 1.0)
    """

    def __init__(self) -> None:
        self.count = 0

    def add(self, rows: torch.Tensor) -> Self:
        """Add vectors `(..., N, H, D)` of any floating dtype; leading dimensions are pooled."""
        rows = rows.detach().flatten(0, -3).float()
        if self.count == 0:  # sums relative to a first mean stay small, so float32 is enough
            self._shift = rows.mean(0)
            self._sum = torch.zeros_like(self._shift)
            self._products = self._shift.new_zeros(*self._shift.shape, rows.shape[-1])
        rows = (rows - self._shift).transpose(0, 1)
        self._sum += rows.sum(1)
        self._products += rows.transpose(1, 2) @ rows
        self.count += rows.shape[1]
        return self

    @property
    def mean(self) -> torch.Tensor:
        """`(H, D)` float32."""
        return self._shift + self._sum / self.count

    @property
    def covariance(self) -> torch.Tensor:
        """`(H, D, D)` float32: mean of products of the centred vectors."""
        return self._products / self.count - _outer(self._sum / self.count)

    @property
    def second(self) -> torch.Tensor:
        """`(H, D, D)` float32: mean of products, not centred."""
        return self.covariance + _outer(self.mean)


@dataclass(frozen=True)
class Basis:
    """Two factors A Bᵀ = I, best directions first.

    Args:
        left: A, `(H, D, D)`, for queries.
        right: B, `(H, D, D)`, for keys.
        energy: σ², `(H, D)`, mean squared form per direction, falling.
    """

    left: torch.Tensor
    right: torch.Tensor
    energy: torch.Tensor

    def cut(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The first `rank` columns of both: `(H, D, rank)`.

        Raises:
            ValueError: the rank is not from 1 to D.
        """
        width = self.energy.shape[-1]
        require(1 <= rank <= width, "rank", rank, f"an integer from 1 to {width}")
        return self.left[..., :rank], self.right[..., :rank]

    def left_out(self) -> torch.Tensor:
        """Expected squared error of the form at rank 0, 1, ..., D: `(H, D + 1)`."""
        tail = self.energy.flip(-1).cumsum(-1).flip(-1)
        return torch.cat([tail, torch.zeros_like(tail[..., :1])], -1)

    def rank_for(self, allowed: float) -> torch.Tensor:
        """The lowest rank whose error is allowed: `(H,)` int64 on the device, at least 1.

        Args:
            allowed: expected squared error of the form, >= 0 (`allowed_for`).

        Example:
            >>> energy, eye = torch.tensor([[4.0, 2.0, 1.0]]), torch.eye(3)[None]
            >>> Basis(eye, eye, energy).rank_for(1.5)
            tensor([2])
        """
        return (self.left_out()[..., 1:] > allowed).sum(-1) + 1


def bilinear_basis(left: torch.Tensor, right: torch.Tensor) -> Basis:
    """The float32 basis for forms x·y with the least possible `left_out` at every rank.

    A head with a moment that is not finite gets the unit matrix, because its values are lost
    anyway.

    Args:
        left: `(H, D, D)`, second moments of queries, not centred; or Wᵀ W of the output
            projection's rows. A ridge is added to it, so the energies stay an upper bound.
        right: `(H, D, D)`, centred second moments of keys or values.
    """
    left, right = _precise(left), _precise(right)
    size = left.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(torch.finfo(left.dtype).tiny)
    values, vectors = torch.linalg.eigh(left)
    roots = (values.clamp_min(0) + QUERY_RIDGE * size[:, None]).sqrt()
    root = (vectors * roots[:, None]) @ vectors.mT
    inverse = (vectors / roots[:, None]) @ vectors.mT
    energy, turned = torch.linalg.eigh(root @ right @ root)
    energy, turned = energy.flip(-1).clamp_min(0), turned.flip(-1)
    even = (energy / energy[:, :1].clamp_min(torch.finfo(left.dtype).tiny)).clamp_min(1e-8) ** 0.25
    size = size[:, None, None] ** 0.5  # with equal lengths of both sides, bfloat16 loses the least
    scale = even[:, None] * size
    return Basis(
        (inverse @ turned * scale).float(), (root @ turned / scale).float(), energy.float()
    )


def logit_basis(queries: CovarianceAccumulator, keys: CovarianceAccumulator) -> Basis:
    """The basis of q·(k - μ), μ the mean of the keys."""
    return bilinear_basis(queries.second, keys.covariance)


def value_basis(output: torch.Tensor | None, values: CovarianceAccumulator) -> Basis:
    """The basis of w·(v - μ), with w over the rows of the output projection `(out, H D)`; None: w
    over all directions equally."""
    heads, width = values.mean.shape
    if output is None:
        eye = torch.eye(width, device=values.mean.device).expand(heads, -1, -1)
        return bilinear_basis(eye, values.covariance)
    rows = torch.unflatten(output.detach().float(), -1, (heads, width)).transpose(0, 1)
    return bilinear_basis(rows.mT @ rows, values.covariance)


def project(rows: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Rows `(B, N, H, D)` times a factor `(H, D, r)`: `(B, N, H, r)`, in the dtype of the rows."""
    return (rows.transpose(1, 2) @ factor.to(rows.dtype)).transpose(1, 2)


def slice_logits(
    query: torch.Tensor, key: torch.Tensor, basis: Basis, mean: torch.Tensor, rank: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`query`, and `key` minus its `mean` `(H, D)`, at a rank: two tensors `(B, N, H, rank)`.

    Attend with them at the scale for the full width, 1 / √D.
    """
    left, right = basis.cut(rank)
    return project(query, left), project(key - mean.to(key.dtype), right)


@dataclass(frozen=True)
class Linear:
    """A linear layer's weight `(out, in)` and bias `(out,)`."""

    weight: torch.Tensor
    bias: torch.Tensor | None


def linear_of(layer: torch.nn.Module, like: torch.Tensor | None) -> Linear | None:
    """The layer's present weights, wherever they are stored, on the device and in the dtype of
    `like`. None if it is not a plain linear layer, because it has a LoRA or quantized weights."""
    stored = dict(weights_of(layer))
    weight, bias = stored.get("weight"), stored.get("bias")
    if not isinstance(layer, torch.nn.Linear) or weight is None or not weight.is_floating_point():
        return None
    if type(weight) not in (torch.Tensor, torch.nn.Parameter):  # a special class of tensors
        return None
    if like is None:
        return Linear(weight, bias)
    return Linear(weight.to(like), bias if bias is None else bias.to(like))


def fold_values(
    value: Linear, output: Linear, basis: Basis, mean: torch.Tensor, rank: int
) -> tuple[Linear, Linear]:
    """Projections `(H rank, in)` and `(out, H rank)`: slicing values costs nothing at run time.

    Rows of attention sum to 1, so the values' mean passes through and goes into the bias:
    out = W_o (μ + A Bᵀ Σ_j p_j (v_j - μ)) + b_o.

    Args:
        value, output: the weights, `(H D, in)` and `(out, H D)`.
        basis: from `value_basis`.
        mean: `(H, D)`, the mean of the values.
    """
    left, right = basis.cut(rank)
    heads, width = mean.shape
    weight = torch.unflatten(value.weight.float(), 0, (heads, width))
    offset = -mean if value.bias is None else value.bias.float().view(heads, width) - mean
    narrow = Linear(
        torch.einsum("hdr,hdi->hri", right, weight).flatten(0, 1).to(value.weight.dtype),
        torch.einsum("hdr,hd->hr", right, offset).flatten().to(value.weight.dtype),
    )
    wide = output.weight.float()
    whole = wide @ mean.flatten() + (0 if output.bias is None else output.bias.float())
    turned = torch.einsum("ohd,hdr->ohr", wide.view(-1, heads, width), left)
    return narrow, Linear(turned.flatten(1).to(output.weight.dtype), whole.to(output.weight.dtype))


def logit_rms(basis: Basis, rank: int) -> torch.Tensor:
    """Expected RMS error of q·k / √D at a rank: `(H,)`."""
    return (basis.left_out()[..., rank] / basis.energy.shape[-1]).sqrt()


def allowed_for(rms: float, width: int) -> float:
    """The expected squared error of the form if logits q·k / √D have the RMS error `rms`.

    Raises:
        ValueError: `rms` is negative or not finite.

    Example:
        >>> allowed_for(0.5, 16)
        4.0
    """
    require(0 <= rms < math.inf, "rms", rms, "a finite number >= 0")
    return rms * rms * width


def _outer(rows: torch.Tensor) -> torch.Tensor:
    return rows[..., :, None] * rows[..., None, :]


def _precise(matrices: torch.Tensor) -> torch.Tensor:
    """The matrices in float64 (except on Apple's devices, which do not have it), with the unit
    matrix instead of those that are not finite. LAPACK would raise an error for these, and a clip
    would be lost."""
    precise = matrices if matrices.device.type == "mps" else matrices.double()
    eye = torch.eye(precise.shape[-1], dtype=precise.dtype, device=precise.device)
    return torch.where(precise.isfinite().all((-2, -1), keepdim=True), precise, eye)
