"""Beside what users combine it with: offload, compilation, copies; on every family and technique.

What was there before `accelerate` is tried by default, what comes after it by the slow tests.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import lora
import pytest
import torch
from accelerate import cpu_offload
from calls import offload
from techniques import ENGINES, KINDS, ONE_OF_A_KIND, combinations, is_equal
from tiny_models import MODELS

from dit_accel import accelerate
from dit_accel.core.families import family_of

Change = Callable[[Any], None]


def model_offload(pipe: Any) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def group_offload(pipe: Any) -> None:
    for name in transformers(pipe):
        offload(pipe, name)


def regional_compile(pipe: Any) -> None:
    for name in transformers(pipe):
        module = getattr(pipe, name)
        if getattr(module, "_repeated_blocks", None):
            module.compile_repeated_blocks(backend="eager")
            continue
        # What it does, where diffusers has no list of blocks.
        for group in family_of(pipe).blocks or ("transformer_blocks",):
            for block in getattr(module, group):
                block.compile(backend="eager")


def whole_compile(pipe: Any) -> None:
    for name in transformers(pipe):
        getattr(pipe, name).compile(backend="eager")


def sequential_offload(pipe: Any) -> None:
    """As diffusers' own, which does not run on a CPU: weights are on "meta"."""
    for name in transformers(pipe):
        cpu_offload(getattr(pipe, name), execution_device=torch.device("cpu"))


def assigned_compile(pipe: Any) -> None:
    for name in transformers(pipe):
        setattr(pipe, name, torch.compile(getattr(pipe, name), backend="eager"))


def fullgraph(pipe: Any) -> None:
    for name in transformers(pipe):
        getattr(pipe, name).compile(backend="eager", fullgraph=True)


def layerwise_casting(pipe: Any) -> None:
    for name in transformers(pipe):
        getattr(pipe, name).enable_layerwise_casting(torch.bfloat16, torch.float32)


def LoRA(pipe: Any) -> None:
    pytest.importorskip("peft", reason="peft is not installed: pip install peft")
    lora.load(pipe)


def transformers(pipe: Any) -> list[str]:
    names = ("transformer", "transformer_2")
    return [name for name in names if getattr(pipe, name, None) is not None]


OFFLOADS = (model_offload, group_offload)
COMPILES = (regional_compile, whole_compile)


@combinations(beside=OFFLOADS, others=ENGINES)
def test_every_call_is_accelerated_where_it_was_there_before(workbench, model, technique, change):
    beside(workbench, model, technique, change, before=True)


@pytest.mark.slow
@combinations(beside=OFFLOADS, only=KINDS, others=ENGINES, variants=False)
def test_every_call_is_accelerated_where_it_comes_later(workbench, model, technique, change):
    beside(workbench, model, technique, change, before=False)


# Compilation is slow, and these are hooked as their kin are: Wan, and LTX-Video. A scene and UniCP
# compile for seconds, and their code is the same on every family, but for UniCP's joint attention.
COMPILED = tuple(name for name in MODELS if name not in ("wan-vace", "wan-animate", "ltx-2"))
# What is compiled later meets the hooks that the test before it compiles: one of each kind is left.
COMPILED_LATER = ("wan", "hunyuan-video", "MochiPipeline")
QUICK = ("windows-block", "static")


@pytest.fixture(scope="module")
def new_graphs() -> None:
    """Graphs of other files count against the limit of recompilations."""
    torch._dynamo.reset()


@pytest.mark.slow
@combinations(beside=COMPILES, only=ONE_OF_A_KIND, others=QUICK, variants=False, models=COMPILED)
def test_a_compiled_model(new_graphs, workbench, model, technique, change):
    beside(workbench, model, technique, change, before=True)


@pytest.mark.slow
@combinations(beside=COMPILES, only=("unicp",), models=("hunyuan-video",))
def test_a_compiled_model_with_joint_attention(new_graphs, workbench, model, technique, change):
    beside(workbench, model, technique, change, before=True)


@pytest.mark.slow
@combinations(
    beside=COMPILES, only=ONE_OF_A_KIND, others=QUICK, variants=False, models=COMPILED_LATER
)
def test_a_model_that_is_compiled_later(new_graphs, workbench, model, technique, change):
    beside(workbench, model, technique, change, before=False)


# What is tried on one family alone, as it meets the hooks that the others' techniques have too.
ALONE = ("wan",)
ASSIGNED = ("static", "packed", "windows-block", "unicp")
PLANS_AND_SCENE = ("static", "packed", "reposition")  # windows and UniCP have tests of their own


