"""LoRAs that come, change and go while a pipeline is accelerated. Needs peft."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import tiny
from calls import LOOSE, STEPS, call
from lora import load

from dit_accel import UniCP, accelerate
from dit_accel.attention.pcas import PCAS

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None, reason="peft is not installed: pip install peft"
)

WAYS = {
    "model": {"config": LOOSE},
    "block": {"config": LOOSE, "site": "block"},
    "attention": {"config": LOOSE, "site": "attention"},
}
CHANGED = "The weights changed since the last run."


@pytest.mark.parametrize("order", ["before", "between"])
@pytest.mark.parametrize(
    "way",
    [pytest.param(way, marks=pytest.mark.composes(f"windows at {way}", "LoRA")) for way in WAYS],
)
def test_a_cache_with_a_lora(way, order):
    other, pipe = tiny.tiny_wan(), tiny.tiny_wan()
    load(other)
    stock = call(other)
    with accelerate(other, **WAYS[way]):
        fast = call(other)
    if order == "before":
        load(pipe)
    handle = accelerate(pipe, **WAYS[way])
    call(pipe)
    if order == "between":
        load(pipe)
    assert np.array_equal(call(pipe), fast) and not np.array_equal(fast, stock)
    handle.remove()
    assert np.array_equal(call(pipe), stock)


@pytest.mark.usefixtures("without_prior")
@pytest.mark.composes("plan", "LoRA")
@pytest.mark.usefixtures("without_prior")
def test_a_plan_notices_every_change_of_a_lora():
    pipe = tiny.tiny_wan()
    transformer = pipe.transformer
    changes = {
        "loaded": lambda: load(pipe),
        "scaled": lambda: transformer.set_adapters(["one"], weights=[0.5]),
        "disabled": transformer.disable_adapters,
        "fused": lambda: (transformer.enable_adapters(), transformer.fuse_lora()),
        "unloaded": transformer.unload_lora,
    }
    with accelerate(pipe, speedup=2.0) as handle:
        call(pipe)
        call(pipe)
        without = handle.report().flops_full
        for what, change in changes.items():
            change()
            call(pipe)
            assert handle.report().notes[0] == CHANGED, what
            assert handle.report().steps_computed == STEPS, what
            assert (handle.report().flops_full > without) == (what != "unloaded"), what
            call(pipe)
            assert handle.report().steps_computed < STEPS, what


@pytest.mark.usefixtures("without_prior")
def test_the_scale_of_a_call_is_noticed():
    pipe = tiny.tiny_wan()
    load(pipe)
    with accelerate(pipe, speedup=2.0) as handle:
        found = []
        for scale in (None, None, 0.5, 0.5, 1.0):
            call(pipe, attention_kwargs=None if scale is None else {"scale": scale})
            found.append(handle.report().steps_computed < STEPS)
    assert found == [False, True, False, True, True]


@pytest.mark.composes("UniCP", "LoRA", limit="values are not sliced where a projection has one")
def test_values_are_not_sliced_past_a_lora():
    """Folded projections would leave the LoRA out, without a word."""
    slice_ = UniCP(pcas=PCAS(mode="slice", rank=6, value_rank=6, always=True), shift=None)
    pipe = tiny.tiny_wan()
    with accelerate(pipe, slice_) as handle:
        load(pipe)
        call(pipe, height=64, width=64)
        (note,) = handle.report().notes
        assert "values are sliced only where projections are plain linear layers" in note
    with pytest.raises(ValueError, match="slice'; accepted only where projections are plain lin"):
        accelerate(pipe, slice_)
