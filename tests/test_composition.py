"""Compiled transformers: assigned ones, and full graphs. `contract/test_beside.py` has the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tiny
import torch
from torch._dynamo.testing import CompileCounter

from dit_accel import EDCW, accelerate
from dit_accel.core.families import SITES
from dit_accel.planning.lookup import profile_key

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


def forward(module: Any) -> None:
    module.forward = torch.compile(module.forward, backend="eager")


def blocks_forward(module: Any) -> None:
    for block in module.blocks:
        forward(block)


def blocks(module: Any) -> None:
    for index, block in enumerate(module.blocks):
        module.blocks[index] = torch.compile(block, backend="eager")


WINDOWS = {site: {"config": EDCW(1e9, first=2), "site": site} for site in SITES}
WAYS = WINDOWS | {"plan": {"speedup": 2.0}}


@pytest.fixture(scope="module")
def fast() -> dict[str, npt.NDArray[np.float32]]:
    found = {}
    for way, given in WAYS.items():
        pipe = tiny.tiny_wan()
        with accelerate(pipe, **given):
            run(pipe)
            found[way] = run(pipe)
    return found


@pytest.mark.parametrize(
    ("way", "how", "before"),
    [
        ("model", forward, False),
        ("attention", blocks, False),
        *(
            pytest.param(way, how, before, marks=pytest.mark.slow)
            for way, how, before in (
                ("attention", forward, True), ("attention", blocks_forward, False),
                ("attention", blocks, True), ("block", forward, True), ("plan", blocks, True),
            )
        ),
    ],
)  # fmt: skip
def test_forwards_and_blocks_that_were_compiled_and_assigned(stock, fast, way, how, before):
    torch._dynamo.reset()  # else a limit of compilations is reached
    pipe = tiny.tiny_wan()
    key = profile_key(pipe)
    if before:
        how(pipe.transformer)
    with accelerate(pipe, **WAYS[way]) as handle:
        run(pipe)
        if not before:
            how(pipe.transformer)
        assert np.array_equal(run(pipe), fast[way])
        assert 0 < handle.report().steps_computed < STEPS and not np.array_equal(fast[way], stock)
    assert np.array_equal(run(pipe), stock)
    assert profile_key(pipe) == key


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
