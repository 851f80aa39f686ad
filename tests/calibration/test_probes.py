"""Probes of the start by accelerated runs: what they measure, cost and change."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import tiny
import torch
from pipeline_rows import ROWS

from dit_accel import accelerate
from dit_accel.calibration import calibrate as calibrating
from dit_accel.calibration import refine
from dit_accel.calibration.calibrate import CalibrationRun, calibrate
from dit_accel.calibration.probes import probe, probe_accelerated
from dit_accel.calibration.record import record
from dit_accel.core.generation import ClipSpec
from dit_accel.planning.growth import corrected_gain, may_grow_less
from dit_accel.planning.plan import Extrapolation, Plan
from dit_accel.planning.prior import profile_by_prior

STEPS = 20
CLIPS = [
    ClipSpec(prompt, "blue square", seed, STEPS, 4.0, 16, 16, 5, max_sequence_length=16)
    for seed, prompt in enumerate(("a red circle", "a green square", "a star", "a dot", "x"))
]
FEW = {"speedups": (2.0, 3.4), "minutes": 1000.0}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.tiny_wan()


def reusing(*computed: int) -> Plan:
    """The plan that reuses the latest computed predictions, of both branches."""
    latest = {s: max(c for c in computed if c <= s) for s in range(STEPS) if s not in computed}
    return Plan(STEPS, {s: Extrapolation(({c: 1.0}, {c: 1.0})) for s, c in latest.items()})


# --- what is measured ---


def test_with_every_step_computed_it_is_the_probe_of_an_uncached_run(pipe) -> None:
    recordings = record(pipe, CLIPS[:2])
    sampler = recordings[0].sampler
    whole = Plan(STEPS, {})
    found = probe_accelerated(pipe, CLIPS[:2], None, whole, sampler)
    uncached = [gain for gain, _ in probe(pipe, CLIPS[:2], None, recordings, 1)]
    assert found == pytest.approx(uncached, rel=1e-3)
    assert found[0] != pytest.approx(found[1], rel=1e-3)


def test_an_error_that_the_denoiser_does_not_see_keeps_its_size(pipe, monkeypatch) -> None:
    """Predictions that depend on the step alone, whatever the latents are."""
    sampler = record(pipe, CLIPS[:1])[0].sampler
    stock = pipe.transformer.forward

    def forward(hidden_states: torch.Tensor, timestep: torch.Tensor, **kwargs: Any) -> Any:
        shape = hidden_states.shape
        level = (timestep.float() / 1000).view(-1, *[1] * (len(shape) - 1))
        output = stock(hidden_states=hidden_states, timestep=timestep, **kwargs)
        return (level.expand(shape).clone(), *output[1:])

    monkeypatch.setattr(pipe.transformer, "forward", forward)
    for computed in ((0, 1, 4, 7), (0, 3, 5, 8)):
        found = probe_accelerated(pipe, CLIPS[:2], None, reusing(*computed), sampler)
        assert found == pytest.approx([1.0, 1.0], rel=1e-3)


def test_a_clip_that_is_not_finite_has_no_gain(pipe, monkeypatch) -> None:
    sampler = record(pipe, CLIPS[:1])[0].sampler
    stock = pipe.transformer.forward

    def forward(hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        output = stock(hidden_states=hidden_states, **kwargs)[0].clone()
        output[-1] = math.nan  # of the last clip
        return (output,)

    monkeypatch.setattr(pipe.transformer, "forward", forward)
    found = probe_accelerated(pipe, CLIPS[:3], None, reusing(0, 2, 5), sampler)
    assert len(found) == 2 and all(map(math.isfinite, found))


def test_nothing_is_left_on_the_pipeline() -> None:
    pipe = tiny.tiny_wan()  # other tests put a forward into the shared one
    sampler = record(pipe, CLIPS[:1])[0].sampler
    probe_accelerated(pipe, CLIPS[:1], None, reusing(0, 2, 5), sampler)
    assert "forward" not in vars(pipe.transformer) and "step" not in vars(pipe.scheduler)


# --- the correction ---


def test_worked_example() -> None:
    """A gain of 8, and two clips with a geometric mean of 2 (1 and 4). Two clips have 2 / 4.5 of
    the weight: at the start (1/4)^(4/9), half of the exponent at the place between, nothing from
    the middle on."""
    gain = torch.tensor([8.0, 6.0, 4.0, 2.0], dtype=torch.float64)
    places = torch.tensor([1.0, 0.75, 0.5, 0.1], dtype=torch.float64)
    found = corrected_gain(gain, places, 0, [1.0, 4.0])
    assert found.tolist() == pytest.approx([8 * 0.25 ** (4 / 9), 6 * 0.25 ** (2 / 9), 4.0, 2.0])


def test_before_the_measured_step_the_correction_is_the_same() -> None:
    gain, places = torch.tensor([9.0, 8.0, 4.0]), torch.tensor([1.0, 0.9, 0.5])
    one = 0.5 ** (1 / 3.5)
    found = corrected_gain(gain, places, 1, [4.0]).tolist()
    assert found == pytest.approx([9 * one, 8 * one, 4.0])


def test_a_clip_that_leaves_its_path_does_not_rule() -> None:
    gain, places = torch.tensor([80.0, 4.0]), torch.tensor([1.0, 0.5])
    usual, spoilt = (corrected_gain(gain, places, 0, [2.0, 2.0, 2.0, x]) for x in (2.0, 200.0))
    assert float(spoilt[0] / usual[0]) == pytest.approx(100 ** (1 / 4 * 4 / 6.5))


def test_a_gain_is_not_raised() -> None:
    gain, places = torch.tensor([8.0, 4.0]), torch.tensor([1.0, 0.5])
    assert torch.equal(corrected_gain(gain, places, 0, [9.0, 20.0]), gain)


# --- whether probes are made ---


def test_the_start_of_the_run_decides() -> None:
    """Half of the others' error at one step of the start, the double at the other two: more on
    average. The first step and the steps after the start do not count, whatever they are."""
    usual, places = torch.full((6,), 0.2), torch.tensor([1.0, 0.9, 0.8, 0.76, 0.74, 0.1])
    more = usual * torch.tensor([1e-3, 0.5, 2.0, 2.0, 1e-3, 1e-3])
    assert not may_grow_less(more, usual, places)
    less = usual * torch.tensor([1e3, 0.05, 2.0, 2.0, 1e3, 1e3])
    assert may_grow_less(less, usual, places)
    assert may_grow_less(torch.stack([more, less]), usual, places)  # by the mean of all clips
    assert not may_grow_less(torch.stack([more, more, more, less]), usual, places)


def test_a_run_without_a_start_needs_no_probes() -> None:
    usual = torch.tensor([0.2, 0.1])
    assert not may_grow_less(usual / 100, usual, torch.tensor([1.0, 0.5]))


# --- in a calibration ---


def test_four_clips_are_probed_and_counted(pipe, monkeypatch) -> None:
    monkeypatch.setattr(calibrating, "next_gain_db", lambda windows, plans: 0.0)  # one is enough
    calls = []
    hook = pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    calibration = CalibrationRun(pipe, CLIPS, **FEW)
    profile = calibration.run()
    hook.remove()
    # a clip with plans of 10 and 6 steps, and twice a plan of 5 steps for each of four clips
    assert calibration.cost == pytest.approx(1 + 0.8 + 4 * 2 * 0.25)
    assert len(calls) == pytest.approx(2 * STEPS * calibration.cost)
    prior = profile_by_prior(pipe.scheduler, profile.sampler, 4.0)
    step, measured = calibration.measurement.start_gains
    assert len(measured) == 4
    before = float(prior.error_gain[step])
    ratio = min(math.prod(measured) ** (1 / 4) / before, 1.0)
    assert float(profile.error_gain[step]) == pytest.approx(before * ratio ** (4 / 6.5))
    assert torch.equal(profile.error_gain[-1], prior.error_gain[-1])


def test_clips_of_one_call_are_probed_together_and_no_more_than_four(pipe) -> None:
    calibration = CalibrationRun(pipe, CLIPS, batch=5, **FEW)
    calibration.run()
    assert len(calibration.measurement.start_gains[1]) == 4


def test_without_time_for_probes_and_plans_there_are_no_probes(pipe, monkeypatch) -> None:
    """A run takes 100 of 190 minutes: there is time for the plans, 80 minutes, but not for a probe,
    50, before them."""
    calibration = CalibrationRun(pipe, CLIPS, **FEW | {"minutes": 190.0})
    stock = calibration.checkpoint.get

    def timed(name: str, make: Any) -> Any:
        found = stock(name, make)
        calibration.checkpoint.seconds[name] = 6000.0 if name.startswith("uncached") else 0.0
        return found

    monkeypatch.setattr(calibration.checkpoint, "get", timed)
    profile = calibration.run()
    assert calibration.measurement.start_gains[1] == []
    assert [len(one.psnr_db) for one in profile.candidates] == [1, 1]


def test_a_model_whose_predictions_point_far_from_its_clips_is_not_probed(monkeypatch) -> None:
    """Predictions of noise, new at every step: no clip is near until the end."""
    pipe = tiny.tiny_wan()
    stock, generator = pipe.transformer.forward, torch.Generator().manual_seed(0)

    def forward(hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        output = stock(hidden_states=hidden_states, **kwargs)
        return (torch.randn(output[0].shape, generator=generator) * 5, *output[1:])

    monkeypatch.setattr(pipe.transformer, "forward", forward)
    monkeypatch.setattr(calibrating, "next_gain_db", lambda windows, plans: 0.0)
    calibration = CalibrationRun(pipe, CLIPS, **FEW)
    calibration.run()
    assert calibration.measurement.start_gains[1] == []
    assert calibration.cost == pytest.approx(1.8)


def test_in_a_short_run_no_step_is_near_the_start(pipe) -> None:
    clips = [dataclasses.replace(clip, steps=8) for clip in CLIPS[:2]]
    calibration = CalibrationRun(pipe, clips, speedups=(2.0,), minutes=1000.0)
    profile = calibration.run()
    assert calibration.measurement.start_gains[1] == []
    assert len(profile.candidates) == 1


def test_probes_that_were_asked_for_replace_it(pipe) -> None:
    calibration = CalibrationRun(pipe, CLIPS[:1], **FEW, probes=2)
    calibration.run()
    assert calibration.measurement.start_gains[1] == []


def test_probes_are_not_made_again(pipe, tmp_path, monkeypatch) -> None:
    first = calibrate(pipe, CLIPS[:1], **FEW, work=tmp_path)

    def again(*_: Any) -> None:
        raise AssertionError("a probe is made")

    monkeypatch.setattr("dit_accel.calibration.measurement.probe_accelerated", again)
    second = calibrate(pipe, CLIPS[:1], **FEW, work=tmp_path)
    assert torch.equal(first.error_gain, second.error_gain)


# --- pictures ---


def test_plans_of_a_pipeline_with_pictures_do_not_weigh_the_noise(monkeypatch) -> None:
    """Its denoiser gets the noise with something else, so that a run could not use such plans."""
    row = next(row for row in ROWS if row.title == "WanImageToVideoPipeline")
    if not row.is_there:
        pytest.skip("newer diffusers only")
    pipe, arguments = row.build(), dict(row.arguments)
    guidance = float(arguments.get("guidance_scale", 1.0))
    clip = ClipSpec("", None, 0, STEPS, guidance, arguments["height"], arguments["width"], 5)
    given = {name: arguments[name] for name in arguments if name != "num_inference_steps"}
    monkeypatch.setattr(refine, "_frames_db", lambda *_: 30.0)  # it has no VAE
    profile = calibrate(
        pipe, [clip], speedups=(2.0,), minutes=1000.0, overrides=given | {"output_type": "latent"}
    )
    assert profile.candidates
    assert not any(profile.plan_of(one).weighs_noise for one in profile.candidates)
    with accelerate(pipe, speedup=2, profile=profile, learn=False, force=True) as handle:
        pipe(**arguments | {"num_inference_steps": STEPS, "output_type": "latent"})
        report = handle.report()
    assert report.steps_computed == STEPS // 2
    assert not any("noise" in note for note in report.notes)
