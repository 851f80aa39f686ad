"""Staged attention: neutral is bit-equal, every stage is asked, removal restores."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from calls import call, state_of
from tiny import tiny_wan

from dit_accel.attention import processor
from dit_accel.attention.pca import Linear
from dit_accel.core.patching import Patches
from dit_accel.core.tokens import TokenGrid


def staged_of(pipe, patches):
    return [processor.install(block.attn1, patches) for block in pipe.transformer.blocks]


@pytest.mark.parametrize("fused", [False, True])
def test_neutral_is_bit_equal_and_removal_restores(fused):
    pipe = tiny_wan()
    if fused:
        pipe.transformer.fuse_qkv_projections()
    stock, before = call(pipe), state_of(pipe)
    processors = [block.attn1.processor for block in pipe.transformer.blocks]
    patches = Patches()
    stages = staged_of(pipe, patches)
    asked = []
    for one in stages:
        one.attend = lambda q, k, v, one=one: asked.append(q.shape) or one.dense(q, k, v)
    assert np.array_equal(call(pipe), stock)
    assert asked, "the control: the stage must be asked"
    patches.undo()
    assert [block.attn1.processor for block in pipe.transformer.blocks] == processors
    assert state_of(pipe) == before
    assert np.array_equal(call(pipe), stock)


def test_bfloat16_is_bit_equal_too():
    pipe = tiny_wan()
    pipe.transformer.to(torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    given = {
        "hidden_states": torch.randn(1, 16, 2, 4, 6, generator=generator).bfloat16(),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 5, 32, generator=generator).bfloat16(),
        "return_dict": False,
    }
    with torch.no_grad():
        (stock,) = pipe.transformer(**given)
        patches = Patches()
        staged_of(pipe, patches)
        (ours,) = pipe.transformer(**given)
        patches.undo()
    assert torch.equal(stock, ours)


def test_every_stage_can_be_replaced():
    pipe = tiny_wan()
    stock = call(pipe)
    for change in ("attend", "position", "value", "out"):
        patches = Patches()
        for block, one in zip(pipe.transformer.blocks, staged_of(pipe, patches), strict=True):
            made = {
                "attend": lambda q, k, v: v,
                "position": lambda q, k, rotary: (q, k),
                "value": Linear(block.attn1.to_v.weight * 2, None),
                "out": Linear(block.attn1.to_out[0].weight * 2, None),
            }
            setattr(one, change, made[change])
        assert not np.array_equal(call(pipe), stock), change
        patches.undo()
    assert np.array_equal(call(pipe), stock)


def test_the_users_backend_reaches_the_stock_processor():
    pipe = tiny_wan()
    patches = Patches()
    staged = staged_of(pipe, patches)
    pipe.transformer.set_attention_backend("native")
    assert {str(one.stock._attention_backend) for one in staged} == {"native"} or all(
        one.stock._attention_backend is not None for one in staged
    )
    stock = call(pipe)
    patches.undo()
    assert np.array_equal(call(pipe), stock)


def test_what_has_no_stages_goes_to_the_stock_processor():
    attn = tiny_wan().transformer.blocks[0].attn1
    seen = []

    class Stock:
        def __call__(self, *args, **kwargs):
            seen.append((args, kwargs))
            return "stock"

    staged = processor.StagedAttnProcessor(Stock())
    tokens = torch.zeros(1, 2, 24)
    assert staged(attn, tokens, tokens) == "stock"
    assert staged(attn, tokens, attention_mask=tokens) == "stock"
    staged._parallel_config = object()
    assert staged(attn, tokens) == "stock"
    assert len(seen) == 3


def test_an_unknown_processor_is_named_and_nothing_changes():
    attn = tiny_wan().transformer.blocks[0].attn1
    attn.processor = other = object()
    with pytest.raises(ValueError, match="processor is object; accepted: WanAttnProcessor"):
        processor.install(attn, Patches())
    assert attn.processor is other


def test_the_grid_is_read_from_the_latents():
    transformer = tiny_wan().transformer
    latents = torch.empty(1, 16, 3, 4, 6)
    assert processor.grid_of(transformer, (latents,), {}) == TokenGrid(3, 2, 3)
    assert processor.grid_of(transformer, (), {"hidden_states": latents}) == TokenGrid(3, 2, 3)


class Config(dict):
    """A transformer's, whose patch is a side, and frames."""

    patch_size = 2


def test_the_grid_of_a_patch_in_two_entries_and_of_frames_before_channels():
    transformer = SimpleNamespace(config=Config(patch_size_t=2))
    latents = torch.empty(1, 5, 16, 4, 6)  # CogVideoX 1.5 pads an odd number of latent frames
    assert processor.grid_of(transformer, (latents,), {}, frames=1) == TokenGrid(3, 2, 3)
    transformer = SimpleNamespace(config=Config(patch_size_t=None))
    assert processor.grid_of(transformer, (latents,), {}, frames=1) == TokenGrid(5, 2, 3)


VIDEO, WORDS = torch.zeros(2, 6, 8), torch.zeros(2, 3, 8)
KEYS = torch.ones(2, 1, 1, 9, dtype=torch.bool)
UNCOVERED = {
    "HunyuanVideoAttnProcessor2_0": [
        {"attention_mask": KEYS.float()},
        {"attention_mask": KEYS[:1]},
    ],
    "HunyuanVideo15AttnProcessor2_0": [{}, {"attention_mask": torch.ones(2, 9)}],
    "CogVideoXAttnProcessor2_0": [{"attention_mask": KEYS}],
}


@pytest.mark.parametrize("name", UNCOVERED)
def test_text_that_has_no_stages_goes_to_the_stock_processor(name):
    class Stock:
        def __call__(self, *given):
            return given

    staged = processor.PROCESSORS[name](Stock())
    for more in UNCOVERED[name]:
        mask = more.get("attention_mask")
        assert staged(None, VIDEO, WORDS, **more) == (None, VIDEO, WORDS, mask, None)
    assert staged(None, VIDEO)[1:3] == (VIDEO, None)
    staged._parallel_config = object()
    assert staged(None, VIDEO, WORDS, image_rotary_emb="angles")[4] == "angles"


def test_padding_is_known_by_the_masks_of_both_hunyuans():
    mask = torch.tensor([[True, True, True], [True, False, False]])
    made = processor.PROCESSORS["HunyuanVideo15AttnProcessor2_0"](None)
    text = made.text(VIDEO, WORDS, mask)
    assert text.lengths.tolist() == [9, 7]
    pairs = made.mask(text)
    assert pairs.shape == (2, 1, 9, 9) and pairs[1, 0].sum() == 7 * 7
    keys = torch.cat([torch.ones(2, 6, dtype=torch.bool), mask], 1)[:, None, None]
    made = processor.PROCESSORS["HunyuanVideoAttnProcessor2_0"](None)
    assert made.text(VIDEO, WORDS, keys).lengths.tolist() == [9, 7]
    assert made.text(VIDEO, WORDS, None).lengths is None
