"""Block-sparse attention: choose key blocks per query block, and approximate the others.

Queries, keys and values `(B, N, H, D)` come in, ordered in 3D tiles; attention's output goes out. A
query block keeps its heaviest key blocks, by low-rank scores of a few sampled queries, until they
have the share `keep_mass` of the mass. `floor` and `cap` limit their number: low-rank scores are
more concentrated than attention, and a flat row must not become dense. The other blocks enter
through their means (the tail). It knows no steps, sites or models. Shapes as in `core/tokens.py`,
with Q query and K key blocks. `pruned_attention` is the written-out reference; `gathered_attention`
computes the same over kept blocks only, `attention/kernels.py` on CUDA.

Source: UniCP (arXiv 2502.04393, PCAS), our reading (docs/how-it-works.md, section 9). Top-p per
head as in SVG2 (arXiv 2505.18875), the tail as in PISA (arXiv 2602.01077).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from dit_accel.core.checks import check_types, is_integer, require
from dit_accel.core.tokens import TokenGrid

ROW_GROUPS = 8  # groups of query blocks in `gathered_attention`; more groups pad less


@dataclass(frozen=True)
class BlockSizes:
    """Sizes of blocks and tiles, in tokens.

    Args:
        query, key: consecutive tokens per block, >= 1; the last block may have fewer.
        tile: latent frames, rows and columns of the tiles that order the tokens, >= 1.

    Raises:
        ValueError: a size is not an integer >= 1.
    """

    query: int = 64
    key: int = 64
    tile: tuple[int, int, int] = (4, 4, 4)

    def __post_init__(self) -> None:
        check_types(self)
        sizes = ("query", self.query), ("key", self.key), *(("tile", edge) for edge in self.tile)
        for name, size in sizes:
            require(is_integer(size, 1), name, size, "an integer >= 1")


def blocks_for(tokens: int) -> BlockSizes:
    """The blocks for a sequence. 128 queries by 64 keys are the best for the kernels; blocks are
    smaller if there would be fewer than 20 key blocks to choose from.

    Example:
        >>> blocks_for(75_600).key, blocks_for(640).key, blocks_for(320)
        (64, 32, BlockSizes(query=16, key=16, tile=(1, 4, 4)))
    """
    for blocks in (BlockSizes(128, 64), BlockSizes(32, 32, (2, 4, 4))):
        if tokens >= 20 * blocks.key:
            return blocks
    return BlockSizes(16, 16, (1, 4, 4))


@dataclass(frozen=True)
class KeptBlocks:
    """The key blocks that each query block keeps.

    Args:
        order: `(B, H, Q, K)` int32, all key blocks by falling mass.
        counts: `(B, H, Q)` int32, how many of the first it keeps, 1 to K.
    """

    order: torch.Tensor
    counts: torch.Tensor

    def mask(self) -> torch.Tensor:
        """`(B, H, Q, K)` bool: whether a query block keeps a key block."""
        ranks = torch.arange(self.order.shape[-1], device=self.order.device)
        return torch.zeros_like(self.order, dtype=torch.bool).scatter_(
            -1, self.order.long(), ranks < self.counts[..., None]
        )

    def density(self) -> torch.Tensor:
        """Fraction of block pairs that remain, 0 to 1: 0-dimensional float32 on the device."""
        return self.counts.float().mean() / self.order.shape[-1]


def tile_order(grid: TokenGrid, tile: tuple[int, int, int]) -> torch.Tensor:
    """Indices of all tokens, tile by tile, text last: `(N,)` int64.

    Tiles at the grid's borders may be smaller. Nothing is padded, so a block may span two tiles.

    Example:
        >>> tile_order(TokenGrid(1, 2, 4), (1, 2, 2)).tolist()
        [0, 1, 4, 5, 2, 3, 6, 7]
    """
    sizes = (grid.frames, grid.height, grid.width)
    places = torch.stack(torch.meshgrid(*(torch.arange(size) for size in sizes), indexing="ij"))
    outer = [place // edge for place, edge in zip(places, tile, strict=True)]
    inner = [place % edge for place, edge in zip(places, tile, strict=True)]
    rank = torch.zeros(sizes, dtype=torch.int64)
    for place, edge in zip((*outer, *inner), (*sizes, *tile), strict=True):
        rank = rank * edge + place
    return torch.cat([rank.flatten().argsort(), torch.arange(*grid.text_span)])


def sampled_tokens(tokens: int, block: int, samples: int) -> torch.Tensor:
    """Tokens that represent their query block: `(Q, samples)` int64.

    They are on the block's diagonal, so they have all offsets within a tile. A plain stride would
    always pick the first column of each 4 x 4 x 4 tile.

    Example:
        >>> sampled_tokens(16, 16, 4).tolist()
        [[0, 5, 10, 15]]
    """
    samples = min(samples, block)
    stride = block // samples
    steps = torch.arange(samples)
    starts = torch.arange(0, tokens, block)[:, None]
    return (starts + steps * stride + steps % stride).clamp_max(tokens - 1)


def block_mass(
    query: torch.Tensor, key: torch.Tensor, blocks: BlockSizes, samples: int, scale: float
) -> torch.Tensor:
    """Attention mass of block pairs, `(B, H, Q, K)` float32 whose rows sum to 1.

    Args:
        query, key: `(B, N, H, r)`, tile by tile, at a rank r <= D.
        samples: sampled queries per block, >= 1.
        scale: the scale of the logits: 1 / √D, with the full width.
    """
    tokens = key.shape[1]
    places = sampled_tokens(tokens, blocks.query, samples).to(query.device)
    picked = query[:, places.flatten()].transpose(1, 2).float()
    weights = (picked @ key.permute(0, 2, 3, 1).float() * scale).softmax(-1)
    weights = F.pad(weights, (0, -tokens % blocks.key))
    weights = torch.unflatten(weights, -1, (-1, blocks.key)).sum(-1)
    return torch.unflatten(weights, 2, places.shape).mean(3)


def keep_blocks(mass: torch.Tensor, keep_mass: float, floor: float, cap: float) -> KeptBlocks:
    """The heaviest blocks of each row that together have the mass `keep_mass`, within floor and
    cap.

    Args:
        mass: `(B, H, Q, K)`, rows sum to 1.
        keep_mass: in (0, 1]; 1 keeps as many as `cap` allows.
        floor, cap: fractions of K, rounded up.

    Example:
        >>> selection = keep_blocks(torch.tensor([[[[0.1, 0.6, 0.3]]]]), 0.8, 0.0, 1.0)
        >>> selection.order.tolist(), selection.counts.tolist()
        ([[[[1, 2, 0]]]], [[[2]]])
    """
    total = mass.shape[-1]
    values, order = mass.sort(dim=-1, descending=True, stable=True)
    if keep_mass >= 1:
        counts = torch.full_like(order[..., 0], total)
    else:
        before = values.cumsum(-1) - values  # mass of the heavier blocks
        counts = (before < keep_mass).sum(-1)
    least, most = max(math.ceil(floor * total), 1), max(math.ceil(cap * total), 1)
    counts = counts.clamp(min=min(least, most), max=most)
    return KeptBlocks(order.int(), counts.int())


def block_means(rows: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Means `(B, K, H, D)` of the blocks of `(B, N, H, D)`, and their sizes `(K,)` float32."""
    tokens = rows.shape[1]
    padded = torch.unflatten(F.pad(rows, (0, 0, 0, 0, 0, -tokens % block)), 1, (-1, block))
    sizes = torch.full((padded.shape[1],), float(block), device=rows.device)
    sizes[-1] = tokens - block * (padded.shape[1] - 1)
    sums = padded.sum(2, dtype=torch.float32)
    return (sums / sizes[:, None, None]).to(rows.dtype), sizes


