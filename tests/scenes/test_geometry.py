"""Positions and rotary embeddings by family, and a scene on LTX-Video's packed, batched tokens."""

from functools import partial

import pytest
import torch
from scene_layouts import scene_of
from tiny_models import MODELS

from dit_accel import UncachedConfig, layout
from dit_accel.core.families import family_of
from dit_accel.core.tokens import TokenGrid
from dit_accel.handle import Handle
from dit_accel.scenes import prepare, reposition
from dit_accel.scenes.geometry import GEOMETRIES
from dit_accel.scenes.isolation import SceneAttention
from dit_accel.scenes.rows import SceneConfig
from dit_accel.scenes.subject_text import _without_padding

GRID = TokenGrid(2, 2, 4)
SIZES = {"num_frames": 2, "height": 2, "width": 4, "rope_interpolation_scale": (0.32, 32, 32)}


@pytest.fixture(scope="module")
def ltx():
    return MODELS["ltx"].build()


BOTH = scene_of(("left", "a red circle", (0, 0.5)), ("right", "a blue square", (0.5, 1)))


def test_worked_example(ltx):
    """A key that is moved two columns to the right is that of the token which stands there."""
    tables = GEOMETRIES["ltx"].tables(ltx.transformer, SIZES)
    where = reposition.token_positions(GRID)
    moved = reposition.box_map(torch.tensor([[0, 0, 2, 2]] * 2), torch.tensor([[2, 0, 4, 2]] * 2))
    left, right = where[where[:, 2] < 2], where[where[:, 2] >= 2]
    assert torch.equal(moved(left), right)  # columns 0 and 1 become 2 and 3
    keys = torch.randn(1, len(left), 1, tables(left)[0].shape[-1])
    turn = GEOMETRIES["ltx"].turn
    assert torch.equal(turn(keys, tables(moved(left))), turn(keys, tables(right)))
    assert not torch.equal(turn(keys, tables(left)), turn(keys, tables(right))), "the control"


@pytest.mark.parametrize("scaled", [True, False])
def test_whole_positions_have_the_tables_of_the_model(ltx, scaled):
    given = SIZES if scaled else SIZES | {"rope_interpolation_scale": None}
    ours = GEOMETRIES["ltx"].tables(ltx.transformer, given)(reposition.token_positions(GRID))
    names = "num_frames", "height", "width", "rope_interpolation_scale"
    theirs = ltx.transformer.rope(torch.empty(1, 1), *(given[name] for name in names))
    for own, other in zip(ours, theirs, strict=True):
        assert torch.equal(own.flatten(2), other)


def forward(pipe, changed=False):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 2, 2, 4, pipe.transformer.config.in_channels, generator=generator)
    latents[:, :, :, 3] += changed  # the right subject's
    width = pipe.transformer.config.caption_channels
    text = torch.randn(1, 5, width, generator=generator)
    pipe.scheduler.set_timesteps(2, mu=1.0)
    with torch.no_grad():
        out = pipe.transformer(
            latents.flatten(1, 3), text, pipe.scheduler.timesteps[:1], torch.ones(1, 5), **SIZES,
            return_dict=False,
        )[0]  # fmt: skip
    return out.unflatten(1, (2, 2, 4))


@pytest.mark.parametrize("isolated", [True, False])
def test_in_one_layer_nothing_passes_from_one_subject_to_the_other(isolated):
    pipe = MODELS["ltx"].build()
    del pipe.transformer.transformer_blocks[1:]
    config = SceneConfig(isolate=isolated, text=0.0, steps=(0, 1))
    handle = Handle(pipe, UncachedConfig(), prepare.prepare(family_of(pipe), BOTH, config))
    try:
        one, other = forward(pipe), forward(pipe, changed=True)
    finally:
        handle.remove()
    assert not torch.equal(one[..., 2:, :], other[..., 2:, :])
    assert torch.equal(one[..., :2, :], other[..., :2, :]) == isolated


def test_the_subjects_prompts_are_read_in_the_conditional_half_alone(ltx):
    """Both branches are in one batch: of two shots, rows 0 and 1 are without the prompt."""
    scene = scene_of(("all", "a red circle", (0, 0.5)), shots=2)
    handle = Handle(ltx, UncachedConfig(), prepare.prepare(family_of(ltx), scene, SceneConfig()))
    try:
        MODELS["ltx"].run(ltx, prompt=["a", "a blue square"], negative_prompt=["plain"] * 2)
        (made,) = (i for i in handle._session.interceptors if isinstance(i, SceneAttention))
        assert made.halves == ("uncond", "cond")
        assert [row for row, *_ in made.subject_texts("transformer")] == [2, 3]
    finally:
        handle.remove()


def test_padding_of_a_subjects_prompt_is_cut():
    texts = _without_padding(torch.ones(2, 4, 3), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]))
    assert [tuple(text.shape) for text in texts] == [(1, 2, 3), (1, 4, 3)]
    assert [t.shape[1] for t in _without_padding(torch.ones(2, 4, 3), None)] == [4, 4]


def test_what_does_not_fit_is_refused_in_words(ltx, tmp_path):
    sizes = partial(GEOMETRIES["ltx"].sizes, ltx.transformer)
    with pytest.raises(ValueError, match="is called with video_coords; accepted with a layout"):
        sizes(SIZES | {"video_coords": torch.zeros(1, 3, 16)})
    assert sizes(SIZES) == (2, 2, 4)
    import cv2
    import numpy as np

    cv2.imwrite(str(tmp_path / "hero.png"), np.zeros((8, 8, 3), np.uint8))
    subject = layout.Subject(
        "a", "a red circle", (layout.Keyframe(0, (0, 0, 1, 1)),),
        reference=layout.Reference(file=tmp_path / "hero.png"),
    )  # fmt: skip
    given = layout.Layout((layout.Shot("s", "a", (subject,)),))
    with pytest.raises(ValueError, match="is a file, and the family is ltx; accepted: another"):
        prepare.prepare(family_of(ltx), given, None)
