"""A handle beside what users combine it with: compiled transformers, and group offload."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tiny
import torch
from calls import offload

from dit_accel import accelerate
from dit_accel.caching.windows import EDCW
from dit_accel.core.families import SITES

LOOSE = EDCW(threshold=1e9)  # every window opens: 8 steps, 5 of them computed
STEPS = 8


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


@pytest.mark.parametrize("order", ["compiled first", "accelerated first"])
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "blocks"])
@pytest.mark.parametrize("site", SITES)
def test_a_compiled_transformer_gives_the_same_clip_and_is_restored(
    stock, accelerated, site, whole, order
):
    pipe = tiny.tiny_wan()
    compile_ = pipe.transformer.compile if whole else pipe.transformer.compile_repeated_blocks
    if order == "compiled first":
        compile_(backend="eager")
    with accelerate(pipe, config=LOOSE, site=site) as handle:
        if order == "accelerated first":
            compile_(backend="eager")
        clip = run(pipe)
        assert handle.report().steps_computed == 5
    assert np.array_equal(clip, accelerated[site])
    assert not np.array_equal(clip, stock)
    assert np.array_equal(run(pipe), stock)


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


def test_group_offload_after_acceleration_is_named_when_the_handle_is_removed(accelerated):
    pipe = tiny.tiny_wan()
    handle = accelerate(pipe, config=LOOSE)
    offload(pipe)
    assert np.array_equal(run(pipe), accelerated["model"])
    with pytest.raises(RuntimeError, match="wrapped again after accelerate"):
        handle.remove()
    assert np.array_equal(run(pipe), accelerated["model"])  # nothing was half undone
