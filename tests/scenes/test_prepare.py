"""accelerate(layout=...): a layout's shots and files as rows, on real, tiny pipelines."""

import cv2
import numpy as np
import pytest
from calls import call, state_of
from tiny import tiny_wan

from dit_accel import EDCW, Layout, SceneConfig, UniCP, accelerate
from dit_accel.core.families import FAMILIES
from dit_accel.core.session import Session
from dit_accel.core.tokens import TokenGrid
from dit_accel.layout import Keyframe, Reference, Shot, Subject
from dit_accel.scenes import prepare
from dit_accel.scenes.geometry import GEOMETRIES

LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
GRID = TokenGrid(3, 2, 4)


def subject(name, box, prompt="a red circle", **more):
    return Subject(name, prompt, (Keyframe(0.0, box),), **more)


def two_subjects():
    return Layout(
        (Shot("one", "a red circle", (subject("a", LEFT), subject("b", RIGHT, "a blue square"))),)
    )


def two_shots(reference=None):
    again = reference or Reference(shot="one")
    return Layout(
        (
            Shot("one", "a red circle", (subject("a", LEFT),)),
            Shot("two", "a circle", (subject("a", RIGHT, reference=again),)),
        )
    )


def run(pipe, layout, **changes):
    size = {"height": 32, "width": 64, "num_inference_steps": 4, "negative_prompt": None}
    return call(pipe, prompt=layout.prompts, **(size | changes))


def made(layout, config=None):
    """The scene, not installed."""
    pipe = tiny_wan()
    family = FAMILIES["WanTransformer3DModel"]
    prepared = prepare.prepare(family, layout, config)
    return prepared(Session(pipe, {"transformer": pipe.transformer}))


def picture(path, value=200, size=(20, 30)):
    cv2.imwrite(str(path), np.full((*size, 3), value, np.uint8))
    return path


def test_a_layout_is_installed_reported_and_removed():
    pipe, layout = tiny_wan(), two_subjects()
    stock, before = run(pipe, layout), state_of(pipe)
    with accelerate(pipe, layout=layout) as handle:
        ours = run(pipe, layout)
        found = handle.report()
    assert not np.array_equal(ours, stock)
    assert found.rule == "threshold 0" and found.steps_computed == 4
    assert found.scene.tokens == {"one": {"background": 0, "1": 12, "2": 12}}
    assert found.to_dict()["scene"]["split_calls"] == found.scene.split_calls > 0
    assert state_of(pipe) == before and np.array_equal(run(pipe, layout), stock)
    assert handle.report().scene == found.scene, "the report stays"


def test_a_file_of_a_layout_is_a_layout(tmp_path):
    path = tmp_path / "scene.yaml"
    path.write_text(
        "version: 1\nshots:\n- id: one\n  prompt: a red circle\n  subjects:\n"
        "  - {id: a, prompt: a red circle, box: [0, 0, 0.5, 1]}\n"
        "  - {id: b, prompt: a blue square, box: [0.5, 0, 1, 1]}\n"
    )
    pipe, layout = tiny_wan(), two_subjects()
    with accelerate(pipe, layout=layout):
        right = run(pipe, layout)
    with accelerate(pipe, layout=path):
        assert np.array_equal(run(pipe, layout), right)
    with pytest.raises(FileNotFoundError, match="no layout at"):
        accelerate(pipe, layout=tmp_path / "none.yaml")


def test_shots_are_rows_and_the_later_reads_the_earlier():
    scene = made(two_shots())
    first, second = scene.rows(GRID)
    assert (first.name, first.links, second.name) == ("one", (), "two")
    assert [(r.subject, r.row, r.source) for r in second.links] == [(0, 0, 0)]
    assert not made(two_shots(), SceneConfig(share=False)).rows(GRID)[1].links


