"""Calibration in minutes: what it costs, what it leaves out, and how it goes on."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import tiny
import torch
from diffusers import UniPCMultistepScheduler

from dit_accel.calibration import calibrate as calibrating
from dit_accel.calibration import minutes as spending
from dit_accel.calibration.calibrate import CalibrationRun, calibrate
from dit_accel.calibration.fit import RidgeMoments
from dit_accel.calibration.minutes import (
    Budget,
    Estimate,
    TooFewMinutesError,
    window_gain_db,
)
from dit_accel.cli.calibrate import _say_estimate
from dit_accel.core.generation import ClipSpec
from dit_accel.planning import transfer
from dit_accel.planning.prediction import QualityDistribution
from dit_accel.planning.prior import profile_by_prior
from dit_accel.planning.search import search

STEPS = 10
CLIPS = [
    ClipSpec(prompt, "blue square", seed, STEPS, 4.0, 16, 16, 5, max_sequence_length=16)
    for seed, prompt in enumerate(("a red circle moving right", "a green square", "a star", "x"))
]
LONG = {"speedups": (2.0, 3.4), "probes": 2, "probed": 1, "minutes": 1000.0}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.tiny_wan()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No clip gains too little."""
    monkeypatch.setattr(calibrating, "ENOUGH_DB", -math.inf)


def test_worked_example() -> None:
    """A step of 0.6 s, 50 steps: a run takes half a minute, so that 10 minutes are 20 runs. Probes
    cost 4, a clip with its plans 2: 8 clips. Of 60 s, 20 and 15 are spent: there is time for
    another run of 20 s, and not for the plans of 15 s after it."""
    estimate = Estimate(10.0, 0.6, 50, 1, clip_runs=2.0, first_runs=4.0)
    assert (estimate.run_seconds, estimate.runs, estimate.clips) == (30.0, 20.0, 8)
    # Probes of the start cost 3 more: (20 - 4 - 3) / 2 clips. Of 7 runs, probes take only what the
    # first clip leaves.
    started = dataclasses.replace(estimate, start_runs=3.0)
    assert (started.probe_runs, started.clips, started.most_clips) == (7.0, 6, 8)
    short = dataclasses.replace(started, minutes=3.5)
    assert (short.runs, short.probe_runs, short.clips) == (7.0, 5.0, 1)
    together = dataclasses.replace(estimate, step_seconds=1.2, batch=4)  # four clips in one call
    assert together.runs == 40.0
    budget = Budget(1.0, {"uncached-0": 20.0, "candidates-0": 15.0})
    assert budget.left == 25.0
    assert budget.fits("uncached") and budget.fits("candidates") and budget.fits("probe")
    assert not budget.fits("uncached", "candidates")


# --- what another clip gains ---


