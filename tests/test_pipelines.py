"""The pipeline subclass: the parent in everything but speed and the report."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, WanPipeline
from tiny import CALL, tiny_wan

from dit_accel import EDCW, SpeedupConfig

pipelines = pytest.importorskip("dit_accel.pipelines", reason="not installed")
Accelerated = pipelines.AcceleratedWanPipeline


def call(pipe, **changes):
    settings = {**CALL, "num_inference_steps": 10, **changes}
    return pipe(generator=torch.Generator().manual_seed(0), **settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_wan().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def stock(folder):
    pipe = WanPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return call(pipe).frames


def load(folder):
    pipe = Accelerated.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_threshold_zero_is_the_parent_and_the_output_carries_the_report(folder, stock):
    output = call(load(folder), threshold=0.0)
    assert np.array_equal(output.frames, stock)
    assert output.report.steps_computed == 10


def test_accelerates_and_leaves_the_model_clean(folder, stock):
    pipe = load(folder)
    output = call(pipe, threshold=1e9, site="block")
    assert output.report.flops_kept < 1 and output.report.site == "block"
    assert not np.array_equal(output.frames, stock)
    assert "forward" not in vars(pipe.transformer)


def test_tuples_callbacks_and_output_types_are_the_parents(folder):
    pipe, seen = load(folder), []

    def note(pipe, step, timestep, tensors):
        seen.append(step)
        return tensors

    result = call(pipe, return_dict=False, output_type="latent", callback_on_step_end=note)
    assert isinstance(result, tuple) and isinstance(result[0], torch.Tensor)
    assert seen == list(range(10)) and pipe.last_report.steps == 10


def test_from_pipe_keeps_the_dtype_and_shares_the_modules(folder):
    base = WanPipeline.from_pretrained(folder).to(torch.bfloat16)
    pipe = Accelerated.from_pipe(base)
    assert pipe.transformer is base.transformer and pipe.dtype == torch.bfloat16
    assert next(base.transformer.blocks.parameters()).dtype == torch.bfloat16


def test_saved_as_the_parent_so_that_anyone_can_load_it(folder, stock, tmp_path):
    load(folder).save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["_class_name"] == "WanPipeline"
    again = DiffusionPipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    assert type(again) is WanPipeline and np.array_equal(call(again).frames, stock)


def test_loads_by_path_as_a_custom_pipeline(folder, stock, monkeypatch, tmp_path):
    from pathlib import Path

    source = Path(pipelines.__file__).with_name("wan.py")
    pipe = DiffusionPipeline.from_pretrained(
        folder, custom_pipeline=str(source), trust_remote_code=True
    )
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe).__name__ == "AcceleratedWanPipeline"
    assert np.array_equal(call(pipe, threshold=0.0).frames, stock)


def test_bad_settings_stop_before_the_run(folder):
    with pytest.raises(ValueError, match="threshold is -1"):
        call(load(folder), threshold=-1)


def test_a_quality_is_planned_by_the_profile_and_the_report_has_the_prediction(
    folder, stock, profile_file
):
    pipe = load(folder)
    output = call(pipe, num_frames=5, quality=12, profile=profile_file)
    report = output.report
    assert (report.quality, report.threshold) == (12, None)
    assert len(report.planned) == report.steps_computed < 10
    assert report.prediction["psnr_db"] > 12
    assert call(pipe, num_frames=5, speedup=2, profile=profile_file).report.steps_computed == 5
    assert np.array_equal(call(pipe, threshold=0).frames, stock)


def test_a_profile_in_the_models_folder_is_found(profile_file, tmp_path):
    folder = tmp_path / "own"
    tiny_wan().save_pretrained(folder)
    with pytest.raises(ValueError, match="quality and speedup need a profile"):
        call(load(folder), speedup=2)
    shutil.copy(profile_file, folder / "dit-accel-profile.safetensors")
    assert call(load(folder), num_frames=5, speedup=2).report.steps_computed == 5


def test_a_config_says_all_in_one(folder, stock, profile_file):
    pipe, config = load(folder), SpeedupConfig(2, profile=profile_file, guard=False)
    output = call(pipe, num_frames=5, config=config)
    assert output.report.config["guard"] is False and output.report.steps_computed == 5
    same = call(pipe, config=EDCW(1e9, first=2), site="block")
    assert same.report.site == "block" and not np.array_equal(same.frames, stock)
    with pytest.raises(ValueError, match="speedup is given beside SpeedupConfig"):
        call(pipe, config=config, speedup=3)
    with pytest.raises(ValueError, match="quality and speedup need a profile"):
        call(pipe, config=SpeedupConfig(2))


def test_one_target_a_call(folder, profile_file):
    with pytest.raises(ValueError, match="quality=30 and threshold"):
        call(load(folder), quality=30, threshold=0.1, profile=profile_file)
    with pytest.raises(ValueError, match="profile is given; accepted: with quality"):
        call(load(folder), profile=profile_file)
