"""PCAS at one attention: learns from dense steps, then attends sliced or pruned.

A `LowRankAttention` attends at a rank below the heads' width; a `BlockSparseAttention` scores
blocks at a low rank and
attends to those that matter, the others through their means. Both learn moments of queries, keys
and values on the dense steps of a run, because content moves the bases, and forget them with it.
They know no step, no site and no module; formulas are in attention/pca.py and
attention/block_sparse.py.

Whether it pays is asked first (`skip_reason`): the limits are those of docs/pcas.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from dit_accel.attention import block_sparse, kernels, pca
from dit_accel.attention.block_sparse import BlockSizes
from dit_accel.attention.pca import Basis, CovarianceAccumulator, Linear

MIN_TOKENS = 16_384  # of a sequence: below, what pruning adds costs more than it saves
MAX_FLOPS_SHARE = 0.6  # of dense attention's FLOPs: above, dense attention is faster
LEARNED_TOKENS = 4096  # tokens of a call that are learned from

Share = float | torch.Tensor


@dataclass(frozen=True)
class PCAS:
    """Settings of sliced or pruned attention.

    Args:
        mode: "prune" keeps key blocks by scores at a low rank; "slice" attends at a rank.
        rank: "prune": of the scores, a power of two from 16. "slice": of queries and keys; None:
            the lowest, per layer, at which every head's logits are expected within `logit_rms`.
        logit_rms: for `rank` None: root mean square error of a logit, >= 0.
        value_rank: "slice": of the values, folded into the projections; None: their full width.
        keep_mass: "prune": of the scored attention that a query block keeps, in (0, 1].
        floor, cap: shares of the key blocks that it keeps at least and at most, in [0, 1].
        tail: whether what is not kept enters through its block means.
        blocks: sizes of blocks and tiles; None: `pruning.blocks_for` the tokens.
        samples: queries of a block that are scored, a power of two.
        first_dense: share of the steps that stay dense at the start, in [0, 1].
        dense_blocks: blocks of the model, from the first, that stay dense.
        always: also where it does not pay in time.

    Raises:
        ValueError: a value is out of range.
    """

    mode: str = "prune"
    rank: int | None = 32
    logit_rms: float = 0.1
    value_rank: int | None = None
    keep_mass: float = 0.9
    floor: float = 0.05
    cap: float = 0.5
    tail: bool = True
    blocks: BlockSizes | None = None
    samples: int = 8
    first_dense: float = 0.2
    dense_blocks: int = 0
    always: bool = False

    def __post_init__(self) -> None:
        if self.mode not in ("prune", "slice"):
            raise ValueError(f"mode is {self.mode!r}; accepted: 'prune', 'slice'")
        if self.mode == "prune" and not (_is_power(self.rank, 16) and _is_power(self.samples, 1)):
            raise ValueError(
                f"rank is {self.rank!r} and samples {self.samples!r}; "
                "accepted: powers of two, the rank from 16"
            )
        for name in ("rank", "value_rank"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} is {value!r}; accepted: an integer >= 1, or None")
        if not 0 < self.keep_mass <= 1:
            raise ValueError(f"keep_mass is {self.keep_mass!r}; accepted: above 0, up to 1")
        for name in ("floor", "cap", "first_dense"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; accepted: from 0 to 1")
        for name in ("logit_rms", "dense_blocks"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; accepted: at least 0")

    def blocks_of(self, tokens: int) -> BlockSizes:
        """The blocks of a sequence of so many tokens."""
        return self.blocks or block_sparse.blocks_for(tokens)

    def neutral(self, width: int) -> bool:
        """Whether nothing is left out of heads of this width: then attention stays as it is."""
        if self.mode == "prune":
            return self.keep_mass >= 1 and self.cap >= 1
        ranks = (self.rank if self.rank is not None else 0, self.value_rank or width)
        return min(ranks) >= width


class BlockSparseAttention:
    """Block-pruned attention with scores in the space of the best directions."""

    def __init__(self, config: PCAS) -> None:
        self.config = config
        self.reset()

    def reset(self) -> None:
        """Begin another run."""
        self.queries, self.keys = CovarianceAccumulator(), CovarianceAccumulator()
        self.factors: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def ready(self) -> bool:
        return self.factors is not None

    def learn(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Take in a dense step's `(B, N, H, D)`."""
        self.queries.add(_some(query))
        self.keys.add(_some(key))

    def fit(self) -> None:
        """Make the bases from what was learned."""
        basis = pca.logit_basis(self.queries, self.keys)
        rank = min(self.config.rank or basis.energy.shape[-1], basis.energy.shape[-1])
        self.factors = basis.cut(rank)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, order: torch.Tensor
    ) -> tuple[torch.Tensor, Share]:
        """Attention, and the share of dense attention's FLOPs that it took.

        Args:
            query, key, value: `(B, N, H, D)`.
            order: `(N,)`, the tokens tile by tile.
        """
        assert self.factors is not None, "fit comes first"
        config, scale = self.config, query.shape[-1] ** -0.5
        blocks = config.blocks_of(query.shape[1])
        query, key, value = (x[:, order] for x in (query, key, value))
        low = pca.project(query, self.factors[0]), pca.project(key, self.factors[1])
        budget = config.keep_mass, config.floor, config.cap
        share: Share
        if kernels.unsupported(query, blocks) is None:
            mass = kernels.block_mass(*low, blocks, config.samples, scale)
            kept = kernels.keep_blocks(mass, *budget)
            out = kernels.pruned_attention(query, key, value, kept, blocks, config.tail)
            share = kept.density()
        else:
            mass = block_sparse.block_mass(*low, blocks, config.samples, scale)
            kept = block_sparse.keep_blocks(mass, *budget)
            out, share = block_sparse.gathered_attention(
                query, key, value, kept, blocks, config.tail
            )
        return out[:, order.argsort()], share + self._overhead(*query.shape[1::2])

    def _overhead(self, tokens: int, width: int) -> float:
        """FLOPs beside the kept blocks, as a share of dense attention's: projections, scores and
        block means."""
        rank = min(self.config.rank or width, width)
        blocks = self.config.blocks_of(tokens)
        asked = min(self.config.samples, blocks.query) / blocks.query
        means = 1 / blocks.key if self.config.tail else 0.0
        return rank / tokens + asked * rank / (2 * width) + means

    def skip_reason(self, query: torch.Tensor) -> str | None:
        """Why dense attention is faster for queries `(B, N, H, D)`, or None."""
        tokens = query.shape[1]
        reason = kernels.unsupported(query, self.config.blocks_of(tokens))
        if reason is None and tokens < MIN_TOKENS:
            reason = f"{tokens} tokens are fewer than {MIN_TOKENS}"
        return reason


