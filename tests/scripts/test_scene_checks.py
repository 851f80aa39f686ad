"""The judge of scenes: right on what the world truly renders, wrong where it was exchanged."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import scene_cases
import table_scenes
from check_judge import exchanged, trust
from scene_checks import (
    Expected,
    copies,
    expected_of,
    identity,
    judge,
    look,
)
from world import DEFAULT, Scene, render

from dit_accel.layout import Keyframe

ROOT = Path(__file__).parents[2]
SEVERAL = ("two", "three", "similar")
WHOLE = (0.0, 0.0, 1.0, 1.0)


def pixels(*scenes: Scene) -> np.ndarray:
    """True renderings, (B, T, H, W, 3) in [0, 1]."""
    return (render(scenes, *DEFAULT).permute(0, 2, 3, 4, 1).numpy() + 1) / 2


@pytest.mark.parametrize("suite", SEVERAL)
def test_the_judge_is_right_on_true_renderings_and_sees_what_was_exchanged(suite):
    """On eight scenes; `check_judge.py` takes many."""
    scenes = [scene_cases.case_at(suite, 1000 + index).scenes[0] for index in range(8)]
    found = trust(scenes)
    assert found["right"] >= 0.97 and found["motion"] >= 0.95
    assert found["merged"] <= 0.03 and found["swapped"] <= 0.03
    for field in ("color", "shape"):
        assert found[f"{field}_wrong"] >= 0.97 and found[f"{field}_swapped"] >= 0.97


def test_one_exchanged_subject_is_wrong_alone():
    scene = scene_cases.case_at("two", 0).scenes[0]
    first, second = scene.subjects
    other = next(c for c in ("red", "green", "blue") if c not in (first.color, second.color))
    changed = dataclasses.replace(scene, subjects=(dataclasses.replace(first, color=other), second))
    verdict = judge(pixels(changed)[0], expected_of(scene))
    assert verdict.color == (False, True) and verdict.shape == (True, True)
    assert not verdict.right and not verdict.swapped


def test_subjects_that_became_one_are_merged():
    scene = scene_cases.case_at("two", 0).scenes[0]
    alone = dataclasses.replace(scene, subjects=scene.subjects[:1])
    verdict = judge(pixels(alone)[0], expected_of(scene))
    assert verdict.merged and not verdict.right
    assert verdict.color[1] is False and verdict.shape[1] is False and verdict.motion[1] is False


def test_an_empty_clip_has_nothing():
    seen = look(np.full((17, 64, 64, 3), 0.5, np.float32), WHOLE)
    assert (seen.color, seen.shape, seen.path) == (None, None, None)
    assert identity(seen, seen) is None and copies(seen, "left", "right") is None


def test_identity_is_near_for_one_subject_and_far_for_another():
    case = scene_cases.case_at("shots", 0)
    first, second = case.scenes
    (subject,) = second.subjects
    other = dataclasses.replace(
        subject,
        color="green" if subject.color != "green" else "red",
        shape="ring" if subject.shape != "ring" else "square",
    )
    clips = pixels(first, second, dataclasses.replace(second, subjects=(other,)))
    one, same, changed = (look(clip, WHOLE) for clip in clips)
    near, far = identity(one, same), identity(one, changed)
    assert near[0] < 6 and near[1] < 0.25  # at another size and place
    assert far[0] > 30 and far[1] > near[1] + 0.1


def test_a_motion_that_came_from_the_other_shot_is_a_copy():
    _, second = scene_cases.case_at("shots", 0).scenes
    moves = dataclasses.replace(second.subjects[0], motion="left", center=(0.6, 0.5), travel=0.2)
    clip = pixels(dataclasses.replace(second, subjects=(moves,)))[0]
    seen = look(clip, WHOLE)
    assert copies(seen, "right", "left") is True
    assert copies(seen, "left", "right") is False
    assert copies(seen, "left", "left") is None


@pytest.mark.parametrize("suite", ["unplaced", "boxed", "crossed"])
def test_the_judge_is_right_where_boxes_say_more_than_the_caption(suite):
    cases = [scene_cases.case_at(suite, index) for index in range(12)]
    clips = pixels(*(case.scenes[0] for case in cases))
    right = [judge(c, case.expected[0]).right for c, case in zip(clips, cases, strict=True)]
    assert all(right)


@pytest.mark.parametrize("suite", scene_cases.SUITES)
def test_cases_are_seeded_and_are_what_their_suite_says(suite):
    case = scene_cases.case_at(suite, 3)
    assert case == scene_cases.case_at(suite, 3) != scene_cases.case_at(suite, 4)
    shots = case.layout.shots
    if suite == "crossed":
        (placed, _), (true, _) = shots[0].subjects, case.scenes[0].subjects
        assert f"{true.color} {true.shape}" in placed.prompt and true.place in placed.prompt
        other = {"on the left": "on the right", "on the right": "on the left"}[true.place]
        said = next(part for part in shots[0].prompt.split(" and ") if true.color in part)
        assert other in said
    elif suite == "unplaced":
        assert " on the left" not in shots[0].prompt and " on the right" not in shots[0].prompt
        assert "on the left" in shots[0].subjects[0].prompt
    elif suite == "boxed":
        for subject, one in zip(shots[0].subjects, case.expected[0], strict=True):
            assert subject.keyframes == (Keyframe(0, one.region),)
            assert (one.region[2] - one.region[0], one.region[3] - one.region[1]) == (0.5, 0.5)
    elif suite in SEVERAL:
        count = 3 if suite == "three" else 2
        assert len(shots) == 1 and len(shots[0].subjects) == count
        assert len({e.color for e in case.expected[0]}) == count
        assert shots[0].prompt == case.scenes[0].caption()
    else:
        (one,), (two,) = (shot.subjects for shot in shots)
        assert (one.reference, two.reference.shot) == (None, "first")
        assert (one.keyframes != two.keyframes) and one.id == two.id
        color = case.expected[0][0].color
        assert (color in shots[1].prompt) == (suite == "shots") and color in shots[0].prompt
        assert (color in two.prompt) == (suite == "shots")


@pytest.mark.parametrize("boxes", ["cells", "paths"])
@pytest.mark.parametrize("suite", scene_cases.SUITES)
def test_boxes_hold_their_subjects(suite, boxes):
    for index in range(8):
        case = scene_cases.case_at(suite, index, boxes)
        for shot, scene in zip(case.layout.shots, case.scenes, strict=True):
            for placed, path in zip(shot.subjects, scene.boxes(17), strict=True):
                for frame, true in enumerate(path):
                    box = placed.box_at(frame / 16)
                    slack = 0.12 if boxes == "cells" else 0.04
                    assert box[0] <= true[0] + slack and true[2] <= box[2] + slack
                    assert box[1] <= true[1] + slack and true[3] <= box[3] + slack


def test_an_unknown_suite_is_refused():
    with pytest.raises(ValueError, match="suite is 'four'; accepted: two, three, similar"):
        scene_cases.case_at("four", 0)


def test_every_method_has_settings_that_are_accepted():
    from dit_accel import SceneConfig

    for settings, suites in table_scenes.METHODS.values():
        assert set(suites) <= set(scene_cases.SUITES)
        if settings is not None:
            assert SceneConfig(**settings)


def test_a_run_goes_on_where_it_was_cut_off_and_makes_a_table(tmp_path, monkeypatch, capsys):
    """On true renderings in place of the model: stock is right, "isolation only" sees nothing."""
    calls = []

    def fake(pipe, layouts, seeds, steps):
        calls.append(list(seeds))
        cases = [scene_cases.case_at("two", seed) for seed in seeds]
        return [[clip] for clip in pixels(*(case.scenes[0] for case in cases))]

    monkeypatch.setattr(table_scenes, "sample", fake)
    monkeypatch.setattr(
        table_scenes, "generate", lambda *_: [np.full((17, 64, 64, 3), 0.5, np.float32)]
    )
    monkeypatch.setattr(table_scenes, "load", lambda *_: None)
    words = ["x", "--suites", "two", "--methods", "stock", "isolation only", "--scenes", "4"]
    words += ["--batch", "2", "--out", str(tmp_path / "a.jsonl")]
    monkeypatch.setattr(sys, "argv", [*words, "--shard", "0/2"])
    table_scenes.main()
    assert calls == [[0, 2]]
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"suite": "two", "ind')  # cut off
    monkeypatch.setattr(sys, "argv", words)
    table_scenes.main()
    assert calls == [[0, 2], [1, 3]]
    said = capsys.readouterr().out
    assert "| stock | 4 | 100% [51%, 100%]" in said
    assert "| isolation only | 4 | 0% [0%, 49%]" in said and "-100 points [-100, -100]" in said


def test_an_interval_holds_the_mean():
    mean, low, high = table_scenes.interval([0.0, 1.0] * 32)
    assert low < mean == 0.5 < high and high - low == pytest.approx(0.245, abs=0.03)


def test_a_rate_at_its_end_is_not_sure():
    assert table_scenes.wilson([1.0] * 16) == pytest.approx((1, 0.806, 1), abs=1e-3)
    assert table_scenes.wilson([0.0, 1.0]) == pytest.approx((0.5, 0.095, 0.905), abs=1e-3)


def test_expected_regions_are_the_captions():
    scene = scene_cases.case_at("three", 0).scenes[0]
    regions = [one.region for one in expected_of(scene)]
    assert [round(r[0], 3) for r in regions] == [0, 0.333, 0.667]
    assert isinstance(expected_of(scene)[0], Expected)
    assert exchanged(scene, "color").subjects[0].color == scene.subjects[1].color
