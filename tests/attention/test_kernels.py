"""The CUDA kernels against the written-out reference; without a GPU, that they decline in words.

`TRITON_INTERPRET=1 pytest -m gpu tests/attention/test_kernels.py`, where Triton is installed,
runs the same comparisons on a CPU, by Triton's interpreter.
"""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from dit_accel.attention import block_sparse, kernels
from dit_accel.attention.block_sparse import BlockSizes

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
TOLERANCE = {torch.float32: 2e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}
TOKENS = 200 if INTERPRETED else 1000  # neither is a multiple of a block


@pytest.fixture
def device():
    if not INTERPRETED and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    return DEVICE


def qkv(device, dtype=torch.float32, width=64, batch=2, heads=2):
    generator = torch.Generator().manual_seed(0)
    shape = (batch, TOKENS, heads, width)
    return [torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3)]


def selection_of(query, key, blocks, keep_mass=0.7):
    mass = block_sparse.block_mass(query, key, blocks, 16, query.shape[-1] ** -0.5)
    return block_sparse.keep_blocks(mass, keep_mass, 0.0, 1.0)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize(
    "blocks", [BlockSizes(64, 64), BlockSizes(128, 32)], ids=["64x64", "128x32"]
)
def test_attention_is_the_reference(device, dtype, width, tail, blocks):
    if INTERPRETED and dtype == torch.bfloat16:
        pytest.skip("numpy, which interprets, has no bfloat16")
    query, key, value = qkv(device, dtype, width)
    selection = selection_of(query, key, blocks)
    ours = kernels.pruned_attention(query, key, value, selection, blocks, tail)
    exact = block_sparse.pruned_attention(query, key, value, selection, blocks, tail)
    assert ours.dtype == dtype
    assert torch.allclose(ours.float(), exact.float(), atol=TOLERANCE[dtype])


@pytest.mark.gpu
@pytest.mark.parametrize("accelerator", [False, True])
def test_keys_behind_a_sequences_end_are_not_read(device, accelerator):
    if accelerator and not INTERPRETED and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("the device has none")
    blocks, launch = BlockSizes(64, 64), kernels.Launch(4, 3, accelerator=accelerator)
    query, key, value = qkv(device, torch.float16)
    lengths = torch.tensor([TOKENS, TOKENS - 50], device=device)
    selection = selection_of(query, key, blocks, keep_mass=1.0)
    ours = kernels.pruned_attention(
        query, key, value, selection, blocks, lengths=lengths, launch=launch
    )
    exact = block_sparse.pruned_attention(query, key, value, selection, blocks, lengths=lengths)
    assert torch.allclose(ours.float(), exact.float(), atol=1e-2)
    whole = kernels.pruned_attention(query, key, value, selection, blocks, launch=launch)
    assert torch.equal(whole[0], ours[0]) and not torch.equal(whole[1], ours[1])


@pytest.mark.gpu
def test_by_the_memory_accelerator_too(device):
    if not INTERPRETED and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("the device has none")
    blocks, launch = BlockSizes(64, 64), kernels.Launch(4, 3, accelerator=True)
    query, key, value = qkv(device, torch.float16)
    selection = selection_of(query, key, blocks)
    ours = kernels.pruned_attention(query, key, value, selection, blocks, launch=launch)
    exact = block_sparse.pruned_attention(query, key, value, selection, blocks)
    assert torch.allclose(ours.float(), exact.float(), atol=1e-2)


@pytest.mark.gpu
def test_keeping_all_is_attention(device):
    blocks = BlockSizes(64, 64)
    query, key, value = qkv(device)
    selection = selection_of(query, key, blocks, keep_mass=1.0)
    ours = kernels.pruned_attention(query, key, value, selection, blocks)
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    stock = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    assert torch.allclose(ours, stock, atol=2e-3)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("blocks", "samples"), [(BlockSizes(64, 64), 16), (BlockSizes(128, 32), 8)]
)
def test_mass_is_the_reference(device, blocks, samples):
    query, key, _ = qkv(device, width=32)
    ours = kernels.block_mass(query, key, blocks, samples, 0.3)
    exact = block_sparse.block_mass(query, key, blocks, samples, 0.3)
    assert torch.allclose(ours, exact, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("budget", [(0.7, 0.0, 1.0), (0.5, 0.4, 1.0), (0.9, 0.0, 0.2), (1.0, 0, 1)])
def test_selection_is_the_reference(device, budget):
    generator = torch.Generator().manual_seed(1)
    mass = torch.randn(2, 2, 5, 37, generator=generator).mul(2).softmax(-1).to(device)
    ours, exact = kernels.keep_blocks(mass, *budget), block_sparse.keep_blocks(mass, *budget)
    assert torch.equal(ours.counts, exact.counts)
    assert torch.equal(ours.mask(), exact.mask())
    assert torch.equal(ours.order.sort(-1).values, exact.order.sort(-1).values)


@pytest.mark.parametrize(
    ("rows", "blocks", "reason"),
    [
        (torch.empty(1, 64, 1, 64), BlockSizes(), "no kernel for cpu"),
        (torch.empty(1, 64, 1, 64, device="meta"), BlockSizes(), "no kernel for meta"),
    ],
)
def test_it_declines_in_words(rows, blocks, reason):
    assert reason in str(kernels.unsupported(rows, blocks))


def test_importing_it_imports_no_triton():
    code = "import sys, dit_accel.attention.kernels; print('triton' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
