"""Compiled transformers: assigned ones, and full graphs. `contract/test_beside.py` has the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tiny
import torch
from torch._dynamo.testing import CompileCounter

from dit_accel import accelerate

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