class LowRankAttention:
    """Attention at a rank: queries and keys are projected, values by folded weights."""

    def __init__(self, config: PCAS, value: Linear, out: Linear) -> None:
        """`value` and `out` are the module's projections: `(H D, C)` and `(C, H D)`."""
        self.config, self.value, self.out = config, value, out
        self.reset()

    def reset(self) -> None:
        """Begin another run."""
        self.queries, self.keys, self.values = (
            CovarianceAccumulator(),
            CovarianceAccumulator(),
            CovarianceAccumulator(),
        )
        self.logits: Basis | None = None
        self.rank = self.config.rank
        self.folded: tuple[Linear, Linear] | None = None
        self.narrow: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def ready(self) -> bool:
        return self.logits is not None and self.rank is not None

    def learn(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Take in a dense step's `(B, N, H, D)`."""
        self.queries.add(_some(query))
        self.keys.add(_some(key))
        if self.config.value_rank is not None:
            self.values.add(_some(value))

    def fit(self) -> torch.Tensor | None:
        """Make the bases from what was learned; the rank that the layer needs, on the device, where
        it is to be found: whoever reads it sets `rank`."""
        self.logits = pca.logit_basis(self.queries, self.keys)
        self.mean = self.keys.mean
        width = self.mean.shape[-1]
        if self.config.value_rank is not None and self.config.value_rank < width:
            basis = pca.value_basis(self.out.weight, self.values)
            mean, rank = self.values.mean, self.config.value_rank
            self.narrow, self.offset = basis.cut(rank), mean
            self.folded = pca.fold_values(self.value, self.out, basis, mean, rank)
        if self.config.rank is not None:
            self.rank = min(self.config.rank, width)
            return None
        return self.logits.rank_for(pca.allowed_for(self.config.logit_rms, width)).max()

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, order: torch.Tensor
    ) -> tuple[torch.Tensor, Share]:
        """Attention, and the share of dense attention's FLOPs that it took.

        A value of the full width is sliced and put back here, which is the same and slower.
        """
        assert self.logits is not None and self.rank is not None, "fit comes first"
        tokens, width = query.shape[1], query.shape[-1]
        query, key = pca.slice_logits(query, key, self.logits, self.mean, self.rank)
        whole = self.narrow is not None and value.shape[-1] == width
        if whole and self.narrow is not None:
            value = pca.project(value - self.offset.to(value.dtype), self.narrow[1])
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        mixed = F.scaled_dot_product_attention(q, k, v, scale=width**-0.5).transpose(1, 2)
        if whole and self.narrow is not None:
            mixed = pca.project(mixed, self.narrow[0].mT) + self.offset.to(mixed.dtype)
        return mixed, (self.rank + value.shape[-1]) / (2 * width) + self.rank / tokens

    def skip_reason(self, query: torch.Tensor) -> str | None:
        """Why dense attention is faster, or None: always so, where fused attention wants queries
        and values of one width."""
        if query.device.type != "cuda":
            return f"slicing has no fused attention on {query.device.type}"
        ranks = self.config.rank, self.config.value_rank
        if ranks[0] is None or ranks[0] != ranks[1]:
            return "fused attention is slow where queries and values differ in width"
        return None


def _some(rows: torch.Tensor) -> torch.Tensor:
    """Tokens evenly over the sequence, by an odd stride, so that no axis of the grid is skipped."""
    return rows[:, :: -(-rows.shape[1] // LEARNED_TOKENS) | 1]


def _is_power(value: int | None, least: int) -> bool:
    return isinstance(value, int) and value >= least and not value & (value - 1)
