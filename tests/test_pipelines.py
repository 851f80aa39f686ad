"""The pipeline subclass: the parent in everything but speed and the report."""

import inspect
import json
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, WanPipeline
from diffusers.utils.dynamic_modules_utils import get_class_from_dynamic_module
from pipeline_rows import ROWS
from tiny import CALL, tiny_wan

from dit_accel import EDCW, SpeedupConfig, ThresholdConfig
from dit_accel.config import PlanConfig
from dit_accel.planning.plan import Extrapolation, Plan

pipelines = pytest.importorskip("dit_accel.pipelines", reason="not installed")
Accelerated = pipelines.AcceleratedWanPipeline
CLASSES = [name for name in dir(pipelines) if name.endswith("Pipeline")]
CLASSES.remove("AcceleratedPipeline")
SOME = Plan(10, {step: Extrapolation(({step - 1: 1.0},)) for step in (3, 5, 7)})
OURS = ("threshold", "site", "quality", "speedup", "profile", "config")
FIRST = {row.pipeline: row for row in reversed(ROWS)}  # the first row of each pipeline


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
    shutil.copy(profile_file, folder / "dit-accel-profile.safetensors")
    assert call(load(folder), num_frames=5, speedup=2).report.steps_computed == 5


@pytest.mark.parametrize("given", [{"learn": False}, {"static": True}], ids=str)
def test_calls_that_teach_nothing_are_planned_from_the_prior(folder, learns, given):
    report = call(load(folder), config=SpeedupConfig(2, **given)).report
    assert report.steps_computed == report.steps / 2
    assert any("Planned from a prior" in note for note in report.notes)
    assert not (learns / "learned").exists()


def test_what_is_not_known_and_teaches_nothing_is_refused(folder, learns, without_prior):
    pipe = load(folder)
    with pytest.raises(ValueError, match="does not cover the noise levels of FlowMatchEuler"):
        call(pipe, config=SpeedupConfig(2, learn=False))
    assert call(pipe, speedup=2).report.steps_computed == 10  # recorded, for later calls


def test_without_a_profile_a_call_is_planned_by_earlier_ones(folder, learns):
    reports = [call(load(folder), speedup=2).report for _ in range(2)]
    assert reports[-1].steps_computed == 5


def test_a_config_says_all_in_one(folder, stock, profile_file):
    pipe, config = load(folder), SpeedupConfig(2, profile=profile_file, guard=False)
    output = call(pipe, num_frames=5, config=config)
    assert output.report.config["guard"] is False and output.report.steps_computed == 5
    same = call(pipe, config=EDCW(1e9, first=2), site="block")
    assert same.report.site == "block" and not np.array_equal(same.frames, stock)
    with pytest.raises(ValueError, match="speedup is given beside SpeedupConfig"):
        call(pipe, config=config, speedup=3)


def test_one_target_a_call(folder, profile_file):
    with pytest.raises(ValueError, match="quality=30 and threshold"):
        call(load(folder), quality=30, threshold=0.1, profile=profile_file)
    with pytest.raises(ValueError, match="profile is given; accepted: with quality"):
        call(load(folder), profile=profile_file)


# --- every class --------------------------------------------------------------------------------


def parent_of(name):
    """The name of the parent, where this diffusers has it."""
    parent = name.removeprefix("Accelerated")
    if not hasattr(diffusers, parent) or not FIRST[parent].is_there:
        pytest.skip(f"diffusers {diffusers.__version__} has no {parent}, or not all of its parts")
    return parent


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_is_its_parent_with_a_report(name):
    row = FIRST[parent_of(name)]
    stock = row.build()
    expected = row.run(stock)
    pipe = getattr(pipelines, name).from_pipe(stock)
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe).parent is type(stock) and pipe.transformer is stock.transformer
    assert torch.equal(row.run(pipe, config=PlanConfig(Plan(10, {}))), expected)
    assert pipe.last_report.steps_computed == 10
    assert not torch.equal(row.run(pipe, config=PlanConfig(SOME)), expected)
    assert pipe.last_report.steps_computed == 7
    assert torch.equal(row.run(stock), expected)  # nothing is left behind


