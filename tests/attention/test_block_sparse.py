"""Block-pruned attention: order of tokens, scores, budgets and tail, by hand and by reference."""

import pytest
import torch
import torch.nn.functional as F

from dit_accel.attention.block_sparse import (
    BlockSizes,
    KeptBlocks,
    block_mass,
    block_means,
    gathered_attention,
    keep_blocks,
    pruned_attention,
    sampled_tokens,
    tile_order,
)
from dit_accel.core.tokens import TokenGrid

BLOCKS = BlockSizes(query=8, key=4)


def qkv(tokens=30, batch=2, heads=3, width=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, tokens, heads, width, generator=generator) for _ in range(3)]


def stock(query, key, value):
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def selection_of(query, key, keep_mass=0.6, floor=0.0, cap=1.0, blocks=BLOCKS):
    mass = block_mass(query, key, blocks, blocks.query, query.shape[-1] ** -0.5)
    return keep_blocks(mass, keep_mass, floor, cap)


def test_worked_example():
    """Four keys in two blocks of two; the query looks at the first block, the second is a tail."""
    blocks = BlockSizes(query=4, key=2)
    query = torch.ones(1, 4, 1, 1)
    key = torch.tensor([0.0, 0.0, 1.0, 3.0]).view(1, 4, 1, 1)
    value = torch.tensor([1.0, 1.0, 0.0, 10.0]).view(1, 4, 1, 1)
    # Of the first block's mass of 0.7 a budget of 0.6 is content: one block of two.
    chosen = keep_blocks(torch.tensor([[[[0.7, 0.3]]]]), 0.6, 0.0, 1.0)
    assert (chosen.order.tolist(), chosen.counts.tolist()) == ([[[[0, 1]]]], [[[1]]])
    # Without a tail: both keys of the block weigh e^0, and both values are 1.
    out = pruned_attention(query, key, value, chosen, blocks, tail=False, scale=1.0)
    assert out.flatten().tolist() == pytest.approx([1.0] * 4)
    # With a tail the second block counts as two keys at its mean (1 + 3) / 2 = 2, of the mean
    # value (0 + 10) / 2 = 5: (2 e^0 x 1 + 2 e^2 x 5) / (2 e^0 + 2 e^2) = 4.523
    out = pruned_attention(query, key, value, chosen, blocks, tail=True, scale=1.0)
    assert out.flatten().tolist() == pytest.approx([4.523] * 4, abs=1e-3)
    # Full attention: (2 + 0 e^1 + 10 e^3) / (2 + e^1 + e^3) = 8.178
    every = keep_blocks(torch.tensor([[[[0.7, 0.3]]]]), 1.0, 0.0, 1.0)
    out = pruned_attention(query, key, value, every, blocks, tail=True, scale=1.0)
    assert out.flatten().tolist() == pytest.approx([8.178] * 4, abs=1e-3)


def test_tiles_by_hand():
    order = tile_order(TokenGrid(2, 2, 3, text=2), (2, 2, 2))
    # columns 0-1 of both frames come first, then the ragged tile of column 2, then the text
    assert order.tolist() == [0, 1, 3, 4, 6, 7, 9, 10, 2, 5, 8, 11, 12, 13]


@pytest.mark.parametrize("grid", [TokenGrid(5, 8, 8), TokenGrid(3, 7, 5, text=4)])
def test_every_token_comes_once(grid):
    assert tile_order(grid, (4, 4, 4)).sort().values.tolist() == list(range(grid.tokens))