@combinations(beside=(sequential_offload,), only=PLANS_AND_SCENE, models=ALONE)
def test_weights_that_wait_layer_by_layer(workbench, model, technique, change):
    beside(workbench, model, technique, change, before=True)


@pytest.mark.slow
@combinations(beside=(assigned_compile,), only=ASSIGNED, models=ALONE)
def test_a_model_that_is_compiled_and_assigned(new_graphs, workbench, model, technique, change):
    beside(workbench, model, technique, change, before=True)


@pytest.mark.slow
@combinations(beside=(fullgraph,), only=("static", "packed"), models=ALONE)
def test_a_graph_that_must_not_break(new_graphs, workbench, model, technique, change):
    beside(workbench, model, technique, change, before=True)


@combinations(beside=(layerwise_casting, LoRA), only=PLANS_AND_SCENE, models=ALONE)
def test_what_makes_another_model_of_it(model, technique, change):
    pipe = model.build()
    change(pipe)
    stock = model.run(pipe, **technique.changes)
    with accelerate(pipe, **technique.loose(model, pipe)):
        fast = model.run(pipe, **technique.changes)
        assert is_equal(model.run(pipe, **technique.changes), fast)
    assert not torch.equal(fast, stock)
    assert is_equal(model.run(pipe, **technique.changes), stock)


@combinations("replaced parts", only=PLANS_AND_SCENE, models=ALONE)
def test_another_transformer_is_accelerated_in_its_place(workbench, stock, model, technique):
    pipe, clip = stock
    expected, first = workbench.accelerated(model, technique), pipe.transformer
    with accelerate(pipe, **technique.loose(model, pipe)):
        model.run(pipe, **technique.changes)
        pipe.transformer = copy.deepcopy(first)
        assert is_equal(model.run(pipe, **technique.changes), expected)
    assert is_equal(model.run(pipe, **technique.changes), clip)
    pipe.transformer = first


def beside(workbench: Any, model: Any, technique: Any, change: Change, *, before: bool) -> None:
    """The same clip at every call with the change, before or after `accelerate`; then stock."""
    stock, expected = workbench.stock(model, technique), workbench.accelerated(model, technique)
    pipe = workbench.pipe(model, change) if before else model.build()
    # Once for the techniques with the same call: each of them ends with such a run.
    assert not before or is_equal(workbench.stock(model, technique, change), stock)
    with accelerate(pipe, **technique.loose(model, workbench.pipe(model))):
        if not before:
            change(pipe)
        for _ in range(1 + technique.recorded(model)):
            model.run(pipe, **technique.changes)
        assert is_equal(model.run(pipe, **technique.changes), expected)
    assert is_equal(model.run(pipe, **technique.changes), stock)
    assert not torch.equal(expected, stock), "the control"


# An engine is copied or shared as it is, whatever it was made from: one of each kind is left.
@combinations("deepcopy", "pickle", only=KINDS, others=ENGINES)
def test_a_copy_is_stock_and_can_be_accelerated(workbench, stock, model, technique):
    pipe, clip = stock
    expected, settings = workbench.accelerated(model, technique), technique.loose(model, pipe)
    with accelerate(pipe, **settings):
        for _ in range(1 + technique.recorded(model)):
            model.run(pipe, **technique.changes)
        other = copy.deepcopy(pipe)
        module = pickle.loads(pickle.dumps(pipe.transformer))
        assert is_equal(model.run(other, **technique.changes), clip)
        assert is_equal(model.run(pipe, **technique.changes), expected)
    with accelerate(other, **settings):
        for _ in range(1 + technique.recorded(model)):
            fast = model.run(other, **technique.changes)
        assert is_equal(fast, expected)
    other.transformer = module
    assert is_equal(model.run(other, **technique.changes), clip)


@combinations("shared parts", only=KINDS, others=ENGINES)
def test_a_sibling_of_the_same_parts_is_stock(workbench, stock, model, technique):
    pipe, clip = stock
    expected = workbench.accelerated(model, technique)
    sibling = type(pipe)(**pipe.components)
    sibling.set_progress_bar_config(disable=True)
    if getattr(pipe.config, "boundary_ratio", None) is not None:
        sibling.register_to_config(boundary_ratio=pipe.config.boundary_ratio)
    with accelerate(pipe, **technique.loose(model, pipe)):
        assert is_equal(model.run(sibling, **technique.changes), clip)
        for _ in range(1 + technique.recorded(model)):
            fast = model.run(pipe, **technique.changes)
        assert is_equal(fast, expected)
        assert is_equal(model.run(sibling, **technique.changes), clip)
        assert is_equal(model.run(pipe, **technique.changes), fast)
