"""Probes whose first steps are replayed: the same numbers, at the cost of the steps that follow."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from small_denoisers import trial

from dit_accel.calibration import probes
from dit_accel.calibration.probes import probe
from dit_accel.calibration.record import record
from dit_accel.calibration.replay import replayed
from dit_accel.core.generation import ClipSpec, call_arguments
from dit_accel.evaluation import speed


def prepared(name: str) -> Any:
    run = trial(name)
    given = speed.embeddings(run.prompt, run.guidance, "cpu", torch.float32)
    return speed.build(run), run.clip, given | {"output_type": "latent"}


class Calls:
    """Counts the forwards of a pipeline's denoiser."""

    def __init__(self, pipe: Any) -> None:
        self.number = 0
        pipe.transformer.register_forward_pre_hook(self)

    def __call__(self, *_: Any) -> None:
        self.number += 1


def test_worked_example() -> None:
    """Steps 1 to 3 of 6 are replayed from the stock run: the latents are the same, and steps 0, 4
    and 5 are computed, each for two branches."""
    pipe = tiny.tiny_wan()
    clip = ClipSpec("a red circle", "", 3, 6, 4.0, 16, 16, 5, max_sequence_length=16)
    (stock,) = record(pipe, [clip])
    calls = Calls(pipe)
    with replayed(pipe, lambda step: stock.guided(step)[None], 3) as replay:
        latents = pipe(**call_arguments(pipe, clip) | {"output_type": "latent"}).frames
    assert torch.allclose(latents.flatten(), stock.final, atol=1e-4)
    assert calls.number == 2 * 3 and replay.computed == {0, 4, 5}
    assert "forward" not in vars(pipe.transformer)


@pytest.mark.parametrize("name", ["wan2.1-1.3b", "cogvideox-2b", "ltx-video", "hunyuan-video"])
def test_a_probe_is_the_same_as_one_that_computes_all(name: str, monkeypatch) -> None:
    """Branches in forwards of their own, in one batch, or none."""
    pipe, clip, given = prepared(name)
    runs = record(pipe, [clip], given)
    step, calls = clip.steps // 2, Calls(pipe)
    ((gain, cosine),) = probe(pipe, [clip], given, runs, step)
    branches = 2 if name.startswith("wan") else 1
    assert calls.number == branches * (clip.steps - step)
    monkeypatch.setattr(probes, "LINEAR", -1.0)  # as if the pipeline changed what is replayed
    ((whole_gain, whole_cosine),) = probe(pipe, [clip], given, runs, step)
    assert (gain, cosine) == pytest.approx((whole_gain, whole_cosine), rel=1e-3)
    assert calls.number == branches * (2 * (clip.steps - step) + clip.steps - 1)