def test_sampled_queries_meet_every_offset_of_a_tile():
    (places,) = sampled_tokens(64, 64, 16)
    offsets = [(i // 16, i // 4 % 4, i % 4) for i in places.tolist()]
    assert all({o[axis] for o in offsets} == {0, 1, 2, 3} for axis in range(3))
    assert sampled_tokens(20, 16, 4)[1].max() == 19  # the last block is short


def test_mass_is_that_of_attention_when_all_queries_are_asked_at_full_width():
    query, key, _ = qkv(tokens=32)
    mass = block_mass(query, key, BLOCKS, 8, 0.25)
    q, k = query.transpose(1, 2), key.transpose(1, 2)
    weights = (q @ k.mT * 0.25).softmax(-1)
    exact = weights.unflatten(2, (4, 8)).mean(3).unflatten(-1, (8, 4)).sum(-1)
    assert torch.allclose(mass, exact, atol=1e-6)
    assert torch.allclose(mass.sum(-1), torch.ones(2, 3, 4))


def test_budgets_by_hand():
    mass = torch.tensor([0.05, 0.5, 0.15, 0.3]).expand(1, 1, 1, 4)

    def keeps(*args):
        chosen = keep_blocks(mass, *args)
        return chosen.order.flatten().tolist()[: int(chosen.counts)]

    assert keeps(0.75, 0.0, 1.0) == [1, 3]  # 0.5 does not suffice, 0.8 does
    assert keeps(0.85, 0.0, 1.0) == [1, 3, 2]
    assert keeps(0.85, 0.0, 0.5) == [1, 3]  # cap: half of four
    assert keeps(0.3, 0.75, 1.0) == [1, 3, 2]  # floor: three quarters of four
    assert keeps(1.0, 0.0, 1.0) == [1, 3, 2, 0]
    assert keeps(1e-9, 0.0, 1e-9) == [1]  # never none


def test_mask_and_density_of_a_selection():
    chosen = KeptBlocks(
        torch.tensor([[[[2, 0, 1]]]], dtype=torch.int32), torch.tensor([[[2]]]).int()
    )
    assert chosen.mask().flatten().tolist() == [True, False, True]
    assert float(chosen.density()) == pytest.approx(2 / 3)


def test_means_of_a_short_last_block():
    means, sizes = block_means(torch.arange(5.0).view(1, 5, 1, 1), 2)
    assert means.flatten().tolist() == [0.5, 2.5, 4.0]
    assert sizes.tolist() == [2, 2, 1]


def test_keeping_all_is_attention():
    query, key, value = qkv()
    chosen = selection_of(query, key, keep_mass=1.0)
    for tail in (True, False):
        out = pruned_attention(query, key, value, chosen, BLOCKS, tail)
        assert torch.allclose(out, stock(query, key, value), atol=1e-5)


def test_the_tail_is_exact_where_the_keys_of_a_block_are_equal():
    query, key, value = qkv(tokens=32)
    key = key[:, ::4].repeat_interleave(4, 1)
    chosen = selection_of(query, key, keep_mass=0.3)
    assert chosen.density() < 0.5
    out = pruned_attention(query, key, value, chosen, BLOCKS)
    assert torch.allclose(out, stock(query, key, value), atol=1e-5)


def test_the_tail_comes_closer_than_dropping():
    query, key, value = qkv(tokens=64)
    chosen = selection_of(query, key, keep_mass=0.6)
    exact = stock(query, key, value)
    errors = [
        (pruned_attention(query, key, value, chosen, BLOCKS, tail) - exact).norm()
        for tail in (True, False)
    ]
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("tokens", [32, 30, 25])
def test_gathering_is_the_reference(tokens, tail):
    query, key, value = qkv(tokens)
    chosen = selection_of(query, key, keep_mass=0.7)
    out, share = gathered_attention(query, key, value, chosen, BLOCKS, tail)
    assert torch.allclose(out, pruned_attention(query, key, value, chosen, BLOCKS, tail), atol=1e-5)
    assert float(chosen.density()) <= share < 1


def test_values_may_be_narrower():
    query, key, value = qkv()
    chosen = selection_of(query, key)
    out = pruned_attention(query, key, value[..., :5], chosen, BLOCKS)
    assert out.shape == (2, 30, 3, 5)
    assert torch.allclose(
        gathered_attention(query, key, value[..., :5], chosen, BLOCKS)[0], out, atol=1e-5
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"query": 0}, "query is 0; accepted: an integer >= 1"),
        ({"key": 1.5}, "key is 1.5; accepted: an integer"),
        ({"tile": (1, 0, 1)}, "tile is 0; accepted: an integer >= 1"),
    ],
)
def test_bad_blocks_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        BlockSizes(**given)
