"""PCAS at one attention: learns moments on dense steps, then attends sliced or pruned.

Queries, keys and values `(B, N, H, D)` come in; attention's output and the fraction of dense FLOPs
go out. `LowRankAttention` attends at a rank below the heads' width. `BlockSparseAttention` scores
blocks at a low rank and attends to the heaviest. Both learn moments in every run anew, because
content changes the bases. It knows no step, site or module.

Source: UniCP (arXiv 2502.04393, PCAS), without public details; our reading. The limits below were
measured (docs/results.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from dit_accel.attention import block_sparse, joint, kernels, pca
from dit_accel.attention.block_sparse import BlockSizes, KeptBlocks
from dit_accel.attention.joint import JointText
from dit_accel.attention.lse_merge import attention_part
from dit_accel.attention.pca import Basis, CovarianceAccumulator, Linear
from dit_accel.core.checks import check_types, is_integer, require

MIN_TOKENS = 16_384  # per sequence; with fewer, pruning costs more than it saves
MAX_FLOPS_SHARE = 0.6  # of dense attention's FLOPs; beyond this share, dense attention is faster
LEARNED_TOKENS = 4096  # maximal number per call from which moments are computed

FlopShare = float | torch.Tensor


@dataclass(frozen=True)
class PCAS:
    """Settings of sliced or pruned attention. Most runs need `keep_mass` only.

    Args:
        mode: "prune" keeps key blocks by low-rank scores; "slice" (experimental: it saves nothing
            for queries and keys) attends at a rank.
        rank: "prune": rank of the scores, a power of two from 16. "slice": rank of queries and
            keys; None: for each layer the lowest rank at which the expected error of every head's
            logits is within `logit_rms`.
        logit_rms: if `rank` is None: RMS error of a logit, >= 0.
        value_rank: "slice": rank of the values, folded into the projections; None: full width.
        keep_mass: "prune": fraction of the scored attention that a query block keeps, in (0, 1].
            Higher is closer to dense attention and slower.
        floor, cap: least and largest fraction of the key blocks that a query block keeps, in [0,
            1].
        tail: whether the other blocks enter through their means.
        blocks: sizes of blocks and tiles; None: they depend on the number of tokens.
        samples: scored queries per block, a power of two.
        first_dense: fraction of the steps that are dense at the start, in [0, 1].
        dense_blocks: number of first transformer blocks that are always dense.
        always: whether to use it also if dense attention is faster.

    Raises:
        ValueError: a value is out of range.

    Example:
        >>> PCAS(keep_mass=0.95).blocks_of(75_600).query
        128
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
        check_types(self)
        require(self.mode in ("prune", "slice"), "mode", self.mode, "'prune', 'slice'")
        if self.mode == "prune" and not (_is_power(self.rank, 16) and _is_power(self.samples, 1)):
            raise ValueError(
                f"rank is {self.rank!r} and samples {self.samples!r}; "
                "accepted: powers of two, the rank from 16"
            )
        for name in ("rank", "value_rank"):
            value = getattr(self, name)
            require(value is None or is_integer(value, 1), name, value, "an integer >= 1, or None")
        require(0 < self.keep_mass <= 1, "keep_mass", self.keep_mass, "above 0, up to 1")
        for name in ("floor", "cap", "first_dense"):
            value = getattr(self, name)
            require(0 <= value <= 1, name, value, "from 0 to 1")
        for name in ("logit_rms", "dense_blocks"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")

    def blocks_of(self, tokens: int) -> BlockSizes:
        """Block sizes for a sequence of `tokens`."""
        return self.blocks or block_sparse.blocks_for(tokens)

    def neutral(self, width: int) -> bool:
        """Whether nothing is left out for heads of this width, so that attention stays dense."""
        if self.mode == "prune":
            return self.keep_mass >= 1 and self.cap >= 1
        ranks = (self.rank if self.rank is not None else 0, self.value_rank or width)
        return min(ranks) >= width


class BlockSparseAttention:
    """Block-sparse attention, with scores in the space of the best directions."""

    def __init__(self, config: PCAS) -> None:
        self.config = config
        self.reset()

    def reset(self) -> None:
        """Start a new run."""
        self.queries, self.keys = CovarianceAccumulator(), CovarianceAccumulator()
        self.factors: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def ready(self) -> bool:
        """Whether `fit` has made the bases of this run."""
        return self.factors is not None

    def learn(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Add queries and keys `(B, N, H, D)` of a dense step."""
        self.queries.add(_sampled(query))
        self.keys.add(_sampled(key))

    def fit(self) -> None:
        """Make the bases from the moments."""
        basis = pca.logit_basis(self.queries, self.keys)
        rank = min(self.config.rank or basis.energy.shape[-1], basis.energy.shape[-1])
        self.factors = basis.cut(rank)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, order: torch.Tensor,
        text: JointText | None = None,
    ) -> tuple[torch.Tensor, FlopShare]:  # fmt: skip
        """The output, and its FLOPs as a fraction of dense attention's.

        Args:
            query, key, value: `(B, N, H, D)`.
            order: `(N,)`, indices of the tokens tile by tile, text last.
            text: the text, if it is in the sequence; none of its queries and keys is left out.
        """
        blocks = self.config.blocks_of(query.shape[1])
        query, key, value = (x[:, order] for x in (query, key, value))
        fraction: FlopShare
        fast = kernels.unsupported(query, blocks) is None
        video = query.shape[1] - (0 if text is None else text.tokens)
        selection = self.select(query, key, blocks, video, fast=fast)
        lengths = None if text is None else text.lengths
        given = query, key, value, selection, blocks, self.config.tail, None, lengths
        if fast:
            out, fraction = kernels.pruned_attention(*given), selection.density()
        else:
            out, fraction = block_sparse.gathered_attention(*given)
        return out[:, order.argsort()], fraction + self._overhead(*query.shape[1::2])

    def select(
        self, query: torch.Tensor, key: torch.Tensor, blocks: BlockSizes, video: int, *, fast: bool
    ) -> KeptBlocks:
        """The blocks that stay: blocks of the video chosen by their scores, and all blocks with
        text."""
        assert self.factors is not None, "fit comes first"
        config, tokens, scale = self.config, query.shape[1], query.shape[-1] ** -0.5
        rows = query[:, :video], key[:, :video]
        low = [pca.project(*pair) for pair in zip(rows, self.factors, strict=True)]
        functions = kernels if fast else block_sparse  # the same functions in both
        mass = functions.block_mass(*low, blocks, config.samples, scale)
        budget = config.keep_mass, config.floor, config.cap
        if video == tokens:
            return functions.keep_blocks(mass, *budget)
        full = max(video // blocks.key, 1)  # key blocks without text
        chosen = functions.keep_blocks(mass[..., :full], *budget)
        return joint.keep_text(chosen, blocks, video, tokens)

    def _overhead(self, tokens: int, width: int) -> float:
        """FLOPs of projections, scores and block means, as a fraction of dense attention's."""
        rank = min(self.config.rank or width, width)
        blocks = self.config.blocks_of(tokens)
        scored = min(self.config.samples, blocks.query) / blocks.query
        means = 1 / blocks.key if self.config.tail else 0.0
        return rank / tokens + scored * rank / (2 * width) + means

    def skip_reason(self, query: torch.Tensor, text: JointText | None) -> str | None:
        """The reason why dense attention is faster for queries `(B, N, H, D)`, or None."""
        tokens = query.shape[1]
        reason = kernels.unsupported(query, self.config.blocks_of(tokens))
        if reason is None and tokens < MIN_TOKENS:
            reason = f"{tokens} tokens are fewer than {MIN_TOKENS}"
        return reason


class LowRankAttention:
    """Attention at a rank: queries and keys are projected, values have folded weights.

    With text in the sequence, values are not folded, because those of the text stay at full width.
    """

    def __init__(self, config: PCAS, value: Linear | None, out: Linear | None) -> None:
        """`value` and `out` are the module's projections: `(H D, C)` and `(C, H D)`; `value` None:
        nothing is folded. `out` None: it is not known."""
        self.config, self.value, self.out = config, value, out
        self.reset()

    def reset(self) -> None:
        """Start a new run."""
        self.queries, self.keys, self.values = (CovarianceAccumulator() for _ in range(3))
        self.logits: Basis | None = None
        self.rank = self.config.rank
        self.folded: tuple[Linear, Linear] | None = None
        self.narrow: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def ready(self) -> bool:
        """Whether the bases and the rank of this run are known."""
        return self.logits is not None and self.rank is not None

    def learn(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Add a dense step's `(B, N, H, D)`."""
        self.queries.add(_sampled(query))
        self.keys.add(_sampled(key))
        self.like = value.new_empty(0)
        if self.config.value_rank is not None:
            self.values.add(_sampled(value))

    def fit(self) -> torch.Tensor | None:
        """Make the bases. Returns the rank that the layer needs, 0-dimensional on the device, or
        None where the config has it; the caller reads it and sets `rank`."""
        self.logits = pca.logit_basis(self.queries, self.keys)
        self.mean = self.keys.mean
        width = self.mean.shape[-1]
        if self.config.value_rank is not None and self.config.value_rank < width:
            basis = pca.value_basis(None if self.out is None else self.out.weight, self.values)
            mean, rank = self.values.mean, self.config.value_rank
            self.narrow, self.offset = basis.cut(rank), mean
            if self.value is not None and self.out is not None:
                self.folded = pca.fold_values(self.value, self.out, basis, mean, rank)
        if self.config.rank is not None:
            self.rank = min(self.config.rank, width)
            return None
        return self.logits.rank_for(pca.allowed_for(self.config.logit_rms, width)).max()

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, order: torch.Tensor,
        text: JointText | None = None,
    ) -> tuple[torch.Tensor, FlopShare]:  # fmt: skip
        """See `BlockSparseAttention.attend`. A value of full width is sliced and restored here."""
        assert self.logits is not None and self.rank is not None, "fit comes first"
        if text is not None:
            return self._beside(query, key, value, order, text)
        tokens, width = query.shape[1], query.shape[-1]
        query, key = pca.slice_logits(query, key, self.logits, self.mean, self.rank)
        narrow = self.narrow if value.shape[-1] == width else None
        if narrow is not None:
            value = pca.project(value - self.offset.to(value.dtype), narrow[1])
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        mixed = F.scaled_dot_product_attention(q, k, v, scale=width**-0.5).transpose(1, 2)
        if narrow is not None:
            mixed = pca.project(mixed, narrow[0].mT) + self.offset.to(mixed.dtype)
        return mixed, (self.rank + value.shape[-1]) / (2 * width) + self.rank / tokens

    def _beside(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, order: torch.Tensor,
        text: JointText,
    ) -> tuple[torch.Tensor, FlopShare]:  # fmt: skip
        """The video's queries and keys at the rank, in a sequence with text."""
        assert self.logits is not None and self.rank is not None, "fit comes first"
        query, key, value = (x[:, order] for x in (query, key, value))
        (tokens, width), video = query.shape[1::2], query.shape[1] - text.tokens
        rows = [x[:, :video] for x in (query, key, value)]
        low = pca.slice_logits(rows[0], rows[1], self.logits, self.mean, self.rank)
        values, narrow = rows[2], self.narrow
        if narrow is not None:
            values = pca.project(values - self.offset.to(values.dtype), narrow[1])
        near, sums = attention_part(*low, values, scale=width**-0.5)
        if narrow is not None:
            near = pca.project(near, narrow[0].mT) + self.offset.to(near.dtype)
        key = key - self.mean.to(key.dtype)  # as for the video's keys: this does not change softmax
        out = joint.with_text((near, sums), query, key, value, text.lengths)
        pairs = (video / tokens) ** 2  # pairs at the rank; the others have full width
        share = pairs * (self.rank + values.shape[-1]) / (2 * width) + 1 - pairs
        return out[:, order.argsort()], share + self.rank / tokens

    def skip_reason(self, query: torch.Tensor, text: JointText | None) -> str | None:
        """See `BlockSparseAttention.skip_reason`. Fused attention needs one width for queries, keys
        and values."""
        if text is not None:
            return "slicing has no fused attention where text is in the sequence"
        if query.device.type != "cuda":
            return f"slicing has no fused attention on {query.device.type}"
        ranks = self.config.rank, self.config.value_rank
        if ranks[0] is None or ranks[0] != ranks[1]:
            return "fused attention is slow where queries and values differ in width"
        return None


def _sampled(rows: torch.Tensor) -> torch.Tensor:
    """Every n-th token; n is odd, so that an even grid axis is not skipped."""
    return rows[:, :: -(-rows.shape[1] // LEARNED_TOKENS) | 1]


def _is_power(value: int | None, least: int) -> bool:
    return isinstance(value, int) and value >= least and not value & (value - 1)
