# mypy: ignore-errors
"""Triton programs of block-sparse attention: score, settle, select, attend.

Pointers to `(B, N, H, D)` tensors come in, whose rows are `heads * D` elements apart. Results are
stored through pointers. Logits are in powers of two, because exp2 is faster than exp. Names in
capitals are compile-time constants. Importing this imports Triton: `attention/kernels.py` does so,
and states what each program computes. Source: see there.
"""

import triton
import triton.language as tl

MIN_LOGIT = tl.constexpr(-1e30)  # below all logits, but finite: inf - inf would be NaN


@triton.jit
def score(
    q_ptr, k_ptr, sums_ptr, whole_ptr, rows, tokens, key_blocks, stride, scale,
    RANK: tl.constexpr, ROWS: tl.constexpr, KEY: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sampled queries: log2 of the sum of exp2(logit), over each key block and over all keys."""
    head = tl.program_id(1).to(tl.int64)
    ids = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols, keys = tl.arange(0, RANK), tl.arange(0, KEY)
    here = ids < rows
    q = tl.load(
        q_ptr + head * RANK + ids[:, None] * stride + cols[None, :], mask=here[:, None], other=0.0
    )
    top = tl.full([ROWS], MIN_LOGIT, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for block in range(key_blocks):
        at = block * KEY + keys
        k = tl.load(
            k_ptr + head * RANK + at[None, :] * stride + cols[:, None],
            mask=at[None, :] < tokens, other=0.0,
        )  # fmt: skip
        s = tl.dot(q, k, input_precision=PRECISION) * scale
        s += tl.where(at < tokens, 0.0, float("-inf"))[None, :]
        highest = tl.max(s, 1)
        mass = highest + tl.log2(tl.sum(tl.exp2(s - highest[:, None]), 1))
        tl.store(sums_ptr + (head * key_blocks + block) * rows + ids, mass, mask=here)
        higher = tl.maximum(top, mass)
        total = total * tl.exp2(top - higher) + tl.exp2(mass - higher)
        top = higher
    tl.store(whole_ptr + head * rows + ids, top + tl.log2(total), mask=here)


@triton.jit
def settle(
    sums_ptr, whole_ptr, mass_ptr, rows, key_blocks, query_blocks,
    ROWS: tl.constexpr, SAMPLES: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """The mean mass of each key block over the samples of a query block."""
    head = tl.program_id(2).to(tl.int64)
    ids = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    blocks = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    whole = tl.load(whole_ptr + head * rows + ids, mask=ids < rows, other=0.0)
    inside = (blocks[:, None] < key_blocks) & (ids[None, :] < rows)
    at = (head * key_blocks + blocks[:, None]) * rows + ids[None, :]
    share = tl.exp2(tl.load(sums_ptr + at, mask=inside, other=float("-inf")) - whole[None, :])
    mean = tl.sum(tl.reshape(share, (BLOCKS, ROWS // SAMPLES, SAMPLES)), 2) / SAMPLES
    queries = tl.program_id(0) * (ROWS // SAMPLES) + tl.arange(0, ROWS // SAMPLES)
    to = (head * query_blocks + queries[None, :]) * key_blocks + blocks[:, None]
    inside = (blocks[:, None] < key_blocks) & (queries[None, :] < query_blocks)
    tl.store(mass_ptr + to, mean, mask=inside)


@triton.jit
def select(mass_ptr, order_ptr, counts_ptr, total, keep_mass, least, most, WIDE: tl.constexpr):
    """The fewest heaviest blocks that hold enough mass; their indices, then the others'."""
    row = tl.program_id(0).to(tl.int64)
    ids = tl.arange(0, WIDE)
    mass = tl.load(mass_ptr + row * total + ids, mask=ids < total, other=-1.0)
    low, high = tl.max(mass, 0) * 0.0, tl.max(mass, 0) * 1.0001
    for _ in range(26):  # blocks above `low` hold enough, those above `high` do not
        middle = 0.5 * (low + high)
        chosen = mass >= middle
        count = tl.sum(chosen.to(tl.int32), 0)
        mass_in = tl.sum(tl.where(chosen, mass, 0.0), 0)
        enough = ((mass_in >= keep_mass) & (count >= least)) | (count >= most)
        low, high = tl.where(enough, middle, low), tl.where(enough, high, middle)
    chosen = (mass >= low).to(tl.int32)
    count = tl.sum(chosen, 0)
    first = tl.cumsum(chosen, 0) - 1
    rest = count + ids - first - 1
    place = tl.where(chosen == 1, first, rest)
    tl.store(order_ptr + row * total + place, ids, mask=ids < total)
    tl.store(counts_ptr + row, count)


@triton.jit
def attend(
    q_ptr, k_src, v_src, means_ptr, averages_ptr, order_ptr, counts_ptr, lengths_ptr, out_ptr,
    tokens, query_blocks, key_blocks, heads, scale,
    WIDTH: tl.constexpr, QUERY: tl.constexpr, KEY: tl.constexpr, MEANS: tl.constexpr,
    TAIL: tl.constexpr, ACCELERATOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Softmax attention of one query block over its kept key blocks and the others' means."""
    block, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    stride = heads * WIDTH
    cols, keys = tl.arange(0, WIDTH), tl.arange(0, KEY)
    rows = block * QUERY + tl.arange(0, QUERY)
    start = batch.to(tl.int64) * tokens * stride + head * WIDTH
    q_at = start + rows[:, None] * stride + cols[None, :]
    q = tl.load(q_ptr + q_at, mask=rows[:, None] < tokens, other=0.0)
    row = ((batch * heads + head) * query_blocks + block).to(tl.int64)
    list_ptr = order_ptr + row * key_blocks
    count = tl.load(counts_ptr + row)
    length = tl.load(lengths_ptr + batch)
    top = tl.full([QUERY], MIN_LOGIT, tl.float32)
    total = tl.zeros([QUERY], tl.float32)
    mixed = tl.zeros([QUERY, WIDTH], tl.float32)

    for i in range(count):
        first = tl.load(list_ptr + i) * KEY
        at = first + keys
        if ACCELERATOR:
            k = tl.trans(k_src.load([batch * tokens + first, head * WIDTH]))
            v = v_src.load([batch * tokens + first, head * WIDTH])
        else:
            inside = at < tokens
            k = tl.load(
                k_src + start + at[None, :] * stride + cols[:, None],
                mask=inside[None, :], other=0.0,
            )  # fmt: skip
            v = tl.load(
                v_src + start + at[:, None] * stride + cols[None, :],
                mask=inside[:, None], other=0.0,
            )  # fmt: skip
        s = tl.dot(q, k, input_precision=PRECISION) * scale
        s += tl.where(at < length, 0.0, float("-inf"))[None, :]
        higher = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - higher[:, None])
        fade = tl.exp2(top - higher)
        total = total * fade + tl.sum(p, 1)
        mixed = mixed * fade[:, None]
        mixed = tl.dot(p.to(v.dtype), v, mixed, input_precision=PRECISION)
        top = higher

    if TAIL:
        from_means = batch.to(tl.int64) * key_blocks * stride + head * WIDTH
        for others in range(count, key_blocks, MEANS):
            listed = others + tl.arange(0, MEANS)
            real = listed < key_blocks
            spot = tl.load(list_ptr + listed, mask=real, other=0)
            mean = tl.load(
                means_ptr + from_means + spot[None, :] * stride + cols[:, None],
                mask=real[None, :], other=0.0,
            )  # fmt: skip
            average = tl.load(
                averages_ptr + from_means + spot[:, None] * stride + cols[None, :],
                mask=real[:, None], other=0.0,
            )  # fmt: skip
            size = tl.minimum(tokens - spot * KEY, KEY).to(tl.float32)
            far = tl.dot(q, mean, input_precision=PRECISION) * scale
            far += tl.where(real, tl.log2(size), float("-inf"))[None, :]
            summit = tl.maximum(top, tl.max(far, 1))
            weight = tl.exp2(far - summit[:, None])
            less = tl.exp2(top - summit)
            total = total * less + tl.sum(weight, 1)
            mixed = mixed * less[:, None]
            mixed = tl.dot(weight.to(average.dtype), average, mixed, input_precision=PRECISION)
            top = summit

    out = mixed / total[:, None]
    tl.store(out_ptr + q_at, out.to(q.dtype), mask=rows[:, None] < tokens)