@pytest.mark.parametrize("name", CLASSES)
def test_every_file_is_loaded_alone_by_its_path(name, tmp_path):
    """diffusers copies one file, and accepts one class in it."""
    parent = parent_of(name)
    home = Path(inspect.getfile(getattr(pipelines, name)))
    shutil.copy(home, tmp_path)
    known = inspect.signature(get_class_from_dynamic_module).parameters
    consent = {"trust_remote_code": True} if "trust_remote_code" in known else {}
    found = get_class_from_dynamic_module(tmp_path, module_file=home.name, **consent)
    assert found.__name__ == name and issubclass(found, getattr(diffusers, parent))
    theirs = inspect.signature(getattr(diffusers, parent).__call__).parameters
    ours = inspect.signature(found.__call__).parameters
    assert ours.keys() - theirs.keys() == set(OURS) and list(ours)[: len(theirs)] == list(theirs)


# --- settings that travel ------------------------------------------------------------------------


def test_settings_and_profile_are_saved_and_come_back(folder, profile_file, tmp_path):
    pipe = load(folder)
    assert pipe.acceleration is None
    pipe.acceleration = SpeedupConfig(2, profile=str(profile_file), guard=False)
    pipe.save_pretrained(tmp_path / "mine")
    by_path = DiffusionPipeline.from_pretrained(
        tmp_path / "mine", trust_remote_code=True,
        custom_pipeline=str(Path(pipelines.__file__).with_name("wan.py")),
    )  # fmt: skip
    for again in (Accelerated.from_pretrained(tmp_path / "mine"), by_path):
        again.set_progress_bar_config(disable=True)
        assert again.acceleration == SpeedupConfig(2, guard=False)
        report = call(again, num_frames=5).report
        assert report.steps_computed == 5 and report.prediction["psnr_db"] > 0
        assert call(again, num_frames=5, threshold=0).report.steps_computed == 10
    again.acceleration = ThresholdConfig(0.3, site="block")
    again.save_pretrained(tmp_path / "mine")
    assert Accelerated.from_pretrained(tmp_path / "mine").acceleration == again.acceleration
    again.acceleration = None
    again.save_pretrained(tmp_path / "mine")
    assert Accelerated.from_pretrained(tmp_path / "mine").acceleration is None


def test_settings_go_along_with_from_pipe(folder):
    pipe = load(folder)
    pipe.acceleration = ThresholdConfig(0.0)
    assert Accelerated.from_pipe(pipe).acceleration == ThresholdConfig(0.0)
    assert Accelerated.from_pipe(WanPipeline.from_pretrained(folder)).acceleration is None


def test_settings_that_cannot_be_saved_or_read_are_named(folder, tmp_path):
    pipe = load(folder)
    with pytest.raises(ValueError, match="acceleration is 2; accepted: an AccelConfig"):
        pipe.acceleration = 2
    pipe.acceleration = PlanConfig(SOME)
    with pytest.raises(ValueError, match="plan is a Plan, which cannot be written as JSON"):
        pipe.save_pretrained(tmp_path / "mine")
    assert not (tmp_path / "mine").exists()
    pipe.acceleration = ThresholdConfig(0.3)
    pipe.save_pretrained(tmp_path / "mine")
    settings = tmp_path / "mine" / "dit-accel.json"
    settings.write_text('{"kind": "threshold", "treshold": 1}')
    with pytest.raises(ValueError, match=r"dit-accel.json.*treshold; accepted: .*threshold"):
        call(load(tmp_path / "mine"))
    settings.write_text("{")
    with pytest.raises(ValueError, match=r"dit-accel.json"):
        _ = load(tmp_path / "mine").acceleration
