"""Beside what users combine it with: offload, compilation, copies, siblings; every family."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from calls import offload
from techniques import Technique, combinations, is_equal
from tiny_models import TinyModel

from dit_accel import accelerate


def model_offload(pipe: Any) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def group_offload(pipe: Any) -> None:
    for name in ("transformer", "transformer_2"):
        if getattr(pipe, name, None) is not None:
            offload(pipe, name)


def compile_blocks(pipe: Any) -> None:
    _each(pipe, lambda module: module.compile_repeated_blocks(backend="eager"))


def compile_whole(pipe: Any) -> None:
    _each(pipe, lambda module: module.compile(backend="eager"))


def _each(pipe: Any, change: Callable[[Any], None]) -> None:
    for name in ("transformer", "transformer_2"):
        if getattr(pipe, name, None) is not None:
            change(getattr(pipe, name))


def clips(model: TinyModel, pipe: Any, technique: Technique, calls: int = 2) -> list[torch.Tensor]:
    """Of several calls, without the one that is recorded."""
    if technique.records:
        model.run(pipe, **technique.changes)
    return [model.run(pipe, **technique.changes) for _ in range(calls)]


def check(
    model: TinyModel, technique: Technique, stock: torch.Tensor, expected: torch.Tensor,
    change: Callable[[Any], None], *, before: bool,
) -> None:  # fmt: skip
    """The same clip at every call with the change, before or after `accelerate`; then stock."""
    pipe = model.build()
    model.run(pipe, **technique.changes)
    settings = technique.loose(model, pipe)
    if before:
        change(pipe)
    with accelerate(pipe, **settings) as handle:
        if not before:
            change(pipe)
        for clip in clips(model, pipe, technique):
            assert is_equal(clip, expected)
        computed = handle.report().steps_computed
    assert is_equal(model.run(pipe, **technique.changes), stock)
    assert not torch.equal(stock, expected), computed


@pytest.fixture
def expected(stock, model, technique) -> torch.Tensor:
    """The accelerated clip of a pipeline that nobody changed."""
    pipe, _ = stock
    with accelerate(pipe, **technique.loose(model, pipe)):
        return clips(model, pipe, technique, calls=1)[0]


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@combinations("model offload")
def test_model_offload(stock, expected, model, technique, before):
    check(model, technique, stock[1], expected, model_offload, before=before)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@combinations("group offload")
def test_group_offload(stock, expected, model, technique, before):
    check(model, technique, stock[1], expected, group_offload, before=before)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@combinations("regional compile")
def test_compiled_blocks(stock, expected, model, technique, before):
    check(model, technique, stock[1], expected, compile_blocks, before=before)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@combinations("whole compile")
def test_compiled_whole(stock, expected, model, technique, before):
    check(model, technique, stock[1], expected, compile_whole, before=before)


@combinations("deepcopy", "pickle")
def test_a_copy_is_stock_and_can_be_accelerated(stock, expected, model, technique):
    pipe, clip = stock
    settings = technique.loose(model, pipe)
    with accelerate(pipe, **settings):
        assert is_equal(clips(model, pipe, technique)[-1], expected)
        other = copy.deepcopy(pipe)
        module = pickle.loads(pickle.dumps(pipe.transformer))
        assert is_equal(model.run(other, **technique.changes), clip)
        assert is_equal(model.run(pipe, **technique.changes), expected)
    with accelerate(other, **settings):
        assert is_equal(clips(model, other, technique)[-1], expected)
    other.transformer = module
    assert is_equal(model.run(other, **technique.changes), clip)


@combinations("shared parts")
def test_a_sibling_of_the_same_parts_is_stock(stock, expected, model, technique):
    pipe, clip = stock
    sibling = type(pipe)(**pipe.components)
    sibling.set_progress_bar_config(disable=True)
    if getattr(pipe.config, "boundary_ratio", None) is not None:
        sibling.register_to_config(boundary_ratio=pipe.config.boundary_ratio)
    with accelerate(pipe, **technique.loose(model, pipe)):
        assert is_equal(model.run(sibling, **technique.changes), clip)
        assert is_equal(clips(model, pipe, technique)[-1], expected)
        assert is_equal(model.run(sibling, **technique.changes), clip)
        assert is_equal(model.run(pipe, **technique.changes), expected)
