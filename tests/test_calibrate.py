"""Calibration: samplers told by unit vectors, on every family's real pipeline, and what is made of
the probes."""

from __future__ import annotations

import math

import pytest
import torch
from test_speed import trial

from dit_accel import accelerate, speed
from dit_accel.calibrate import NotLinearError, calibrate, probe_steps, record, summed_up
from dit_accel.denoisers import DENOISERS
from dit_accel.planner import Plan, energies, search


def prepared(name: str, **changes):
    """A tiny pipeline, its clip, and its embeddings."""
    run = trial(name, **changes)
    given = speed.embeddings(run.prompt, run.guidance, "cpu", torch.float32)
    return speed.build(run), run.clip, given


@pytest.mark.parametrize("name", DENOISERS)
def test_shares_rebuild_the_final_latents_of_every_sampler(name):
    """UniPC's multistep, Euler with a shift, DDIM on velocities, Euler with a stretched end."""
    pipe, clip, given = prepared(name)
    recording = record(pipe, clip, given)
    assert recording.predictions.shape == (clip.steps, recording.final.numel())
    assert recording.shares.shape == recording.times.shape == (clip.steps,)
    assert "step" not in vars(pipe.scheduler)


def test_shares_of_euler_are_the_differences_of_its_noise_levels():
    pipe, clip, given = prepared("hunyuan-video")
    shares = record(pipe, clip, given).shares
    assert torch.allclose(shares, pipe.scheduler.sigmas.diff().double(), atol=1e-6)


def test_a_sampler_that_is_not_linear_is_refused(monkeypatch):
    pipe, clip, given = prepared("hunyuan-video")
    stock = type(pipe.scheduler).step

    def clipped(self, output, *args, **kwargs):
        return stock(self, output.clamp(-0.5, 0.5), *args, **kwargs)

    monkeypatch.setattr(type(pipe.scheduler), "step", clipped)
    with pytest.raises(NotLinearError, match="FlowMatchEulerDiscreteScheduler is not linear"):
        record(pipe, clip, given)


def test_a_field_foretells_what_one_reused_prediction_does_at_the_last_step():
    """There nothing comes after it, so that the foretold error is exact."""
    pipe, clip, given = prepared("wan2.1-1.3b")
    field = calibrate(pipe, [clip], probes=3, probed=1, overrides=given)
    last = clip.steps - 1
    plan = Plan(clip.steps, {last: {last - 1: 1.0}})
    stock = record(pipe, clip, given).final
    with accelerate(pipe, plan=plan):
        made = pipe(**_arguments(pipe, clip, given)).frames.flatten()
    error = ((made - stock).norm() / stock.norm()) ** 2
    assert energies(plan, field).item() == pytest.approx(error.item(), rel=1e-3)


def test_from_calibration_to_a_planned_run():
    pipe, clip, given = prepared("wan2.1-1.3b")
    told = []
    field = calibrate(
        pipe,
        [clip, clip],
        probes=3,
        probed=1,
        overrides=given,
        told=lambda *news: told.append(news),
    )
    assert told[0] == ("uncached", 0, 2)
    assert told[-1] == ("probes", 2, 3)
    plan, energy = search(field, 4, trials=20)
    assert 0 < energy < math.inf
    with accelerate(pipe, plan=plan) as handle:
        frames = pipe(**_arguments(pipe, clip, given)).frames
        assert handle.report().steps_computed == 4
    assert torch.isfinite(frames).all()


def _arguments(pipe, clip, given):
    from dit_accel.takes import call_arguments

    return call_arguments(pipe, clip) | {"output_type": "latent"} | given


def test_probes_are_summed_up_by_hand():
    """Two clips at step 0 with gains 3 and 4: root of 12.5; 1 at step 4; between them by logarithm.

    Each cosine says e^(-steps left / memory): here 1/e with 8 and with 4 steps left.
    """
    found = [(0, 3.0, math.exp(-1)), (0, 4.0, math.exp(-1)), (4, 1.0, math.exp(-1))]
    gain, memory = summed_up(found, 8)
    assert gain[0] == pytest.approx(math.sqrt(12.5))
    assert gain[2] == pytest.approx(12.5**0.25)
    assert gain[4:].tolist() == pytest.approx([1.0] * 4)
    assert memory == pytest.approx(8.0)


@pytest.mark.parametrize(("total", "probes"), [(50, 8), (4, 3), (6, 2), (10, 20)])
def test_probe_steps(total, probes):
    steps = probe_steps(total, probes)
    assert steps[0] == 1
    assert steps[-1] == total - 1
    assert steps == sorted(set(steps))


def test_bad_input_is_named():
    pipe, clip, given = prepared("wan2.1-1.3b")
    with pytest.raises(ValueError, match="clips have 0 kinds of steps"):
        calibrate(pipe, [])
    with pytest.raises(
        ValueError, match="probes is 1, probed is 3; accepted: at least 2, and 1 to"
    ):
        calibrate(pipe, [clip], probes=1, overrides=given)
