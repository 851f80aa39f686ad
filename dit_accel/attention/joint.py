"""Attention with video and text in one sequence: video is pruned or sliced, text is never reduced.

Queries, keys and values `(B, N, H, D)` of both come in, text last; attention's output goes out.
Every query reads all text, and a text query reads all video. In pruned attention, blocks with text
are never left out (`keep_text`); the written-out reference is in `block_sparse.py`. In sliced
attention, video and text are two parts of the keys, which are merged (`with_text`). It knows no
steps, sites or models.

Source: ours. SVG (arXiv 2502.01776) does not reduce text either.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dit_accel.attention.block_sparse import BlockSizes, KeptBlocks
from dit_accel.attention.lse_merge import Part, attention_part, merge


@dataclass(frozen=True, eq=False)
class JointText:
    """The text of a sequence.

    Args:
        tokens: the number of its tokens, with padding, >= 1.
        is_first: whether it comes before the video.
        lengths: `(B,)` int, the number of tokens of the sequence that are read; the others are
            padding at the end of the text. None: all.
        mask: the same, in the form that the stock processor gets.
    """

    tokens: int
    is_first: bool = False
    lengths: torch.Tensor | None = None
    mask: torch.Tensor | None = None

    def video(self, rows: torch.Tensor) -> torch.Tensor:
        """The video's part of `(B, N, ...)`."""
        return rows[:, self.tokens :] if self.is_first else rows[:, : -self.tokens]

    def split(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Video and text of `(B, N, ...)`."""
        text = rows[:, : self.tokens] if self.is_first else rows[:, -self.tokens :]
        return self.video(rows), text

    def text_last(self, order: torch.Tensor) -> torch.Tensor:
        """Indices `(N,)` of all tokens that move the text behind the video, from an order of a
        sequence whose text is last.

        Example:
            >>> JointText(2, is_first=True).text_last(torch.tensor([1, 0, 2, 3, 4])).tolist()
            [3, 2, 4, 0, 1]
        """
        return (order + self.tokens) % len(order) if self.is_first else order


def keep_text(chosen: KeptBlocks, blocks: BlockSizes, video: int, tokens: int) -> KeptBlocks:
    """Blocks of the whole sequence, from those that were chosen among the video's.

    Every query block keeps the blocks with any text in them, and blocks with text keep every key
    block.

    Args:
        chosen: blocks that were chosen among the key blocks with only video, for at least the query
            blocks with only video.
        video, tokens: tokens of the video, and of the sequence.

    Example:
        >>> one = KeptBlocks(torch.tensor([[[[1, 0]]]]), torch.tensor([[[1]]]))
        >>> both = keep_text(one, BlockSizes(4, 2), 5, 7)  # 4 video tokens, then 1 and 2 of text
        >>> both.order.tolist(), both.counts.tolist()
        ([[[[2, 3, 1, 0], [0, 1, 2, 3]]]], [[[3, 4]]])
    """
    rows, columns = video // blocks.query, video // blocks.key
    all_rows, total = -(-tokens // blocks.query), -(-tokens // blocks.key)
    order, counts = chosen.order[:, :, :rows, :columns], chosen.counts[:, :, :rows]
    every = torch.arange(total, dtype=order.dtype, device=order.device)
    shape = order.shape[:3]
    order = torch.cat([every[columns:].expand(*shape, -1), order], -1)
    counts = counts.clamp_max(columns) + (total - columns)
    whole = every.expand(*shape[:2], all_rows - rows, -1)
    full = counts.new_full((*shape[:2], all_rows - rows), total)
    return KeptBlocks(torch.cat([order, whole], 2), torch.cat([counts, full], 2))


def is_read(tokens: int, lengths: torch.Tensor) -> torch.Tensor:
    """`(B, N)` bool: whether a token comes before its sequence's end."""
    return torch.arange(tokens, device=lengths.device) < lengths[:, None]


def with_text(
    near: Part, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    lengths: torch.Tensor | None,
) -> torch.Tensor:  # fmt: skip
    """Attention over the whole sequence, `(B, N, H, D)`, from the attention of video over video.

    Args:
        near: attention of V < N video queries over the video keys, or any approximation of it.
        query, key, value: `(B, N, H, D)`, text last. A vector that was subtracted from the video
            keys of `near` is subtracted from all keys.
        lengths: see `JointText`.
    """
    video = near[0].shape[1]
    seen = None if lengths is None else is_read(query.shape[1], lengths)
    texts = None if seen is None else seen[:, video:]
    far = attention_part(query[:, :video], key[:, video:], value[:, video:], seen=texts)
    text, _ = attention_part(query[:, video:], key, value, seen=seen)
    return torch.cat([merge([near, far]), text], 1).to(value.dtype)