def pruned_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, selection: KeptBlocks,
    blocks: BlockSizes, tail: bool = True, scale: float | None = None,
    lengths: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """The written-out reference, `(B, N, H, D)`: all logits, then a mask. O(N²) memory.

    Args:
        query, key, value: `(B, N, H, D)`, tile by tile.
        selection: the kept blocks of each query block.
        tail: whether the other blocks enter through their means.
        scale: the scale of the logits; None: 1 / √D.
        lengths: `(B,)` int, the number of keys of each sequence that are read, from the first on;
            None: all. Blocks with other keys are never left out.
    """
    tokens, scale = key.shape[1], query.shape[-1] ** -0.5 if scale is None else scale
    rows = selection.mask().repeat_interleave(blocks.query, 2)[:, :, :tokens]
    seen = rows.repeat_interleave(blocks.key, 3)[..., :tokens]
    q, k, v = (x.transpose(1, 2).float() for x in (query, key, value))
    logits = (q @ k.mT * scale).masked_fill(~seen, -math.inf)
    if lengths is not None:
        padding = torch.arange(tokens, device=key.device) >= lengths[:, None]
        logits = logits.masked_fill(padding[:, None, None], -math.inf)
    if tail:
        (means, sizes), (averages, _) = (block_means(x, blocks.key) for x in (key, value))
        more = q @ means.transpose(1, 2).float().mT * scale + sizes.log()
        logits = torch.cat([logits, more.masked_fill(rows, -math.inf)], -1)
        v = torch.cat([v, averages.transpose(1, 2).float()], -2)
    return (logits.softmax(-1) @ v).transpose(1, 2).to(value.dtype)


