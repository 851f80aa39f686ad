"""FLOPs from sizes alone, against PyTorch's counter of operations, for every family."""

from __future__ import annotations

import dataclasses
import time

import diffusers
import pytest
import small_denoisers
import tiny
import torch
from calls import call
from flop_counter import counted_flops, forward_arguments
from pipeline_rows import ROWS

from dit_accel import accelerate
from dit_accel.core.families import FAMILIES, family_of
from dit_accel.core.flops import Rows, forward_costs, rows_of
from dit_accel.evaluation import speed
from dit_accel.models.checkpoints import DENOISERS


class Pair(torch.nn.Module):
    """An attention that asks 10 video tokens about 7 text tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k = torch.nn.Linear(4, 8), torch.nn.Linear(6, 8)


def test_worked_example():
    family = dataclasses.replace(FAMILIES["WanTransformer3DModel"], rows=(("to_k", "text"),))
    costs = forward_costs(Pair(), family, Rows(2, 1, 10, 7, 0))
    queries = 2 * 2 * 10 * 4 * 8  # two clips; a multiplication and its addition are 2
    keys = 2 * 2 * 7 * 6 * 8
    # 10 x 7 scores over 8 channels, and as much again for the weighted sum of values
    products = 2 * 2 * (2 * 10 * 7 * 8)
    assert costs.modules == {"to_q": queries, "to_k": keys, "": queries + keys + products}
    assert costs.products == {"": products}


@pytest.mark.parametrize("name", sorted(DENOISERS))
def test_sizes_alone_give_what_the_counter_counts(name):
    case = small_denoisers.trial(name)
    pipe = speed.build(case)
    calls = forward_arguments(pipe.transformer)
    small_denoisers.latents(pipe, case)
    costs = costs_of(pipe, *calls[0])
    counted = counted_flops(pipe.transformer, *calls[0])
    assert {path: costs.modules.get(path, 0) for path in counted} == counted
    blocks = [path for path in counted if path.count(".") == 1 and "blocks." in path]
    assert len(blocks) >= 3 and all(counted[path] for path in blocks), "the control"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "title",
    [
        "LTX2Pipeline",
        "LTX2ImageToVideoPipeline",  # a timestep for each video token, one for all of the audio
        "HunyuanVideo15Pipeline",
        "HunyuanVideo15ImageToVideoPipeline",
        "WanVACEPipeline",
        "WanAnimatePipeline",
    ],
)
def test_sizes_alone_give_it_for_pipelines_that_need_more_than_a_denoiser(title):
    row = next(row for row in ROWS if row.title == title)
    if not row.is_there:
        pytest.skip("this diffusers does not have it")
    if title == "WanAnimatePipeline":  # as its checkpoint: keys of the picture have weights
        row = dataclasses.replace(row, config=row.config | {"added_kv_proj_dim": 24})
    pipe = row.build()
    calls = forward_arguments(pipe.transformer)
    row.run(pipe, **{row.steps[0]: 2})
    costs = costs_of(pipe, *calls[0])
    counted = counted_flops(pipe.transformer, *calls[0])
    if title == "WanAnimatePipeline":  # its face encoder is not counted, nor what reads the face
        of_face = ("motion_encoder", "face_", "pose_patch_embedding")
        counted = {p: n for p, n in counted.items() if p and not p.startswith(of_face)}
    assert {path: costs.modules.get(path, 0) for path in counted} == counted
    assert sum("blocks." in path and counted[path] > 0 for path in counted) > 10, "the control"


def costs_of(pipe, args, kwargs):
    module = pipe.transformer
    return forward_costs(module, family_of(pipe), rows_of(module, args, kwargs))


def test_an_image_that_is_read_and_a_timestep_for_every_token():
    """Wan's image-to-video forward, and Wan 2.2's of 5 billion."""
    config = dict(tiny.tiny_wan().transformer.config) | {
        "image_dim": 20, "added_kv_proj_dim": 24, "in_channels": 36, "_use_default_values": [],
    }  # fmt: skip
    pipe = tiny.tiny_wan()
    pipe.transformer = diffusers.WanTransformer3DModel.from_config(config)
    kwargs = {
        "hidden_states": torch.zeros(2, 36, 3, 4, 4), "timestep": torch.ones(2, 12),
        "encoder_hidden_states": torch.zeros(2, 512, 32),
        "encoder_hidden_states_image": torch.zeros(2, 5, 20),
    }  # fmt: skip
    counted = counted_flops(pipe.transformer, (), kwargs)
    costs = costs_of(pipe, (), kwargs).modules
    assert {path: costs.get(path, 0) for path in counted} == counted
    one = costs_of(pipe, (), kwargs | {"timestep": torch.ones(2)}).modules
    assert one[""] < costs[""]


def test_fused_projections_cost_the_same():
    pipe = tiny.tiny_wan()
    calls = forward_arguments(pipe.transformer)
    call(pipe)
    apart = costs_of(pipe, *calls[0])
    pipe.transformer.fuse_qkv_projections()
    fused = costs_of(pipe, *calls[0])
    assert fused.modules[""] == apart.modules[""] and fused.products == apart.products
    assert fused.modules.keys() != apart.modules.keys()


@pytest.mark.parametrize("name", ["wan2.1-14b", "hunyuan-video"])
def test_a_model_of_true_size_is_counted_in_milliseconds(name):
    row = DENOISERS[name]
    with torch.device("meta"):
        module = getattr(diffusers, row.transformer)(**row.config)
    family = FAMILIES[row.transformer]
    rows, seconds = Rows(1, 1, 32760, 512, 0), []
    for _ in range(3):
        start = time.perf_counter()
        forward_costs(module, family, rows)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.02  # some 3 ms alone on a machine


def test_a_report_takes_milliseconds_and_runs_no_model(monkeypatch):
    pipe = tiny.tiny_wan()
    with accelerate(pipe, speedup=2.0) as handle:
        call(pipe)
        calls = forward_arguments(pipe.transformer)
        monkeypatch.setattr(type(pipe.transformer), "__init__", None)  # no second one either
        start = time.perf_counter()
        first = handle.report()
        assert time.perf_counter() - start < 0.05  # 0.5 ms alone on a machine
        assert first == handle.report() and first.flops_full > 0
    assert not calls
