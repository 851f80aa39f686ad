"""Trimmed text: equal to rounding on real tiny HunyuanVideo classes, and gone without a trace."""

import pytest
import torch
from small_denoisers import latents, trial
from tiny import tiny_wan

from dit_accel import accelerate
from dit_accel.attention.trim_text import trim_text
from dit_accel.evaluation import speed

LENGTH, REAL = 12, 5


def tiny_15():
    """HunyuanVideo 1.5's denoiser, tiny, with drawn weights."""
    diffusers = pytest.importorskip("diffusers")
    if not hasattr(diffusers, "HunyuanVideo15Transformer3DModel"):
        pytest.skip("this diffusers has no HunyuanVideo 1.5")
    torch.manual_seed(0)
    model = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2,
        num_refiner_layers=1, text_embed_dim=24, text_embed_2_dim=20, image_embed_dim=12,
        rope_axes_dim=(4, 6, 6), target_size=16,
    ).eval()  # fmt: skip
    return type("Pipe", (), {"transformer": model})()


def given_15(image=False, text_2=3, batch=1):
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator)

    masks = [torch.zeros(batch, LENGTH, dtype=torch.int64) for _ in range(2)]
    masks[0][:, :REAL] = 1
    masks[1][:, :text_2] = 1
    picture = drawn(batch, 7, 12) if image else torch.zeros(batch, 7, 12)
    return {
        "hidden_states": drawn(batch, 9, 2, 4, 4),
        "timestep": torch.full((batch,), 500.0),
        "encoder_hidden_states": drawn(batch, LENGTH, 24),
        "encoder_attention_mask": masks[0],
        "encoder_hidden_states_2": drawn(batch, LENGTH, 20),
        "encoder_attention_mask_2": masks[1],
        "image_embeds": picture,
        "return_dict": False,
    }


@pytest.fixture
def pipe():
    return speed.build(trial("hunyuan-video"))


def padded(pipe, run, length, monkeypatch):
    """The pipeline's latents for a prompt of `length` tokens, padded to the row's length."""
    real = speed.embeddings

    def embeddings(*args):
        made = real(*args)
        made["prompt_attention_mask"] = made["prompt_attention_mask"].clone()
        made["prompt_attention_mask"][:, length:] = 0
        return made

    monkeypatch.setattr(speed, "embeddings", embeddings)
    found = latents(pipe, run)
    monkeypatch.setattr(speed, "embeddings", real)
    return found


@torch.no_grad()
def test_hunyuan_video_is_equal_to_rounding_and_restored(pipe, monkeypatch):
    run = trial("hunyuan-video")
    stock = padded(pipe, run, REAL, monkeypatch)
    full = latents(pipe, run)
    with trim_text(pipe) as trim:
        ours = padded(pipe, run, REAL, monkeypatch)
        assert trim.tokens == {"transformer": (32, REAL)}
        unpadded = latents(pipe, run)
        assert trim.tokens == {"transformer": (32, 32)}
    assert torch.allclose(ours, stock, rtol=1e-4, atol=1e-4)
    assert torch.allclose(unpadded, full, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(full, stock, rtol=1e-3, atol=1e-3), "the control: padding matters"
    assert torch.equal(padded(pipe, run, REAL, monkeypatch), stock)
    assert not pipe.transformer._forward_pre_hooks


@torch.no_grad()
@pytest.mark.parametrize("image", [False, True], ids=["text", "image"])
@pytest.mark.parametrize("text_2", [0, 3])
def test_hunyuan_video_15_is_equal_to_rounding_and_restored(image, text_2):
    pipe, given = tiny_15(), given_15(image, text_2)
    (stock,) = pipe.transformer(**given)
    seen = []
    with trim_text(pipe) as trim:
        hook = pipe.transformer.transformer_blocks[0].register_forward_pre_hook(
            lambda module, args: seen.append(args[1].shape[1])
        )
        (ours,) = pipe.transformer(**given)
        hook.remove()
    assert seen == [REAL + text_2 + (7 if image else 0)]
    assert trim.tokens == {"transformer": (2 * LENGTH, REAL + text_2)}
    assert torch.allclose(ours, stock, rtol=1e-4, atol=1e-5)
    assert torch.equal(pipe.transformer(**given)[0], stock)


@torch.no_grad()
def test_no_mask_reaches_attention(monkeypatch):
    import diffusers.models.transformers.transformer_hunyuan_video as plain

    pipe, given = tiny_15(), given_15()
    masks = []
    real = plain.dispatch_attention_fn
    monkeypatch.setattr(
        plain, "dispatch_attention_fn",
        lambda *args, **kwargs: masks.append(kwargs["attn_mask"]) or real(*args, **kwargs),
    )  # fmt: skip
    with trim_text(pipe):
        pipe.transformer(**given)
    assert masks == [None, None]


@torch.no_grad()
@pytest.mark.parametrize("case", ["two prompts", "padding in front"])
def test_what_cannot_be_trimmed_is_passed_on(case):
    pipe = tiny_15()
    given = given_15(batch=2 if case == "two prompts" else 1)
    if case == "padding in front":
        given["encoder_attention_mask"] = given["encoder_attention_mask"].flip(1)
    (stock,) = pipe.transformer(**given)
    with trim_text(pipe) as trim:
        assert torch.equal(pipe.transformer(**given)[0], stock)
        assert trim.tokens == {}


def test_it_goes_with_windows(pipe, monkeypatch):
    run = trial("hunyuan-video")
    with accelerate(pipe, threshold=0.0):
        stock = padded(pipe, run, REAL, monkeypatch)
    with trim_text(pipe), accelerate(pipe, threshold=0.0) as handle:
        ours = padded(pipe, run, REAL, monkeypatch)
        report = handle.report()
    assert torch.allclose(ours, stock, rtol=1e-4, atol=1e-4)
    assert report.steps_computed == run.steps


def test_the_users_backend_reaches_the_stock_processor(pipe):
    if not all(hasattr(processor, "_attention_backend") for processor in _processors(pipe)):
        pytest.skip("this diffusers' HunyuanVideo processor has no backend of its own")
    with trim_text(pipe):
        pipe.transformer.set_attention_backend("native")
    processors = {str(p._attention_backend).lower() for p in _processors(pipe)}
    assert all("native" in name for name in processors) and processors


def _processors(pipe):
    return [
        block.attn.processor
        for blocks in (
            pipe.transformer.transformer_blocks,
            pipe.transformer.single_transformer_blocks,
        )
        for block in blocks
    ]


def test_twice_is_refused_and_changes_nothing(pipe):
    before = _processors(pipe)
    with trim_text(pipe):
        inside = _processors(pipe)
        with pytest.raises(RuntimeError, match="pipe is trimmed already"):
            trim_text(pipe)
        assert all(a is b for a, b in zip(_processors(pipe), inside, strict=True))
    assert all(a is b for a, b in zip(_processors(pipe), before, strict=True))


def test_another_model_is_named():
    with pytest.raises(
        ValueError, match="transformer is a WanTransformer3DModel; accepted: Hunyuan"
    ):
        trim_text(tiny_wan())


@pytest.mark.slow
def test_a_transformer_that_was_compiled_and_assigned_is_trimmed(pipe):
    stock = latents(pipe, trial("hunyuan-video"))
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    with trim_text(pipe) as trim:
        torch.testing.assert_close(latents(pipe, trial("hunyuan-video")), stock)
        assert trim.tokens
    assert torch.equal(latents(pipe, trial("hunyuan-video")), stock)
