"""Weights that lie elsewhere, or in another dtype, between calls: every offload and cast."""

from __future__ import annotations

import itertools

import accelerate as hugging_face
import numpy as np
import pytest
import tiny
import torch
from calls import LOOSE

from dit_accel import UniCP, accelerate
from dit_accel.attention.block_sparse import BlockSizes
from dit_accel.attention.pcas import PCAS
from dit_accel.core.families import SITES
from dit_accel.planning.lookup import profile_key

CPU = torch.device("cpu")
STEPS = 8
SLICE = PCAS(
    mode="slice", value_rank=6, rank=6, always=True, blocks=BlockSizes(4, 4, (1, 2, 2)),
    first_dense=0.25,
)  # fmt: skip
WAYS = {
    "plan": {"speedup": 2.0},
    "model": {"config": LOOSE},
    "block": {"config": LOOSE, "site": "block"},
    "attention": {"config": LOOSE, "site": "attention"},
    "slice": {"config": UniCP(pcas=SLICE, shift=None)},
}


def call(pipe):
    given = {"num_inference_steps": STEPS, "output_type": "latent", "height": 64, "width": 64}
    return pipe(**{**tiny.CALL, **given}, generator=torch.Generator().manual_seed(0)).frames


def sequential(pipe, tmp_path):
    """As `enable_sequential_cpu_offload`, which does not run on a CPU: weights are on "meta"."""
    hugging_face.cpu_offload(pipe.transformer, execution_device=CPU)


def disk(pipe, tmp_path):
    hugging_face.disk_offload(pipe.transformer, tmp_path, execution_device=CPU)


def groups(pipe, tmp_path, **how):
    try:
        pipe.transformer.enable_group_offload(onload_device=CPU, offload_device=CPU, **how)
    except AttributeError as error:  # diffusers 0.35 asks for the accelerator's type
        pytest.skip(f"this diffusers offloads groups with an accelerator only: {error}")


def leaves(pipe, tmp_path):
    groups(pipe, tmp_path, offload_type="leaf_level")


def blocks(pipe, tmp_path):
    groups(pipe, tmp_path, offload_type="block_level", num_blocks_per_group=1)


def half(pipe, tmp_path):
    pipe.transformer.enable_layerwise_casting(torch.bfloat16, torch.float32)


def eight(pipe, tmp_path):
    pipe.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)


CASTS, OFFLOADS = (half, eight), (sequential, disk, leaves, blocks)


def expected(way, cast=None):
    """A clip of a second accelerated run, and a stock one, without any offload."""
    pipe = tiny.tiny_wan()
    if cast is not None:
        cast(pipe, None)
    stock = call(pipe)
    with accelerate(pipe, **WAYS[way]):
        call(pipe)
        return call(pipe), stock


@pytest.fixture(scope="module")
def clips():
    return {way: expected(way) for way in WAYS}


def accelerated_run(way, put, order, tmp_path):
    """The second clip, its report, and a clip after removal."""
    pipe = tiny.tiny_wan()
    if order == "before":
        put(pipe, tmp_path)
    handle = accelerate(pipe, **WAYS[way])
    call(pipe)
    if order == "between":
        put(pipe, tmp_path)
        call(pipe)
    clip, report = call(pipe), handle.report()
    handle.remove()
    return clip, report, call(pipe)


TECHNIQUES = {
    "plan": "plan", "slice": "UniCP", **{site: f"windows at {site}" for site in SITES},
}  # fmt: skip
COMPANIONS = {
    **dict.fromkeys((sequential, disk), "sequential offload"),
    **dict.fromkeys((leaves, blocks), "group offload"),
    **dict.fromkeys((half, eight), "layerwise casting"),
}


def cases(puts, quick):
    """All of them, as slow tests but for the quick ones; put on before, or between runs."""
    found = []
    for way, put, order in itertools.product(WAYS, puts, ("between", "before")):
        marks = [pytest.mark.composes(TECHNIQUES[way], COMPANIONS[put])]
        if (way, put, order) not in quick:
            marks.append(pytest.mark.slow)
        found.append(pytest.param(way, put, order, marks=marks))
    return found


QUICK = [
    ("plan", sequential, "before"), ("attention", sequential, "between"),
    ("block", leaves, "between"), ("model", blocks, "between"), ("slice", disk, "between"),
]  # fmt: skip


@pytest.mark.parametrize(("way", "put", "order"), cases(OFFLOADS, QUICK))
def test_offloaded_weights_change_nothing(clips, way, put, order, tmp_path):
    fast, stock = clips[way]
    clip, report, after = accelerated_run(way, put, order, tmp_path)
    assert torch.equal(clip, fast) and not torch.equal(fast, stock)
    assert report.steps_computed < STEPS and report.flops_full > report.flops_spent > 0
    assert torch.equal(after, stock)


@pytest.mark.parametrize(
    ("way", "put", "order"),
    cases(CASTS, [("plan", half, "between"), ("slice", eight, "between")]),
)
def test_weights_that_are_stored_in_fewer_bits(way, put, order, tmp_path):
    fast, stock = expected(way, put)
    clip, report, after = accelerated_run(way, put, order, tmp_path)
    assert torch.equal(clip, fast) and not torch.equal(fast, stock)
    assert report.steps_computed < STEPS
    assert torch.equal(after, stock)


@pytest.mark.parametrize("put", OFFLOADS)
def test_a_profile_is_of_the_weights_wherever_they_are(put, tmp_path):
    pipe = tiny.tiny_wan()
    key = profile_key(pipe)
    put(pipe, tmp_path)
    assert profile_key(pipe) == key
    assert profile_key(tiny.tiny_wan(seed=1)) != key


def test_a_compiled_and_assigned_transformer_has_the_same_profile():
    pipe = tiny.tiny_wan()
    key = profile_key(pipe)
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    assert profile_key(pipe) == key


@pytest.mark.gpu
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("how", ["sequential", "model", "leaf_level", "block_level"])
def test_offloading_to_a_gpu(way, how):
    """Groups are loaded ahead on a stream, in the order of the first forward."""
    whole = tiny.tiny_wan().to("cuda")
    stock = call(whole)
    with accelerate(whole, **WAYS[way]):
        call(whole)
        fast = call(whole)
    pipe = tiny.tiny_wan()
    with accelerate(pipe, **WAYS[way]) as handle:
        if how == "sequential":
            pipe.enable_sequential_cpu_offload()
        elif how == "model":
            pipe.enable_model_cpu_offload()
        else:
            pipe.to("cuda")
            blocks_ = {"num_blocks_per_group": 1} if how == "block_level" else {}
            pipe.transformer.enable_group_offload(
                onload_device=torch.device("cuda"), offload_type=how, use_stream=True, **blocks_
            )
        call(pipe)
        for _ in range(2):
            np.testing.assert_allclose(call(pipe).cpu(), fast.cpu(), atol=1e-4)
            assert handle.report().steps_computed < STEPS
    np.testing.assert_allclose(call(pipe).cpu(), stock.cpu(), atol=1e-4)
