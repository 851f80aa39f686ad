"""A handle beside what users combine it with: compiled transformers, and group offload."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tiny
import torch
from calls import offload
from torch._dynamo.testing import CompileCounter

from dit_accel import accelerate
from dit_accel.caching.windows import EDCW
from dit_accel.core.families import SITES

LOOSE = EDCW(threshold=1e9)  # every window opens: 8 steps, 5 of them computed
STEPS = 8


def composes(*companions: str) -> Any:
    """Marks a test of the windows at every site."""

    def mark(test: Any) -> Any:
        for site in SITES:
            for companion in companions:
                test = pytest.mark.composes(f"windows at {site}", companion)(test)
        return test

    return mark


def run(pipe: Any) -> npt.NDArray[np.float32]:
    call = tiny.CALL | {"num_inference_steps": STEPS}
    frames: npt.NDArray[np.float32] = pipe(
        **call, generator=torch.Generator().manual_seed(0)
    ).frames
    return frames


@pytest.fixture(scope="module")
def stock() -> npt.NDArray[np.float32]:
    return run(tiny.tiny_wan())


@pytest.fixture(scope="module")
def accelerated() -> dict[str, npt.NDArray[np.float32]]:
    clips = {}
    for site in SITES:
        pipe = tiny.tiny_wan()
        with accelerate(pipe, config=LOOSE, site=site):
            clips[site] = run(pipe)
    return clips


@composes("whole compile", "regional compile")
@pytest.mark.parametrize("order", ["compiled first", "accelerated first"])
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "blocks"])
@pytest.mark.parametrize("site", SITES)
def test_a_compiled_transformer_gives_the_same_clip_and_is_restored(
    stock, accelerated, site, whole, order
):
    pipe = tiny.tiny_wan()
    way = "compile" if whole else "compile_repeated_blocks"
    if order == "compiled first":
        getattr(pipe.transformer, way)(backend="eager")
    with accelerate(pipe, config=LOOSE, site=site) as handle:
        if order == "accelerated first":
            getattr(pipe.transformer, way)(backend="eager")
        clip = run(pipe)
        assert handle.report().steps_computed == 5
    assert np.array_equal(clip, accelerated[site])
    assert not np.array_equal(clip, stock)
    assert np.array_equal(run(pipe), stock)


@composes("group offload")
@pytest.mark.parametrize("site", SITES)
def test_group_offload_before_acceleration_changes_nothing(stock, accelerated, site):
    pipe = tiny.tiny_wan()
    offload(pipe)
    with accelerate(pipe, config=LOOSE, site=site) as handle:
        clip = run(pipe)
        report = handle.report()
    assert report.steps_computed == 5
    assert report.flops_kept is not None and report.flops_kept < 1
    assert np.array_equal(clip, accelerated[site])
    assert np.array_equal(run(pipe), stock)


@pytest.mark.parametrize("site", SITES)
def test_group_offload_after_acceleration_changes_nothing(stock, accelerated, site):
    pipe = tiny.tiny_wan()
    with accelerate(pipe, config=LOOSE, site=site):
        offload(pipe)
        assert np.array_equal(run(pipe), accelerated[site])
        assert np.array_equal(run(pipe), accelerated[site])
    assert np.array_equal(run(pipe), stock)


@pytest.mark.composes("plan", "model offload")
@composes("model offload")
@pytest.mark.parametrize("order", ["offloaded first", "accelerated first"])
@pytest.mark.parametrize("site", [*SITES, "output"])
def test_every_call_is_accelerated_under_model_offload(stock, accelerated, site, order):
    """The pipeline takes its hooks off and puts new ones on after each call."""
    pipe = tiny.tiny_wan()
    given = {"speedup": 2.0} if site == "output" else {"config": LOOSE, "site": site}
    if order == "offloaded first":
        pipe.enable_model_cpu_offload(device="cpu")
    with accelerate(pipe, **given) as handle:
        if order == "accelerated first":
            pipe.enable_model_cpu_offload(device="cpu")
        if site == "output":
            run(pipe)  # computed in full, and recorded
        clips = [run(pipe) for _ in range(3)]
        assert handle.report().steps_computed < STEPS
    assert all(np.array_equal(clip, clips[0]) for clip in clips)
    assert not np.array_equal(clips[0], stock)
    assert site == "output" or np.array_equal(clips[0], accelerated[site])
    assert np.array_equal(run(pipe), stock)


@pytest.mark.composes("windows at model", "assigned compile")
def test_a_transformer_that_was_compiled_and_assigned(stock):
    pipe = tiny.tiny_wan()
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    with accelerate(pipe, threshold=0):
        assert np.array_equal(run(pipe), stock)
    assert np.array_equal(run(pipe), stock)


@pytest.mark.composes("plan", "fullgraph")
@pytest.mark.composes("windows at model", "fullgraph", limit="compiled blocks, not the whole")
@pytest.mark.parametrize(
    ("whole", "given"),
    [(True, {"speedup": 2.0}), (False, {"speedup": 2.0}), (False, {"threshold": 0.1})],
    ids=["whole-plan", "blocks-plan", "blocks-windows"],
)
def test_full_graphs_stay_whole_and_are_compiled_once(whole, given):
    """With `fullgraph=True` a graph that breaks is an error."""
    torch._dynamo.reset()
    counter = CompileCounter()
    pipe = tiny.tiny_wan()
    compile_ = pipe.transformer.compile if whole else pipe.transformer.compile_repeated_blocks
    compile_(backend=counter, fullgraph=True)
    run(pipe)
    assert counter.frame_count == 1
    with accelerate(pipe, **given):
        run(pipe)
        run(pipe)
    assert counter.frame_count == 1


@pytest.mark.composes("windows at model", "deepcopy")
@pytest.mark.composes("windows at model", "pickle")
def test_a_copy_of_an_accelerated_pipeline_is_a_stock_one(stock, accelerated):
    pipe = tiny.tiny_wan()
    with accelerate(pipe, config=LOOSE) as handle:
        assert np.array_equal(run(pipe), accelerated["model"])
        other = copy.deepcopy(pipe)
        assert np.array_equal(run(other), stock)
        assert other.transformer.cache_context.__self__ is other.transformer
        assert np.array_equal(run(pipe), accelerated["model"])
        module = pickle.loads(pickle.dumps(pipe.transformer))
        assert handle.report().steps_computed == 5
    with accelerate(other, config=LOOSE):
        assert np.array_equal(run(other), accelerated["model"])
    other.transformer = module
    assert np.array_equal(run(other), stock)
