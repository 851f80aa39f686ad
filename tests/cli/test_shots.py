"""`dit-accel generate --layout`: one clip a shot, a sheet of them, and clear words for errors."""

from __future__ import annotations

import json

import numpy as np
import pytest
from commands import invoke, names

from dit_accel.core import video

LAYOUT = """
version: 1
shots:
- id: first
  prompt: a red circle moving right
  subjects:
  - {id: a, prompt: a red circle, box: [0, 0, 0.5, 1]}
  - {id: b, prompt: a blue square, box: [0.5, 0, 1, 1]}
- id: second
  prompt: a red circle
  subjects:
  - {id: a, prompt: a red circle, box: [0.5, 0, 1, 1], reference: {shot: first}}
"""
SIZE = ("--height", "32", "--width", "32", "--steps", "4", "--threshold", "10")


@pytest.fixture
def generate(here, model_folder):
    """`dit-accel generate --layout scene.yaml` on the tiny model, in a folder with that file."""
    (here / "scene.yaml").write_text(LAYOUT)

    def run(*options, layout="scene.yaml"):
        return invoke("generate", "--model", str(model_folder), "--layout", layout, *SIZE, *options)

    return run


def test_one_clip_a_shot_a_sheet_and_a_sidecar(generate, here):
    result = generate("--output", "out.npy")
    assert result.exit_code == 0, result.stderr
    clips = [f"out-{id}.npy" for id in ("first", "second")]
    assert names(here) == sorted([*clips, "out-sheet.png", "out.npy.json", "scene.yaml"])
    first, second = (np.load(here / name) for name in clips)
    assert first.shape == second.shape == (5, 32, 32, 3) and not np.array_equal(first, second)
    sidecar = json.loads((here / "out.npy.json").read_text())
    assert sidecar["files"]["video second"] == "out-second.npy"
    assert sidecar["settings"]["prompts"] == ["a red circle moving right", "a red circle"]
    assert sidecar["settings"]["accel"]["scene"]["background"] == "open"
    assert set(sidecar["report"]["scene"]["tokens"]) == {"first", "second"}
    assert "first: tokens of" in result.stdout and "a red circle" in result.stdout


def test_the_sheet_has_a_row_a_shot(generate, here):
    import cv2

    assert generate("--output", "out.npy").exit_code == 0
    sheet = cv2.imread(str(here / "out-sheet.png"))[..., ::-1]
    clip = np.load(here / "out-second.npy")
    assert sheet.shape == (2 * (28 + 128 + 4), 5 * 132 - 4, 3)
    row = sheet[28 + 160 : 28 + 160 + 128, :128]
    assert np.array_equal(row[::4, ::4], clip[0])


def test_a_shot_does_not_depend_on_those_behind_it(generate, here):
    (here / "one.yaml").write_text(LAYOUT.split("- id: second")[0])
    assert generate("--output", "both.npy").exit_code == 0
    assert generate("--output", "one.npy", layout="one.yaml").exit_code == 0
    assert names(here).count("one.npy") == 1, "a single shot has the plain name"
    np.testing.assert_allclose(
        np.load(here / "one.npy").astype(int), np.load(here / "both-first.npy"), atol=1
    )


def test_compare_is_against_the_uncached_scene(generate, here):
    result = generate("--threshold", "0", "--compare", "--output", "out.npy")
    assert result.exit_code == 0, result.stderr
    sidecar = json.loads((here / "out.npy.json").read_text())
    assert sidecar["comparison"]["identical"] is True
    for id in ("first", "second"):
        assert (here / f"out-{id}-uncached.npy").is_file()
        assert (here / f"out-{id}-compare.npy").is_file()
    assert "the scene without a cache" in result.stdout


def test_the_settings_of_the_scene_reach_it(generate, here):
    options = {
        "closed": ("--background", "closed"),
        "off": ("--no-isolation",),
        "still": ("--no-reposition",),
        "weak": ("--alpha", "0.5"),
    }
    found = {}
    for name, words in options.items():
        assert generate(*words, "--output", f"{name}.npy").exit_code == 0
        found[name] = json.loads((here / f"{name}.npy.json").read_text())["settings"]["accel"][
            "scene"
        ]
    assert found["closed"]["background"] == "closed" and found["off"]["isolate"] is False
    assert found["still"]["reposition"] is False and found["weak"]["alpha"] == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--alpha", "2"), "--alpha is 2.0; accepted: from 0 to 1"),
        (("--alpha", "1", "--no-reposition"), "accepted: without --no-reposition"),
        (("--background", "ajar"), "--background is 'ajar'; accepted: open, closed"),
        (("--background", "open", "--no-isolation"), "accepted: without --no-isolation"),
        (("a red circle",), "the layout has the prompts"),
    ],
)
def test_wrong_options_are_named_and_nothing_is_written(generate, here, options, message):
    result = generate(*options)
    assert result.exit_code == 2 and message in result.stderr
    assert names(here) == ["scene.yaml"]


def test_a_wrong_layout_names_the_field(generate, here):
    (here / "bad.yaml").write_text(LAYOUT.replace("[0, 0, 0.5, 1]", "[0, 0, 2, 1]"))
    result = generate(layout="bad.yaml")
    assert result.exit_code == 2
    assert "--layout is 'bad.yaml': shots[0].subjects[0].box" in result.stderr
    result = generate(layout="none.yaml")
    assert result.exit_code == 2 and "no layout at none.yaml" in result.stderr


def test_a_mask_of_another_length_is_named_before_the_model_is_loaded(generate, here):
    np.save(here / "mask.npy", np.full((4, 8, 8, 3), 255, np.uint8))
    text = LAYOUT.replace("box: [0, 0, 0.5, 1]", "mask: mask.npy")
    (here / "masked.yaml").write_text(text)
    result = generate(layout="masked.yaml")
    assert result.exit_code == 2
    field = "--layout is 'masked.yaml': shots[0].subjects[0].mask has 4 frames; accepted: 5"
    assert field in result.stderr and "mp4" not in " ".join(names(here))


def test_pruning_names_the_choice(here, model_folder):
    (here / "scene.yaml").write_text(LAYOUT)
    words = ("--model", str(model_folder), "--layout", "scene.yaml", "--accel", "unicp-paper")
    size = ("--height", "32", "--width", "32", "--steps", "4")
    result = invoke("generate", *words, *size)
    assert result.exit_code == 2
    assert "--accel is 'unicp-paper', which prunes attention, and a layout" in result.stderr


def test_options_of_a_scene_need_a_layout(here, model_folder):
    for option in (("--no-isolation",), ("--alpha", "0.5"), ("--background", "open")):
        result = invoke("generate", "a red circle", "--model", str(model_folder), *option)
        assert result.exit_code == 2 and "accepted: with --layout only" in result.stderr
    result = invoke("generate", "--model", str(model_folder))
    assert result.exit_code == 2 and "PROMPT is empty" in result.stderr


def test_strips_want_clips_of_one_size():
    clips = [np.zeros((3, 4, 4, 3), np.uint8), np.zeros((3, 4, 6, 3), np.uint8)]
    with pytest.raises(ValueError, match="2 clips of 2 sizes, and 2 labels; accepted"):
        video.film_strips(clips, labels=["a", "b"])