def gathered_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, selection: KeptBlocks,
    blocks: BlockSizes, tail: bool = True, scale: float | None = None,
    lengths: torch.Tensor | None = None,
) -> tuple[torch.Tensor, float]:  # fmt: skip
    """`pruned_attention` over the kept blocks only, gathered: for devices without the kernel.

    Query blocks are sorted by their counts and computed in `ROW_GROUPS` groups, each padded to its
    longest list. One host sync per group. Returns the output, and the fraction of block pairs that
    was computed, with the padding.
    """
    tokens, scale = query.shape[1], query.shape[-1] ** -0.5 if scale is None else scale
    q, k, v = _cut(query, blocks.query), _cut(key, blocks.key), _cut(value, blocks.key)
    shape, total = q.shape[:3], selection.order.shape[-1]
    q, k, v = q.flatten(0, 2), k.flatten(0, 1), v.flatten(0, 1)
    (means, sizes), (averages, _) = (block_means(x, blocks.key) for x in (key, value))
    means, averages = (x.transpose(1, 2).flatten(0, 1) for x in (means, averages))
    # the last block's padding has no tokens
    ends = torch.arange(total * blocks.key, device=key.device).view(total, blocks.key)
    heads_of_one = query.shape[2]
    ends = ends < (tokens if lengths is None else lengths[:, None, None])
    ends = ends.expand(query.shape[0], -1, -1)
    order, counts = selection.order.flatten(0, 2).long(), selection.counts.flatten()
    mask = selection.mask().flatten(0, 2)
    head = torch.arange(len(k), device=key.device).repeat_interleave(shape[2])
    out, computed = q.new_empty(*q.shape[:2], value.shape[-1]), 0
    for rows in counts.argsort().chunk(ROW_GROUPS):
        most, heads = int(counts[rows].max()), head[rows]
        computed += most * len(rows)
        near = order[rows, :most]
        listed = torch.arange(most, device=key.device) < counts[rows, None]
        logits = q[rows] @ k[heads[:, None], near].flatten(1, 2).mT * scale
        seen = (ends[heads[:, None] // heads_of_one, near] & listed[..., None]).flatten(1)
        logits = logits.float().masked_fill(~seen[:, None], -math.inf)
        if tail:
            more = (q[rows] @ means[heads].mT * scale).float() + sizes.log()
            more = more.masked_fill(mask[rows, None], -math.inf)
            logits = torch.cat([logits, more], -1)
        weights = logits.softmax(-1).to(v.dtype)
        width = seen.shape[-1]
        mixed = weights[..., :width] @ v[heads[:, None], near].flatten(1, 2)
        mixed = mixed + weights[..., width:] @ averages[heads] if tail else mixed
        out[rows] = mixed.to(out.dtype)  # torch.autocast multiplies in another dtype
    out = torch.unflatten(out, 0, shape).flatten(2, 3)[:, :, :tokens].transpose(1, 2)
    return out, computed / (len(q) * total)


def _cut(rows: torch.Tensor, block: int) -> torch.Tensor:
    """`(B, N, H, D)` -> `(B, H, blocks, block, D)`, zero-padded."""
    padded = F.pad(rows, (0, 0, 0, 0, 0, -rows.shape[1] % block))
    return torch.unflatten(padded.transpose(1, 2), 2, (-1, block))
