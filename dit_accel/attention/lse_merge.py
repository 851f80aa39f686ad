"""Attention over keys that come in parts: each part by itself, with the sum of its weights, merged.

Where the same query meets two sets of keys at two positions of its own, one softmax over both is
needed and no single call can compute it. Each part gives its output and the logarithm of the sum of
its exponentials; the parts are then weighed by those sums. Equal to one softmax over all keys.

Queries are taken some at a time, so that nothing of N x N is made however many there are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

MOST = 2**25  # logits at a time

Part = tuple[torch.Tensor, torch.Tensor]  # output (B, n, H, D), log of the sum (B, n, H)


def attention_part(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, most: int | None = None
) -> Part:
    """Attention over one part of the keys.

    Args:
        query: `(B, n, H, D)`.
        key, value: `(B, m, H, D)`, m >= 1.
        most: logits at a time, which the queries are parted by; None: `MOST`.

    Returns:
        the output `(B, n, H, D)` and the logarithm of the sum of exponentials `(B, n, H)`, both in
        float32, or in float64 where the queries are.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    scale = query.shape[-1] ** -0.5
    keys, values = key.to(wide).permute(0, 2, 3, 1), value.to(wide).transpose(1, 2)
    row = keys.shape[0] * keys.shape[1] * keys.shape[-1]
    queries = max(1, (MOST if most is None else most) // max(row, 1))
    outputs, sums = [], []
    for some in torch.split(query.to(wide).transpose(1, 2), queries, dim=2):
        logits = (some * scale) @ keys
        log_sum = logits.logsumexp(-1)
        outputs.append((logits - log_sum[..., None]).exp_() @ values)
        sums.append(log_sum)
    return torch.cat(outputs, 2).transpose(1, 2), torch.cat(sums, 2).transpose(1, 2)


def merge(parts: Sequence[Part]) -> torch.Tensor:
    """One softmax's output, of those of its parts: `(B, n, H, D)`."""
    total = torch.stack([log_sum for _, log_sum in parts]).logsumexp(0)
    weighed = (out * (log_sum - total).exp()[..., None] for out, log_sum in parts)
    first, *rest = weighed
    for one in rest:
        first = first + one
    return first
