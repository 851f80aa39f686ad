"""Latents that are not finite are noted, whatever accelerates."""

import math

import pytest
import tiny
import torch
from calls import call

from dit_accel import accelerate

MODES = {
    "uncached": {"threshold": 0.0},
    "model": {"threshold": 1e9},
    "attention": {"threshold": 1e9, "site": "attention"},
    "unicp-paper": {"accel": "unicp-paper"},
    "speedup": {"speedup": 2.0},
    "static": {"speedup": 2.0, "static": True},
    "no guard": {"speedup": 2.0, "guard": False},
}


def broken(step, value):
    def callback(pipe, at, timestep, tensors):
        if at == step:
            tensors["latents"][0, 0, 0, 0, 0] = value
        return tensors

    return callback


@pytest.fixture(scope="module")
def pipe():
    return tiny.tiny_wan()


@pytest.mark.parametrize("settings", MODES.values(), ids=MODES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_latents_that_are_not_finite_are_noted(pipe, settings, value):
    with accelerate(pipe, **settings) as handle:
        call(pipe, output_type="latent")
        clean = handle.report()
        assert not any("finite" in note for note in clean.notes)
        clip = call(pipe, output_type="latent", callback_on_step_end=broken(3, value))
        report = handle.report()
        assert not torch.isfinite(clip).all()
        assert report.notes[-1] == (
            "The latents were not finite from step 4 on: the clip is broken."
        )
        assert handle.report().notes == report.notes
        call(pipe, output_type="latent")
        assert not any("finite" in note for note in handle.report().notes)
    assert report.host_syncs <= 11, "one a step at most"


def test_a_last_prediction_that_is_not_finite_is_noted(pipe):
    def break_last(module, args, output):
        calls.append(1)
        return (output[0] * math.nan,) if len(calls) == 23 else output

    calls = []
    hook = pipe.transformer.register_forward_hook(break_last)
    try:
        with accelerate(pipe, threshold=0.0) as handle:
            call(pipe, output_type="latent")
            (note,) = handle.report().notes
    finally:
        hook.remove()
    assert note == "The last step's prediction was not finite: the clip is broken."