def draw(prompts: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Six features whose right weights differ by prompt, and noise."""
    features = torch.randn(6, prompts, 200, generator=generator)
    weights = 1 + 0.5 * torch.randn(prompts, 6, generator=generator)
    noise = torch.randn(prompts, 200, generator=generator)
    return features, torch.einsum("pf,fpn->pn", weights, features) + noise


def error(window: RidgeMoments, features: torch.Tensor, wanted: torch.Tensor) -> float:
    found = spending._fitted(sum(window.matrices.values()), sum(window.vectors.values()))
    left = wanted - torch.einsum("f,fpn->pn", found.float(), features)
    return float((left.square().mean(1) / wanted.square().mean(1).sqrt()).mean())


def test_the_gain_of_another_clip_is_what_it_is_on_many_new_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    new = draw(200, generator)
    for number in (2, 4):
        predicted, real = [], []
        for _ in range(80):
            features, wanted = draw(number + 1, generator)
            few, more = (
                RidgeMoments(torch.zeros(6), torch.eye(6)),
                RidgeMoments(torch.zeros(6), torch.eye(6)),
            )
            few.add(range(number), features[:, :number], wanted[:number], torch.ones(number))
            more.add(range(number + 1), features, wanted, torch.ones(number + 1))
            predicted.append(window_gain_db(few))
            real.append(10 * math.log10(error(few, *new) / error(more, *new)))
        mean = sum(real) / len(real)
        assert mean > 0.03 and sum(predicted) / len(predicted) == pytest.approx(mean, rel=0.4)


def test_one_clip_does_not_say_what_another_gains() -> None:
    window = RidgeMoments(torch.zeros(6), torch.eye(6))
    features, wanted = draw(1, torch.Generator().manual_seed(0))
    window.add([0], features, wanted, torch.ones(1))
    assert window_gain_db(window) == math.inf


def test_the_bound_narrows_with_every_clip() -> None:
    """Squares of 10 about the mean of four, and 20 * 6² of other models, over 23: a deviation of
    5.63 dB. z = 1.645 + 1.282 sqrt(1/4 + z² / (2 * 23)) is 2.434, with five clips 2.366:
    5.63 (2.434 - 2.366) = 0.38."""
    assert 1.645 + 1.282 * math.sqrt(1 / 4 + 2.434**2 / 46) == pytest.approx(2.434, abs=1e-3)
    four = QualityDistribution(5, (38.0, 39.0, 41.0, 42.0))
    assert four.next_gain_db == pytest.approx(0.38, abs=0.01)
    edge = four.mean - 2.434 * four.deviation
    assert four.guaranteed_share(edge) == pytest.approx(0.95, abs=1e-3)
    twelve = QualityDistribution(5, (40.0,) * 12)
    assert 0 < twelve.next_gain_db < 0.1


# --- runs ---


def test_what_it_costs_is_what_the_denoiser_computes(pipe, patient) -> None:
    """Two branches a step, each a forward."""
    calls = []
    hook = pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    calibration = CalibrationRun(pipe, CLIPS[:2], **LONG)
    profile = calibration.run()
    hook.remove()
    assert len(calls) == pytest.approx(2 * STEPS * calibration.cost)
    # two clips, probes of 9 and 1 steps, and twice plans of 5 and 3 steps
    assert calibration.cost == pytest.approx(2 + 1.0 + 2 * 0.8)
    assert profile.metadata["cost_runs"] == pytest.approx(4.6)
    assert [len(one.psnr_db) for one in profile.candidates] == [2, 2]
    assert calibration.ended == "all clips were made"


def test_without_probes_errors_grow_as_those_of_other_models(pipe) -> None:
    """Among the inner products, other models count as one clip."""
    settings = {name: value for name, value in LONG.items() if name != "probes"}
    calibration = CalibrationRun(pipe, CLIPS[:1], **settings | {"speedups": ()})
    profile = calibration.run()
    prior = profile_by_prior(pipe.scheduler, profile.sampler, 4.0)
    assert torch.equal(profile.error_gain, prior.error_gain)
    assert profile.error_memory == prior.error_memory
    own = calibration.measurement.recorded(0)[0].gram
    assert torch.allclose(profile.gram[0], (prior.gram[0] + own) / 2)
    assert profile.metadata["cost_runs"] == 1.0 and profile.metadata["probes"] == 0


@pytest.mark.parametrize("least", [-math.inf, math.inf])
def test_steps_are_good_for_the_clip_and_other_models_or_those_of_others(
    pipe, monkeypatch, least
) -> None:
    monkeypatch.setattr(transfer, "LEARNT_DB", least)
    settings = {name: value for name, value in LONG.items() if name != "probes"}
    calibration = CalibrationRun(pipe, CLIPS[:1], **settings | {"speedups": (2.0,)})
    found = calibration.run()
    own, (candidate,) = calibration.measurement.error_model(), found.candidates
    others = profile_by_prior(pipe.scheduler, found.sampler, 4.0).error_model
    both = search(own, STEPS // 2, beside=others)[0].computed
    usual = search(others, STEPS // 2)[0].computed
    assert candidate.computed == (both if least < 0 else usual) and both != usual


def test_it_stops_where_another_clip_gains_little(pipe, monkeypatch) -> None:
    monkeypatch.setattr(calibrating, "next_gain_db", lambda windows, plans: 0.2)
    calibration = CalibrationRun(pipe, CLIPS, **LONG)
    profile = calibration.run()
    assert calibration.ended == "another clip would raise the guaranteed quality by 0.2 dB only"
    assert [len(one.psnr_db) for one in profile.candidates] == [1, 1]


def test_it_stops_when_the_minutes_are_over(pipe, monkeypatch, patient) -> None:
    """Run, sampler, probes and search take 249 of 1000 minutes each: no plan fits after them."""
    calibration = CalibrationRun(pipe, CLIPS, **LONG)
    stock = calibration.checkpoint.get

    def slow(name: str, make: Any) -> Any:
        found = stock(name, make)
        calibration.checkpoint.seconds[name] = 60 * 249.0
        return found

    monkeypatch.setattr(calibration.checkpoint, "get", slow)
    profile = calibration.run()
    assert calibration.ended == "the minutes are used up"
    assert profile.metadata["clips"] == 1 and profile.candidates == ()


def test_a_multistep_sampler_with_what_is_known_of_other_models() -> None:
    """Its scheduler has run by then, and has predictions of the last steps in it."""
    pipe = tiny.tiny_wan()
    pipe.scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    profile = calibrate(pipe, CLIPS[:1], speedups=(2.0,), probes=0, minutes=1000.0)
    assert len(profile.candidates) == 1


def test_too_few_minutes_are_refused_in_the_first_run(pipe) -> None:
    with pytest.raises(TooFewMinutesError, match="minutes is 1e-05, but one uncached run takes"):
        calibrate(pipe, CLIPS, **LONG | {"minutes": 1e-5})
    assert "forward" not in vars(pipe.transformer) and "step" not in vars(pipe.scheduler)
    with pytest.raises(ValueError, match="minutes is 0; accepted: above 0, or None"):
        calibrate(pipe, CLIPS, **LONG | {"minutes": 0})


class Killed(Exception):
    pass


def test_a_killed_one_has_a_profile_and_goes_on(pipe, tmp_path, patient) -> None:
    """After the first clip's plans it can be used; then it ends as if it was never killed."""
    whole = calibrate(pipe, CLIPS[:2], **LONG)

    def kill(what: str, done: int, total: int) -> None:
        if (what, done) == ("candidates", 2):  # the second clip's
            raise Killed

    killed = CalibrationRun(pipe, CLIPS[:2], work=tmp_path, on_progress=kill, **LONG)
    assert killed.so_far() is None
    with pytest.raises(Killed):
        killed.run()
    partial = killed.so_far()
    assert [len(one.psnr_db) for one in partial.candidates] == [1, 1]
    assert partial.plan_of(partial.candidates[0]).computed == partial.candidates[0].computed
    again = calibrate(pipe, CLIPS[:2], work=tmp_path, **LONG)
    for one, other in zip(whole.candidates, again.candidates, strict=True):
        assert torch.equal(one.psnr_db, other.psnr_db)
        assert torch.equal(one.corrections, other.corrections)
    assert again.metadata["cost_runs"] == whole.metadata["cost_runs"]


def test_the_command_says_how_many_clips_there_will_be(capsys) -> None:
    """10 minutes are 20 runs; clips cost 3 runs, probes of the start 2.5."""
    _say_estimate(Estimate(10.0, 0.6, 50, 1, 3.0, 0.0, start_runs=2.5), plans=5)
    said = " ".join(capsys.readouterr().err.split())
    assert "up to 6 clips; 5 if errors must be probed" in said
    _say_estimate(Estimate(2.0, 0.6, 50, 1, 3.0, 0.0, start_runs=2.5), plans=5)
    assert " ".join(capsys.readouterr().err.split())[-12:] == "up to 1 clip"
