"""Learning from runs: what is recorded, what later runs are planned by, and what costs nothing."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from diffusers import FirstBlockCacheConfig
from learned_runs import STEPS, basis, files, only, run

from dit_accel import SpeedupConfig, accelerate, recorded
from dit_accel.caching import learning
from dit_accel.caching.learning import FixedLearning, learning_of
from dit_accel.planning import learned_file, selection
from dit_accel.planning.profile_file import ProfileError


def whole_run(pipe: Any, seed: int = 9, **more: Any) -> Any:
    """An uncached clip that was recorded."""
    with recorded(pipe) as reference:
        run(pipe, seed, **more)
    return reference


def test_worked_example(learns) -> None:
    """Runs are planned from the prior, and teach nothing. An uncached clip does, once the run of
    the same clip is over: the next plan rests on it, too."""
    pipe = tiny.tiny_wan()
    reference = whole_run(pipe)
    with accelerate(pipe, speedup=2.0) as handle:
        run(pipe)
        assert basis(handle.report()) == "a prior of 4 other models" and files(learns) == []
        assert handle.learn_from(reference)
        run(pipe, 9)
        assert basis(handle.report()) == "a prior of 4 other models"
        (one,) = only(learns).observations
        rows = 2 * STEPS + 1
        assert one.products.shape == (rows, rows) and one.clips == only(learns).runs == 1
        for seed in range(2):
            run(pipe, seed)
            assert basis(handle.report()) == "a prior of 4 other models and 1 clip"
    # Another process plans its first run from it.
    other = tiny.tiny_wan()
    with accelerate(other, speedup=2.0) as handle:
        run(other, 3)
        assert basis(handle.report()) == "a prior of 4 other models and 1 clip"
    assert only(learns).runs == 1


@pytest.mark.parametrize("other", [{"height": 2 * tiny.CALL["height"]}, {"guidance_scale": 3.0}])
def test_an_uncached_clip_of_another_size_or_guidance_counts_too(learns, other) -> None:
    pipe = tiny.tiny_wan()
    reference = whole_run(pipe, **other)
    with accelerate(pipe, speedup=2.0) as handle:
        assert handle.learn_from(reference)
        run(pipe, 9, **other)
        run(pipe)
        assert basis(handle.report()) == "a prior of 4 other models and 1 clip"


def test_where_the_prior_knows_no_such_run_the_first_one_is_recorded(learns, without_prior) -> None:
    for computed in (STEPS, STEPS // 2):
        pipe = tiny.tiny_wan()  # as in another process
        with accelerate(pipe, speedup=2.0) as handle:
            run(pipe)
            assert handle.report().steps_computed == computed
    assert basis(handle.report()) == "inner products of one run"
    assert only(learns).runs == 1


def test_a_run_with_another_cache_is_recorded_for_its_like_and_not_learnt(
    learns, without_prior
) -> None:
    pipe = tiny.tiny_wan()
    with accelerate(pipe, speedup=2.0) as handle:
        computed = []
        for cache in (True, True, False, False):
            if cache != pipe.transformer.is_cache_enabled and cache:
                pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))
            elif not cache and pipe.transformer.is_cache_enabled:
                assert files(learns) == []
                pipe.transformer.disable_cache()
            run(pipe)
            computed.append(handle.report().steps_computed)
    assert computed == [STEPS, STEPS // 2] * 2
    assert only(learns).runs == 1


def test_off_nothing_is_written(learns) -> None:
    pipe = tiny.tiny_wan()
    with accelerate(pipe, speedup=2.0, learn=False) as handle:
        for seed in range(2):
            run(pipe, seed)
            assert basis(handle.report()) == "a prior of 4 other models"
    assert files(learns) == []


def test_static_runs_do_not_learn(learns) -> None:
    pipe = tiny.tiny_wan()
    reference = whole_run(pipe)
    with accelerate(pipe, speedup=2.0, static=True) as handle:
        assert not handle.learn_from(reference)
        run(pipe, 9)
        assert handle.report().host_syncs == 0
    assert files(learns) == []


def test_the_frames_are_those_without_learning(learns) -> None:
    found = []
    for learn in (True, False):
        pipe = tiny.tiny_wan()
        with accelerate(pipe, speedup=2.0, learn=learn) as handle:
            found.append((run(pipe), handle.report().host_syncs))
    assert np.array_equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]


def test_other_weights_or_another_scheduler_have_another_file(learns) -> None:
    pipe = tiny.tiny_wan()
    for change in range(3):
        if change == 1:
            with torch.no_grad():
                pipe.transformer.proj_out.weight.mul_(1.001)
        elif change == 2:
            pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, shift=7.0)
        reference = whole_run(pipe)
        with accelerate(pipe, speedup=2.0) as handle:
            assert handle.learn_from(reference)
            run(pipe, 9)
            assert basis(handle.report()) == "a prior of 4 other models"
    assert [learned_file.load(path).runs for path in files(learns)] == [1, 1, 1]


def test_other_steps_are_planned_from_what_was_learnt(learns, without_prior) -> None:
    pipe = tiny.tiny_wan()
    with accelerate(pipe, speedup=2.0) as handle:
        run(pipe)
        for _ in range(2):
            run(pipe, 1, num_inference_steps=12)
            report = handle.report()
            assert report.steps_computed == 6 and basis(report) == "inner products of one run"
            moved = "The plan was transferred: steps is 10 in the profile, 12 here."
            assert moved in report.notes
    assert only(learns).runs == 1


def test_other_steps_are_planned_from_the_prior_where_it_knows_them(learns) -> None:
    pipe = tiny.tiny_wan()
    with recorded(pipe) as reference:
        run(pipe)
    learning_of(pipe).add_whole(reference.run)
    for steps, rests_on in ((10, "and 1 clip"), (12, "")):
        with accelerate(pipe, speedup=2.0) as handle:
            run(pipe, num_inference_steps=steps)
            assert basis(handle.report()) == f"a prior of 4 other models {rests_on}".rstrip()


def test_what_is_fixed_plans_and_does_not_change(learns, tmp_path) -> None:
    pipe, copy = tiny.tiny_wan(), tmp_path / "copy.safetensors"
    reference = whole_run(pipe)
    with accelerate(pipe, speedup=2.0) as handle:
        assert handle.learn_from(reference)
        run(pipe, 9)
    shutil.copy(files(learns)[0], copy)
    before = [files(learns)[0].read_bytes(), copy.read_bytes()]
    for path, more in ((copy, " and 1 clip"), (None, "")):
        config = SpeedupConfig(2.0, learn=False, known=FixedLearning(pipe, path))
        with accelerate(pipe, config) as handle:
            for seed in range(2):
                run(pipe, seed)
                assert basis(handle.report()) == f"a prior of 4 other models{more}"
    assert before == [files(learns)[0].read_bytes(), copy.read_bytes()]
    other = tiny.tiny_wan(seed=1)
    config = SpeedupConfig(2.0, known=FixedLearning(other, copy))
    with accelerate(other, config), pytest.raises(ProfileError, match="from another pipeline"):
        run(other)


def test_a_damaged_file_costs_a_note_and_no_clip(learns) -> None:
    pipe = tiny.tiny_wan()
    reference = whole_run(pipe)
    with accelerate(pipe, speedup=2.0) as handle:
        assert handle.learn_from(reference)
        run(pipe, 9)
    (path,) = files(learns)
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(content)
    with accelerate(pipe, speedup=2.0) as handle:
        run(pipe)
        assert basis(handle.report()) == "a prior of 4 other models"
        assert any("not saved" in note for note in handle.report().notes)
        assert handle.learn_from(reference)
        run(pipe, 9)  # it is written anew
        assert not any("not saved" in note for note in handle.report().notes)
    assert only(learns).runs == 1


def test_a_plan_is_made_while_the_device_computes_step_0(learns, monkeypatch) -> None:
    """Between a call's first and second forward: not before or after the loop, nor in a report."""
    pipe, events = tiny.tiny_wan(), list[str]()

    def noted(name: str, inner: Any) -> Any:
        return lambda *args, **kwargs: (events.append(name), inner(*args, **kwargs))[1]

    reference = whole_run(pipe)
    with accelerate(pipe, speedup=2.0) as handle:
        assert handle.learn_from(reference)
        run(pipe, 9)
        for owner, name in (
            (learned_file, "update"), (learned_file, "load"), (selection, "choose"),
            (learning, "profile_of_gram"), (learning, "profile_key"),
        ):  # fmt: skip
            monkeypatch.setattr(owner, name, noted(name, getattr(owner, name)))
        pipe.transformer.proj_out.register_forward_hook(lambda *_: events.append("forward"))
        run(pipe, 2)
        handle.report()
    forwards = ["forward"] * (2 * STEPS // 2 - 1)
    assert events == ["forward", "profile_of_gram", "choose", *forwards]


def test_a_cache_that_cannot_be_written_is_noted(learns) -> None:
    (learns / "learned").write_text("a file in the folder's place")
    pipe = tiny.tiny_wan()
    reference = whole_run(pipe)
    with accelerate(pipe, speedup=2.0) as handle:
        assert handle.learn_from(reference)
        run(pipe, 9)
        run(pipe, 1)
        report = handle.report()
        assert basis(report) == "a prior of 4 other models and 1 clip"
        assert any(note.startswith("Learnt in this process only") for note in report.notes)


def test_a_measured_psnr_goes_into_later_guarantees(learns) -> None:
    pipe = tiny.tiny_wan()
    with accelerate(pipe, speedup=2.0) as handle:
        run(pipe)
        first = handle.report()
        assert first.prediction["basis"] == "inner products"
        learning, (clip, *_) = learning_of(pipe), tiny.tiny_clips(STEPS, 1)
        for more in (20.0, 8.0):  # the same clip is counted once, as it was measured last
            learning.add_report(first, first.prediction["psnr_db"] + more, clip)
        run(pipe, 1)
        report = handle.report()
    assert any("measured on 1 clip of this model, compared" in note for note in report.notes)
    # Before, 0 dB was assumed, which counts as one clip.
    assert report.prediction["offset_db"] - first.prediction["offset_db"] == pytest.approx(4.0)
    (one,) = only(learns).measured
    assert one.measured - one.predicted - first.prediction["offset_db"] == pytest.approx(8.0)


def test_what_cannot_be_measured_is_left_out(learns) -> None:
    pipe, (clip, other) = tiny.tiny_wan(), tiny.tiny_clips(STEPS, 2)
    with accelerate(pipe, speedup=1.0) as handle:
        run(pipe)
        learning_of(pipe).add_report(handle.report(), float("inf"), clip)
    with accelerate(pipe, speedup=2.0) as handle:
        run(pipe)
        learning_of(pipe).add_report(handle.report(), float("nan"), other)
    assert files(learns) == []
