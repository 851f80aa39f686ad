"""The measurement of memory: which weights it finds in which stage, and that it frees them."""

from __future__ import annotations

import weakref
from typing import Any

import accelerate.hooks
import check_memory
import pytest
import torch

from dit_accel.core.generation import ClipSpec
from dit_accel.models import loading, setup
from dit_accel.models.folder import ModelLoadError

CLIP = ClipSpec("a red circle", "", 0, 1, 4.0, 32, 32, 5, None, 16)


@pytest.mark.parametrize("way", ["none", "model", "group"])
def test_marks_begin_behind_offloading_and_no_weights_stay(way: str, monkeypatch: Any):
    seen: list[str] = []
    weights: list[Any] = []
    load, moved = setup.load, accelerate.hooks.CpuOffload.pre_forward

    def loaded(*args: Any, **kwargs: Any) -> Any:
        pipe = load(*args, **kwargs)
        parts = (pipe.text_encoder, pipe.transformer, pipe.vae)
        weights.extend(weakref.ref(next(part.parameters())) for part in parts)
        return pipe

    def move(self: Any, module: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(type(module).__name__)
        return moved(self, module, *args, **kwargs)

    monkeypatch.setattr(setup, "load", loaded)
    monkeypatch.setattr(accelerate.hooks.CpuOffload, "pre_forward", move)
    monkeypatch.setattr(check_memory, "reset_peak_memory", lambda device: seen.append("begin"))
    model, chosen = loading.resolve_model(None), setup.Setup(offload=way)
    try:
        peaks = check_memory.measured(model, chosen, torch.device("cpu"), "float32", CLIP)
    except ModelLoadError as error:
        if way != "group":
            raise
        pytest.skip(f"this diffusers offloads groups with an accelerator only: {error}")
    assert peaks.keys() == {"text", "denoise", "decode"} and min(peaks.values()) > 0
    assert seen.count("begin") == 5  # two prompts, two branches, one clip
    if way == "model":
        assert seen[1::2] == ["begin"] * 5 and "begin" not in seen[::2]
    assert len(weights) == 3 and [one() for one in weights] == [None] * 3
