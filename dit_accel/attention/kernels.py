"""Block-sparse attention on CUDA: launches the Triton programs of `triton_programs.py`.

Functions, arguments and results are those of `attention/block_sparse.py`, the written-out
reference, with the same names. Importing this module imports no Triton and needs no device.
`unsupported` checks for both, and gives the reason if one is missing. It knows no sites and no
models.
Source: online softmax over blocks as in FlashAttention (arXiv 2205.14135 §3.1); the rest is ours.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
from dataclasses import dataclass
from typing import Any

import torch

from dit_accel.attention.block_sparse import BlockSizes, KeptBlocks, block_means, sampled_tokens

KERNEL_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
KERNEL_WIDTHS = (16, 32, 64, 128)
ROWS = 128  # sampled queries per program of `score`
MAX_KEY_BLOCKS = 8192  # per row; a program of `select` has a whole row in memory


@dataclass(frozen=True)
class Launch:
    """How `attend` is compiled: warps and pipeline stages per program, and whether keys and values
    are loaded by the tensor memory accelerator (Hopper and later)."""

    warps: int = 8
    stages: int = 3
    accelerator: bool = False


def unsupported(query: torch.Tensor, blocks: BlockSizes) -> str | None:
    """The reason why the kernels cannot run on queries `(B, N, H, D)`, or None."""
    if query.device.type != "cuda":
        return f"there is no kernel for {query.device.type}"
    if query.dtype not in KERNEL_DTYPES:
        return f"there is no kernel for {query.dtype}"
    if query.shape[-1] not in KERNEL_WIDTHS:
        return f"there is no kernel for heads of {query.shape[-1]}"
    if any(size < 16 or size & (size - 1) for size in (blocks.query, blocks.key)):
        return f"there is no kernel for blocks of {blocks.query} and {blocks.key} tokens"
    if -(-query.shape[1] // blocks.key) > MAX_KEY_BLOCKS:
        return f"there is no kernel for more than {MAX_KEY_BLOCKS} key blocks"
    if query[0].numel() >= 2**31:
        return "there is no kernel for more than 2^31 numbers in one sequence"
    programs = _programs()
    return programs if isinstance(programs, str) else None


def block_mass(
    query: torch.Tensor, key: torch.Tensor, blocks: BlockSizes, samples: int, scale: float
) -> torch.Tensor:
    """`block_sparse.block_mass`, for powers of two only: samples from 1, ranks from 16."""
    batch, tokens, heads, rank = key.shape
    samples = min(samples, blocks.query)
    places = sampled_tokens(tokens, blocks.query, samples).to(query.device)
    picked = query[:, places.flatten()].contiguous()
    key = key.contiguous()
    rows, key_blocks = picked.shape[1], -(-tokens // blocks.key)
    mass = query.new_empty(batch, heads, len(places), key_blocks, dtype=torch.float32)
    programs = _programs()
    wide = max(1, 2**29 // (4 * rows * key_blocks))  # heads per launch: 0.5 GiB of block sums
    for b in range(batch):
        for first in range(0, heads, wide):
            here = min(wide, heads - first)
            sums = mass.new_empty(here, key_blocks, rows)
            whole = mass.new_empty(here, rows)
            q, k = picked[b, :, first:], key[b, :, first:]
            programs.score[-(-rows // ROWS), here](
                q, k, sums, whole, rows, tokens, key_blocks, heads * rank,
                scale * math.log2(math.e), RANK=rank, ROWS=ROWS, KEY=blocks.key,
                PRECISION=_precision(query), num_warps=4, num_stages=3,
            )  # fmt: skip
            programs.settle[-(-rows // ROWS), -(-key_blocks // 32), here](
                sums, whole, mass[b, first:], rows, key_blocks, len(places),
                ROWS=ROWS, SAMPLES=samples, BLOCKS=32, num_warps=4,
            )  # fmt: skip
    return mass


def keep_blocks(mass: torch.Tensor, keep_mass: float, floor: float, cap: float) -> KeptBlocks:
    """`block_sparse.keep_blocks`, but `order` has the kept blocks first, and each part is sorted by
    index.

    The threshold is found by bisection, not by sorting. Masses that differ by less than 2^-24 of
    the largest count as equal: such blocks are chosen together, even beyond `cap`.
    """
    *rows, total = mass.shape
    mass = mass.contiguous()
    order = torch.empty(mass.shape, dtype=torch.int32, device=mass.device)
    counts = torch.empty(rows, dtype=torch.int32, device=mass.device)
    least, most = (max(math.ceil(share * total), 1) for share in (floor, cap))
    _programs().select[math.prod(rows),](
        mass, order, counts, total, keep_mass if keep_mass < 1 else math.inf,
        min(least, most), most, WIDE=1 << (total - 1).bit_length(), num_warps=4,
    )  # fmt: skip
    return KeptBlocks(order, counts)


def pruned_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, selection: KeptBlocks,
    blocks: BlockSizes, tail: bool = True, scale: float | None = None,
    lengths: torch.Tensor | None = None, launch: Launch | None = None,
) -> torch.Tensor:  # fmt: skip
    """`block_sparse.pruned_attention`, for queries, keys and values of one width and dtype."""
    batch, tokens, heads, width = query.shape
    scale = width**-0.5 if scale is None else scale
    launch = launch or _fastest_launch(query, blocks)
    query, key, value = (x.contiguous() for x in (query, key, value))
    (means, _), (averages, _) = (block_means(x, blocks.key) for x in (key, value))
    query_blocks, key_blocks = selection.order.shape[-2:]
    out = torch.empty_like(query)
    if lengths is None:
        lengths = torch.full((batch,), tokens, device=query.device)
    sources = _described(key, value, blocks.key) if launch.accelerator else (key, value)
    _programs().attend[query_blocks, heads, batch](
        query, *sources, means, averages, selection.order, selection.counts,
        lengths.int().contiguous(), out,
        tokens, query_blocks, key_blocks, heads, scale * math.log2(math.e),
        WIDTH=width, QUERY=blocks.query, KEY=blocks.key, MEANS=32, TAIL=tail,
        ACCELERATOR=launch.accelerator, PRECISION=_precision(query),
        num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip
    return out


def _fastest_launch(query: torch.Tensor, blocks: BlockSizes) -> Launch:
    """The fastest launch on an H100 (research/LOG.md). In float32, one stage fills the shared
    memory."""
    if query.dtype == torch.float32:
        return Launch(8 if blocks.query >= 128 else 4, 1)
    hopper = torch.cuda.is_available() and torch.cuda.get_device_capability(query.device) >= (9, 0)
    return Launch(4, 3, accelerator=hopper and _has_tables())


@functools.cache
def _has_tables() -> bool:
    """Whether this version of Triton has the descriptors that the tensor memory accelerator
    needs."""
    return importlib.util.find_spec("triton.tools.tensor_descriptor") is not None


def _precision(rows: torch.Tensor) -> str:
    """The precision of float32 products. Triton's default would round them to 10 bits."""
    return "ieee" if rows.dtype == torch.float32 else "tf32"


def _described(key: torch.Tensor, value: torch.Tensor, block: int) -> tuple[Any, Any]:
    """Descriptors of keys and values for the tensor memory accelerator."""
    described = importlib.import_module("triton.tools.tensor_descriptor").TensorDescriptor
    width = key.shape[-1]
    tables = (x.flatten(0, 1).flatten(1) for x in (key, value))
    first, second = (described.from_tensor(table, [block, width]) for table in tables)
    return first, second


@functools.cache
def _programs() -> Any:
    """The module of Triton programs, or the reason why it cannot be imported."""
    try:
        return importlib.import_module("dit_accel.attention.triton_programs")
    except Exception as error:  # a missing or broken Triton must never stop a run
        return f"Triton could not be loaded ({type(error).__name__}: {error})"
