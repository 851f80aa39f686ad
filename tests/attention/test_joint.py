"""Video and text in one sequence: text stays whole, padding is not read, a full rank is exact."""

import math

import pytest
import torch
import torch.nn.functional as F

from dit_accel.attention.block_sparse import (
    BlockSizes,
    KeptBlocks,
    gathered_attention,
    pruned_attention,
)
from dit_accel.attention.joint import JointText, is_read, keep_text, with_text
from dit_accel.attention.lse_merge import attention_part
from dit_accel.attention.pcas import PCAS, BlockSparseAttention, LowRankAttention

VIDEO, TEXT = 26, 6  # the last video block of four holds two tokens of text
TOKENS = VIDEO + TEXT
BLOCKS = BlockSizes(8, 4, (1, 2, 2))
LENGTHS = torch.tensor([TOKENS, VIDEO + 1])  # the second prompt has one token, and padding


def qkv(seed=0, width=16):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, TOKENS, 3, width, generator=generator) for _ in range(3)]


def stock(query, key, value, lengths=None):
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    mask = None if lengths is None else is_read(TOKENS, lengths)[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def test_worked_example():
    """Four video keys in two blocks, of which the query keeps one; one text key, never left out."""
    blocks = BlockSizes(4, 2)
    chosen = KeptBlocks(torch.tensor([[[[0, 1]]]]), torch.tensor([[[1]]]))
    chosen_blocks = keep_text(chosen, blocks, video=4, tokens=5)
    # Key blocks 0 and 1 are video, block 2 is the text. The video's query block keeps 2 and 0; the
    # text's query block keeps all three.
    assert chosen_blocks.mask().tolist() == [[[[True, False, True], [True, True, True]]]]
    query = torch.ones(1, 5, 1, 1)
    key = torch.tensor([0.0, 0.0, 1.0, 3.0, 2.0]).view(1, 5, 1, 1)
    value = torch.tensor([1.0, 1.0, 0.0, 10.0, 4.0]).view(1, 5, 1, 1)
    out = pruned_attention(
        query, key, value, chosen_blocks, blocks, tail=False, scale=1.0
    ).flatten()
    # video: (1 + 1 + 4 e^2) / (1 + 1 + e^2)
    # text: (1 + 1 + 0 e + 10 e^3 + 4 e^2) / (2 + e + e^3 + e^2)
    e = math.e
    video = (2 + 4 * e**2) / (2 + e**2)
    text = (2 + 10 * e**3 + 4 * e**2) / (2 + e + e**3 + e**2)
    assert out.tolist() == pytest.approx([video] * 4 + [text], rel=1e-5)
    # The second video block enters through its means: two keys at 2, of the value 5.
    out = pruned_attention(query, key, value, chosen_blocks, blocks, tail=True, scale=1.0).flatten()
    tailed = (2 + 4 * e**2 + 2 * 5 * e**2) / (2 + e**2 + 2 * e**2)
    assert out.tolist() == pytest.approx([tailed] * 4 + [text], rel=1e-5)


def selection(keep=2):
    """Some video blocks for every query block."""
    draw = torch.rand(2, 3, -(-VIDEO // BLOCKS.query), VIDEO // BLOCKS.key,
                      generator=torch.Generator().manual_seed(3))  # fmt: skip
    order = draw.argsort(-1).int()
    return keep_text(
        KeptBlocks(order, torch.full(order.shape[:3], keep).int()), BLOCKS, VIDEO, TOKENS
    )


def test_every_block_comes_once_and_text_is_never_left_out():
    chosen_blocks = selection()
    total = -(-TOKENS // BLOCKS.key)
    assert (
        chosen_blocks.order.sort(-1).values.unique(dim=2).flatten().tolist() == [*range(total)] * 6
    )
    mask = chosen_blocks.mask()
    assert mask[..., VIDEO // BLOCKS.key :].all(), "keys with text"
    assert mask[:, :, VIDEO // BLOCKS.query :].all(), "queries with text"
    assert (mask[:, :, : VIDEO // BLOCKS.query].sum(-1) == 2 + total - VIDEO // BLOCKS.key).all()


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["no padding", "padding"])
@pytest.mark.parametrize("tail", [True, False])
def test_the_gathered_path_is_the_written_out_one(tail, lengths):
    given = *qkv(), selection(), BLOCKS, tail, None, lengths
    fast, _ = gathered_attention(*given)
    exact = pruned_attention(*given)
    assert torch.allclose(fast, exact, atol=1e-5)
    assert not torch.allclose(exact, stock(*given[:3], lengths), atol=1e-3), "the control"


def test_padding_is_not_read():
    query, key, value = qkv()
    before = pruned_attention(query, key, value, selection(), BLOCKS, lengths=LENGTHS)
    hidden = ~is_read(TOKENS, LENGTHS)
    key[hidden], value[hidden] = 50.0, -50.0
    after = pruned_attention(query, key, value, selection(), BLOCKS, lengths=LENGTHS)
    assert torch.equal(before, after)


TEXTS = {
    "text last": JointText(TEXT, lengths=LENGTHS),
    "text first": JointText(TEXT, is_first=True),
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("mode", ["prune", "slice"])
def test_text_queries_are_exact_and_video_comes_close(name, mode):
    text, rows = TEXTS[name], qkv(width=24)
    order = text.text_last(torch.arange(TOKENS))
    one = learned(mode, text, rows, rank=16)
    out, share = one.attend(*rows, order, text)
    exact = stock(*rows, text.lengths)
    (video, words), (true_video, true_words) = text.split(out), text.split(exact)
    assert torch.allclose(words, true_words, atol=1e-5)
    error = (video - true_video).norm() / true_video.norm()
    assert 1e-3 < error < 0.8
    assert float(share) > 0


@pytest.mark.parametrize("name", TEXTS)
def test_a_full_rank_and_keeping_all_are_attention(name):
    text, rows = TEXTS[name], qkv(width=24)
    order = text.text_last(torch.arange(TOKENS))
    exact = stock(*rows, text.lengths)
    sliced, _ = learned("slice", text, rows, rank=24).attend(*rows, order, text)
    assert torch.allclose(sliced, exact, atol=1e-4)
    whole = learned("prune", text, rows, rank=16, keep_mass=1.0, cap=1.0)
    assert torch.allclose(whole.attend(*rows, order, text)[0], exact, atol=1e-5)


@pytest.mark.parametrize("mode", ["prune", "slice"])
def test_autocast_changes_rounding_alone(mode):
    text, rows = TEXTS["text last"], qkv(width=24)
    order = torch.arange(TOKENS)
    one = learned(mode, text, rows, rank=16, keep_mass=1.0, cap=1.0)
    out, _ = one.attend(*rows, order, text)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, _ = one.attend(*rows, order, text)
    assert not torch.equal(cast, out), "the control"
    assert torch.allclose(cast.float(), out, atol=0.05)


def learned(mode, text, rows, rank, **more):
    settings = {"mode": mode, "rank": rank, "blocks": BLOCKS, "keep_mass": 0.4} | more
    if mode == "slice":
        made = LowRankAttention(PCAS(value_rank=rank, **settings), None, None)
    else:
        made = BlockSparseAttention(PCAS(**settings))
    made.learn(*map(text.video, rows))
    made.fit()
    return made


def test_two_parts_are_one_softmax_and_a_part_without_keys_counts_nothing():
    query, key, value = qkv()
    for lengths in (None, LENGTHS, torch.tensor([VIDEO, VIDEO])):
        near = attention_part(query[:, :VIDEO], key[:, :VIDEO], value[:, :VIDEO])
        out = with_text(near, query, key, value, lengths)
        assert torch.allclose(out, stock(query, key, value, lengths), atol=1e-5)


@pytest.mark.parametrize("video", [3, 4, 9])
def test_a_video_of_less_than_a_block_stays_whole(video):
    text = JointText(5)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(1, video + 5, 2, 16, generator=generator) for _ in range(3)]
    one = BlockSparseAttention(PCAS(rank=16, blocks=BlockSizes(8, 8)))
    one.learn(*rows)
    one.fit()
    out, _ = one.attend(*rows, torch.arange(video + 5), text)
    q, k, v = (x.transpose(1, 2) for x in rows)
    exact = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    assert torch.allclose(out[:, video:], exact[:, video:], atol=1e-5)
    assert torch.allclose(out, exact, atol=1e-5) or video == 9