@pytest.mark.parametrize("way", ["site", "threshold", "speedup", "accel"])
def test_it_composes_with_every_way_of_acceleration(way, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ways = {
        "site": {"site": "block", "threshold": 1e9},
        "threshold": {"threshold": 1e9},
        "speedup": {"speedup": 1.5},
        "accel": {"accel": UniCP(windows=EDCW(threshold=1e9), pcas=None, shift=None)},
    }
    pipe, layout = tiny_wan(), two_shots()
    with accelerate(pipe, layout=layout, **ways[way]) as handle:
        for _ in range(2):  # the first records, where there is no profile
            run(pipe, layout, num_inference_steps=12)
        found = handle.report()
    assert found.steps_computed < 12 and found.scene.tokens["two"]["1"] == 12
    assert found.flops_spent < found.flops_full


def test_quality_is_reached_against_the_uncached_scene(tmp_path, monkeypatch):
    """A quality that no cache reaches leaves the scene as it is without one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pipe, layout = tiny_wan(), two_shots()
    with accelerate(pipe, layout=layout):
        alone = run(pipe, layout, num_inference_steps=12)
    with accelerate(pipe, layout=layout, quality=200.0):
        for _ in range(2):
            assert np.array_equal(run(pipe, layout, num_inference_steps=12), alone)


# --- files ---


def test_a_file_is_one_further_row_for_all_that_refer_to_it_alike(tmp_path):
    reference = Reference(file=picture(tmp_path / "a.png"), keyframes=(Keyframe(0.0, LEFT),))
    layout = Layout(
        (
            Shot("one", "a circle", (subject("a", LEFT, reference=reference),)),
            Shot("two", "a circle", (subject("a", RIGHT, reference=reference),)),
        )
    )
    scene = made(layout)
    rows = scene.rows(GRID)
    assert [row.name for row in rows] == ["one", "two", "file 1: a.png"]
    assert [row.links[0].row for row in rows[:2]] == [2, 2]
    assert (
        rows[2].coverage[0, :, 0, 0].tolist() == [1, 1, 1] and not rows[2].coverage[..., 2:].any()
    )
    pipe = tiny_wan()
    with accelerate(pipe, layout=layout) as handle:
        assert len(run(pipe, layout)) == 2
        assert handle.report().scene.reference_tokens == {"one": 12, "two": 12}


def test_one_file_with_two_boxes_is_two_rows(tmp_path):
    path = picture(tmp_path / "a.png")
    left, right = (Reference(file=path, keyframes=(Keyframe(0.0, b),)) for b in (LEFT, RIGHT))
    subjects = subject("a", LEFT, reference=left), subject("b", RIGHT, reference=right)
    layout, pipe = Layout((Shot("one", "two circles", subjects),)), tiny_wan()
    with accelerate(pipe, layout=layout) as handle:
        run(pipe, layout)
        found = handle.report()
    assert found.scene.reference_rows == 2 and len(found.scene.tokens) == 3
    assert found.flops_spent > 2.9 * found.flops_full


def test_a_clip_and_its_mask_are_read(tmp_path):
    clip = np.random.default_rng(0).integers(0, 255, (9, 16, 16, 3), np.uint8)
    mask = np.zeros((9, 16, 16, 3), np.uint8)
    mask[:, :, :8] = 255
    np.save(tmp_path / "clip.npy", clip)
    np.save(tmp_path / "mask.npy", mask)
    reference = Reference(file=tmp_path / "clip.npy", mask=tmp_path / "mask.npy")
    scene = made(two_shots(reference))
    assert scene.rows(GRID)[2].coverage[0, :, 0].tolist() == [[1, 1, 0, 0]] * 3
    with pytest.raises(
        ValueError, match=r"clip.npy has a mask and 9 frames; accepted .* 17 frames"
    ):
        scene.rows(TokenGrid(5, 2, 4))


def test_what_cannot_be_read_is_named_before_any_work(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    layout = two_shots(Reference(file=tmp_path / "bad.png"))
    field = r"shots\[1\].subjects\[0\].reference.file is 'bad.png', which cannot be read"
    pipe = tiny_wan()
    before = state_of(pipe)
    with pytest.raises(ValueError, match=field):
        accelerate(pipe, layout=layout)
    assert state_of(pipe) == before


def test_a_mask_of_another_length_is_named_with_its_shot(tmp_path):
    np.save(tmp_path / "mask.npy", np.full((4, 8, 8, 3), 255, np.uint8))
    shot = Shot("one", "a circle", (Subject("a", "a circle", mask=tmp_path / "mask.npy"),))
    with pytest.raises(
        ValueError, match=r"shots\[0\].subjects\[0\].mask has 4 frames; accepted: 9"
    ):
        made(Layout((shot,))).rows(GRID)


# --- what is refused ---


def test_settings_without_a_layout_and_other_families_are_refused():
    with pytest.raises(ValueError, match="scene is given without layout"):
        accelerate(tiny_wan(), scene=SceneConfig())
    for family in FAMILIES.values():
        if family.name not in GEOMETRIES:
            message = f"family is '{family.name}'; accepted with a layout: wan"
            with pytest.raises(ValueError, match=message):
                prepare.prepare(family, two_shots(), None)
