"""Rivals that calibrate, on every family: its noise schedule, its guidance, its latents."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import small_denoisers
import torch
from calibrations import measured_once

from dit_accel.core.generation import call_arguments
from dit_accel.evaluation import speed
from dit_accel.evaluation.methods import METHODS, MethodContext, denoiser, runs, trained
from dit_accel.evaluation.methods.denoiser import GuidedDenoiser
from dit_accel.evaluation.methods.trained import Training

SHORT = Training(clips=2, held_out=1, batch=1, iterations=2, every=2)


@pytest.fixture(params=["hunyuan-video", "cogvideox-2b", "ltx-video"])
def family(request: Any, monkeypatch: Any) -> tuple[Any, MethodContext]:
    """A tiny denoiser without a text encoder, and two clips to calibrate on."""
    case = small_denoisers.trial(request.param)
    pipe = speed.build(case)
    given = speed.embeddings(case.prompt, case.guidance, "cpu", torch.float32)

    def arguments(pipe: Any, clips: Any) -> dict[str, Any]:
        assert len(clips) == 1
        return call_arguments(pipe, clips[0]) | given

    for module in (runs, denoiser):
        monkeypatch.setattr(module, "batch_arguments", arguments)
    clips = tuple(dataclasses.replace(case.clip, seed=seed) for seed in (1, 2))
    return pipe, MethodContext(clips[0], measured_once(), calibration_clips=clips)


def test_trajectories_and_the_guided_denoiser_are_those_of_the_run(family):
    pipe, context = family
    recorded = runs.trajectories(pipe, context, 2)
    guided = GuidedDenoiser(pipe, context.calibration_clips)
    shape = guided.noise.shape[1:]
    for clip, run in enumerate(recorded):
        assert torch.equal(guided.noise[clip].flatten(), run.states[0])
        for step in (0, 3):
            with torch.no_grad():
                found = guided(run.states[step].view(1, *shape), run.nodes.labels[[step]].float(),
                               torch.tensor([clip]))  # fmt: skip
            wanted = run.predictions[step]
            assert float((found.flatten() - wanted).norm() / wanted.norm()) < 1e-4
    if type(pipe).__name__ != "LTXPipeline":  # which unpacks its latents
        final = runs.final_latents(pipe, context.calibration_clips[1:], 1)[0]
        assert recorded[1].states[-1] == pytest.approx(final, abs=1e-4)


@pytest.mark.parametrize("name", ["gits/ab", "oss/unipc", "dpcache", "dyweight"])
def test_rows_run_on_every_family(family, name, monkeypatch):
    monkeypatch.setattr(trained, "Training", lambda: SHORT)
    pipe, context = family
    with METHODS[name].apply(pipe, 3, context) as handle:
        made = runs.final_latents(pipe, context.calibration_clips[:1], 1, handle.overrides)
    assert made.isfinite().all()
    assert (handle.calibration_runs or 0) > 0
