"""Attention over keys in several parts, merged with the log-sum-exp of each part.

Queries, keys and values of each part come in; one output goes out, equal to one softmax over all
keys. It is needed if a query has different rotary positions for two sets of keys, which a single
attention call cannot express. Queries are computed in chunks, so nothing of N x N is stored. It
knows no scenes.

Source: the merge of FlashAttention (arXiv 2205.14135 §3.1), over parts instead of blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

MAX_LOGITS = 2**25  # per chunk of queries

Part = tuple[torch.Tensor, torch.Tensor]  # output (B, n, H, D), log-sum-exp (B, n, H)


def attention_part(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, most: int | None = None, *,
    scale: float | None = None, seen: torch.Tensor | None = None,
) -> Part:  # fmt: skip
    """Attention over one part of the keys, in float32 at least.

    Args:
        query: `(B, n, H, D)`.
        key, value: `(B, m, H, D)`, m >= 1.
        most: logits per chunk of queries; None: `MAX_LOGITS`.
        scale: the scale of the logits; None: 1 / √D.
        seen: `(B, m)` bool, keys that are read; None: all. If no key is read, the sum is about 0.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    hidden = None if seen is None else ~seen[:, None, None]
    keys, values = key.to(wide).permute(0, 2, 3, 1), value.to(wide).transpose(1, 2)
    row = keys.shape[0] * keys.shape[1] * keys.shape[-1]
    queries = max(1, (most or MAX_LOGITS) // max(row, 1))
    outputs, sums = [], []
    with torch.autocast(query.device.type, enabled=False):
        for some in torch.split(query.to(wide).transpose(1, 2), queries, dim=2):
            logits = (some * scale) @ keys
            if hidden is not None:  # finite, so that a part without keys has no NaN
                logits = logits.masked_fill_(hidden, torch.finfo(wide).min)
            log_sum = logits.logsumexp(-1)
            outputs.append((logits - log_sum[..., None]).exp_() @ values)
            sums.append(log_sum)
    return torch.cat(outputs, 2).transpose(1, 2), torch.cat(sums, 2).transpose(1, 2)


def merge(parts: Sequence[Part]) -> torch.Tensor:
    """The output `(B, n, H, D)` of one softmax over all parts."""
    total = torch.stack([log_sum for _, log_sum in parts]).logsumexp(0)
    first, *rest = (out * (log_sum - total).exp()[..., None] for out, log_sum in parts)
    return sum(rest, first)
