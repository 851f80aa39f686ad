"""Scenes on video and text in one sequence: by hand, against masks written out, on HunyuanVideo."""

import pytest
import torch
import torch.nn.functional as F
from scene_layouts import scene_of
from tiny_models import MODELS

from dit_accel import UncachedConfig, accelerate
from dit_accel.core.families import family_of
from dit_accel.core.tokens import TokenGrid
from dit_accel.handle import Handle
from dit_accel.scenes import masks, prepare, reposition
from dit_accel.scenes.geometry import GEOMETRIES, stock_tables
from dit_accel.scenes.joint import JointPlan, dense_masks, joint_attention, own_plan
from dit_accel.scenes.rows import SceneConfig

LABELS = torch.tensor([0, 1, 2, 2])
TEXTS = [(1, 2), (2, 1)]  # the first subject's text has two tokens, the second one's has one


def plan_of(labels, texts, known, padding, isolation):
    scene = masks.gather_plan(torch.cat([labels, labels.new_zeros(known)]), isolation)
    return JointPlan(scene, *own_plan(labels, texts, known + padding, isolation, None))


def attend(query, key, value):
    parts = (rows.transpose(1, 2) for rows in (query, key, value))
    return F.scaled_dot_product_attention(*parts).transpose(1, 2)


def test_worked_example():
    """One subject, one token of text each: the two attentions of its token, and their blend."""
    plan = plan_of(torch.tensor([1]), [(1, 1)], 1, 0, "open")
    value = torch.tensor([[1.0], [3.0], [9.0]]).view(1, 3, 1, 1)  # video, the scene's text, its own
    zero = torch.zeros_like(value)  # equal logits: a mean of what is read
    out = joint_attention(plan, attend, zero, zero, value, 0.75, None, {})
    # By the scene's text (1 + 3) / 2 = 2, by its own (1 + 9) / 2 = 5: 0.25 * 2 + 0.75 * 5 = 4.25.
    # The scene's text reads video and itself: 2. The own text reads video and itself: 5.
    assert out.flatten().tolist() == [4.25, 2.0, 5.0]


@pytest.mark.parametrize("isolation", masks.ISOLATIONS)
@pytest.mark.parametrize("padding", [0, 2])
def test_it_is_the_attention_of_the_masks_that_are_written_out(isolation, padding):
    known = 3
    plan = plan_of(LABELS, TEXTS, known, padding, isolation)
    count = len(LABELS) + known + padding + 3
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, count, 2, 6, generator=generator).double() for _ in range(3))
    found = joint_attention(plan, attend, q, k, v, 0.7, None, {})
    real = [i for i in range(count) if not 0 <= i - len(LABELS) - known < padding]
    seen, own = dense_masks(LABELS, TEXTS, known, isolation)

    def dense(mask):
        parts = (rows[:, real].transpose(1, 2) for rows in (q, k, v))
        some = mask | ~mask.any(1, keepdim=True)  # a row that reads nothing is not compared
        return F.scaled_dot_product_attention(*parts, attn_mask=some).transpose(1, 2)

    scene, with_own = dense(seen), dense(own)
    expected = scene.clone()
    video, written = LABELS.nonzero().flatten(), slice(len(LABELS) + known, None)
    expected[:, video] = torch.lerp(scene[:, video], with_own[:, video], 0.7)
    expected[:, written] = with_own[:, written]
    assert torch.allclose(found[:, real], expected, atol=1e-12)
    assert not found[:, len(LABELS) + known : len(LABELS) + known + padding].any()


def test_whole_positions_have_the_tables_of_the_model():
    module = MODELS["hunyuan-video"].build().transformer
    ours = GEOMETRIES["hunyuan-video"].tables(module, {})(
        reposition.token_positions(TokenGrid(2, 3, 4))
    )
    theirs = stock_tables(module, "hunyuan-video", (2, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


BOTH = scene_of(("left", "a red circle", (0, 0.5)), ("right", "a blue square", (0.5, 1)))
CALL = {"prompt": ["a red circle moving right"], "height": 32, "width": 64}


@pytest.mark.parametrize("isolated", [True, False])
def test_in_one_layer_nothing_passes_from_one_subject_to_the_other(isolated):
    pipe = MODELS["hunyuan-video"].build()
    del pipe.transformer.single_transformer_blocks[:]
    config = SceneConfig(isolate=isolated, text=0.0, steps=(0, 1))
    handle = Handle(pipe, UncachedConfig(), prepare.prepare(family_of(pipe), BOTH, config))
    try:
        one, other = (forward(pipe, changed) for changed in (False, True))
    finally:
        handle.remove()
    assert not torch.equal(one[..., 4:], other[..., 4:])
    assert torch.equal(one[..., :4], other[..., :4]) == isolated


def forward(pipe, changed):
    config, generator = pipe.transformer.config, torch.Generator().manual_seed(0)
    latents = torch.randn(1, config.in_channels, 2, 4, 8, generator=generator)
    latents[..., 4:] += changed  # the right subject's
    text = torch.randn(1, 5, config.text_embed_dim, generator=generator)
    pooled = torch.randn(1, config.pooled_projection_dim, generator=generator)
    pipe.scheduler.set_timesteps(2)
    with torch.no_grad():
        return pipe.transformer(
            latents, pipe.scheduler.timesteps[:1], text, torch.tensor([[1, 1, 1, 0, 0]]), pooled,
            guidance=torch.tensor([6000.0]), return_dict=False,
        )[0]  # fmt: skip


def test_a_subjects_own_text_reaches_its_tokens():
    """Another prompt of a subject makes another clip; with weight 0 it does not."""
    model = MODELS["hunyuan-video"]
    pipe = model.build()
    other = scene_of(("left", "a green triangle", (0, 0.5)), ("right", "a blue square", (0.5, 1)))
    made = {}
    for weight in (0.0, 0.9):
        for name, given in (("one", BOTH), ("other", other)):
            with accelerate(pipe, layout=given, scene=SceneConfig(text=weight)) as handle:
                made[weight, name] = model.run(pipe, **CALL)
                assert handle.report().scene.split_calls > 0
    assert torch.equal(made[0.0, "one"], made[0.0, "other"])
    assert not torch.equal(made[0.9, "one"], made[0.9, "other"])
    assert all(clip.isfinite().all() for clip in made.values())
