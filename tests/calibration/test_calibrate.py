"""Calibration: recorded samplers, held-out scores, and a folder that survives a kill."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from diffusers import FirstBlockCacheConfig, FlowMatchEulerDiscreteScheduler
from small_denoisers import trial

from dit_accel import accelerate
from dit_accel.calibration import calibrate as calibrating
from dit_accel.calibration import probes, refine
from dit_accel.calibration import record as recordings
from dit_accel.calibration.calibrate import calibrate, fit_passes
from dit_accel.calibration.fit import STRENGTHS, RidgeMoments
from dit_accel.calibration.probes import gain_and_memory, probe_steps
from dit_accel.calibration.record import NotLinearError, record
from dit_accel.core import session
from dit_accel.core.generation import ClipSpec, call_arguments
from dit_accel.evaluation import speed
from dit_accel.metrics import psnr
from dit_accel.models.checkpoints import DENOISERS
from dit_accel.planning.error_model import ErrorModel, energies
from dit_accel.planning.plan import Extrapolation, Plan, SecondExpert
from dit_accel.planning.profile import Profile
from dit_accel.planning.sampler import coefficients_of, planned_coefficients
from dit_accel.planning.selection import coefficients_before_run

STEPS = 10
CLIPS = [
    ClipSpec(prompt, "blue square", seed, STEPS, 4.0, 16, 16, 9, max_sequence_length=16)
    for seed, prompt in enumerate(("a red circle moving right", "a green square", "a triangle up"))
]
COMPUTED = (0, 1, 2, 4, 7)


def prepared(name: str, **changes: Any):
    """A tiny pipeline, its clip, and what its call is given; there is no VAE."""
    run = trial(name, **changes)
    given = speed.embeddings(run.prompt, run.guidance, "cpu", torch.float32)
    return speed.build(run), run.clip, given | {"output_type": "latent"}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.tiny_wan()


# --- samplers ---


@pytest.mark.parametrize("name", DENOISERS)
def test_shares_rebuild_the_final_latents_of_every_sampler(name):
    """UniPC's multistep, Euler with a shift, DDIM on velocities, Euler with a stretched end."""
    pipe, clip, given = prepared(name)
    recording = record(pipe, [clip], given)[0]
    parts = 2 if name.startswith("wan") else 1
    assert recording.components.shape == (parts, clip.steps, recording.final.numel())
    assert recording.sampler.num_steps == clip.steps
    assert len(recording.sampler.branch_weights) == parts
    assert recording.gram.shape == (parts * clip.steps + 1,) * 2
    assert "step" not in vars(pipe.scheduler)
    if name.startswith("wan"):
        pipe.scheduler.set_timesteps(clip.steps)  # forgets the run, as every run begins
    predicted = coefficients_of(pipe.scheduler, recording.sampler.branch_weights)
    assert torch.allclose(predicted.coefficients, recording.sampler.coefficients, atol=1e-6)


def test_noise_that_the_denoiser_does_not_get_alone_is_in_no_inner_product(monkeypatch):
    pipe, clip, given = prepared("ltx-video")
    assert record(pipe, [clip], given)[0].gram[-1, -1] > 0
    monkeypatch.setattr("dit_accel.caching.executor._same_space", lambda *_: False)
    gram = record(pipe, [clip], given)[0].gram
    assert not gram[-1].any() and not gram[:, -1].any() and gram[0, 0] > 0


def test_a_sampler_that_is_not_linear_is_refused(monkeypatch):
    pipe, clip, given = prepared("hunyuan-video")
    stock = type(pipe.scheduler).step

    def clipped(self, output, *args, **kwargs):
        return stock(self, output.clamp(-0.5, 0.5), *args, **kwargs)

    monkeypatch.setattr(type(pipe.scheduler), "step", clipped)
    with pytest.raises(NotLinearError, match="FlowMatchEulerDiscreteScheduler is not linear"):
        record(pipe, [clip], given)[0]


# --- profiles ---


def tensors_of(profile: Profile) -> list[torch.Tensor]:
    found = [
        profile.gram,
        profile.error_gain,
        profile.sampler.coefficients,
        profile.sampler.timesteps,
    ]
    for candidate in profile.candidates:
        found += [value for value in vars(candidate).values() if isinstance(value, torch.Tensor)]
    return found


def test_the_shape_of_a_profile(pipe):
    """Two candidates."""
    reported: list[tuple[str, int, int]] = []
    profile = calibrate(
        pipe, CLIPS[:2], speedups=(2.0, 3.4), probes=3, probed=1,
        on_progress=lambda *news: reported.append(news),
    )  # fmt: skip
    identity = profile.key
    assert (identity.pipeline, identity.parts, identity.steps) == ("WanPipeline", 2, STEPS)
    assert (identity.guidance, identity.height, identity.frames) == (4.0, 16, 9)
    assert profile.sampler.branch_weights == (1.0, -3.0)
    assert profile.gram.shape == (1, 2 * STEPS + 1, 2 * STEPS + 1)
    assert profile.error_gain.shape == (STEPS,)
    assert [len(candidate.computed) for candidate in profile.candidates] == [5, 3]
    for candidate in profile.candidates:
        count = len(candidate.computed)
        assert candidate.computed[0] == 0
        assert (
            candidate.psnr_db.shape
            == candidate.latents_db.shape
            == candidate.prompt_scores.shape
            == (2,)
        )
        assert candidate.extrapolation_error.shape == candidate.error_spread.shape == (count,)
        assert candidate.corrections.shape[0] == count
        assert (candidate.error_spread > 0).all()
        assert profile.plan_of(candidate).computed == candidate.computed
    assert reported[0] == ("uncached", 0, 2)
    assert {what for what, *_ in reported} == {"uncached", "probe", "search", "candidates"}
    for value in tensors_of(profile):
        assert value.isfinite().all()


# --- batches ---


def test_clips_of_a_batch_are_recorded_as_they_would_be_alone(pipe):
    """Each has noise of its own; batched arithmetic rounds otherwise, no more."""
    together = record(pipe, CLIPS)
    for clip, one in zip(CLIPS, together, strict=True):
        alone = record(pipe, [clip])[0]
        assert torch.equal(one.noise, alone.noise)
        assert torch.allclose(one.components, alone.components, atol=1e-4)
        assert torch.allclose(one.final, alone.final, atol=1e-4)
        assert psnr(alone.frames, one.frames, data_range=1.0) > 60


def test_clips_of_one_batch_share_their_corrections(pipe, monkeypatch):
    """What is fitted during the runs is the plan that comes out: run anew, it gives the same clips.
    Their scores are lower, as the fit has seen them."""
    fixed_candidates(monkeypatch)
    shrink_weakly(monkeypatch)
    settings = {"speedups": (2.0,), "probes": 2, "probed": 1, "batch": 3}
    reported: list[tuple[str, int, int]] = []
    profile = calibrate(pipe, CLIPS, on_progress=lambda *news: reported.append(news), **settings)
    assert [news for news in reported if news[0] == "candidates"] == [
        ("candidates", 0, 3)
    ]  # one pass
    (candidate,) = profile.candidates
    seen = scores_of(pipe, CLIPS, profile.plan_of(candidate))
    assert candidate.psnr_db.shape == (3,)
    assert all(own < known for own, known in zip(candidate.psnr_db.tolist(), seen, strict=True))
    monkeypatch.setattr(refine._FittingPolicy, "unseen", lambda *_: 0.0)
    (raw,) = calibrate(pipe, CLIPS, **settings).candidates
    assert raw.psnr_db.tolist() == pytest.approx(seen, abs=0.05)


def test_a_batch_of_guided_pairs_is_fitted(monkeypatch):
    """Families that run both branches as one batch: features are of the guided prediction."""
    fixed_candidates(monkeypatch)
    monkeypatch.setattr(refine, "_frames_db", lambda *_: 40.0)
    shrink_weakly(monkeypatch)
    pipe, clip, given = prepared("cogvideox-2b", steps=STEPS)
    two = {
        name: torch.cat([value] * 2) if isinstance(value, torch.Tensor) else value
        for name, value in given.items()
    }
    clips = [clip, dataclasses.replace(clip, seed=clip.seed + 1)]
    settings = {"speedups": (2.0,), "probes": 2, "probed": 2}
    together = calibrate(pipe, clips, overrides=two | {"prompt": None}, batch=2, **settings)
    (candidate,) = together.candidates
    assert candidate.psnr_db.shape == (2,)
    assert (candidate.latents_db > 0).all()


def test_frames_that_are_pictures_score_as_arrays_do(pipe, monkeypatch):
    """Their levels are rounded already."""
    fixed_candidates(monkeypatch)

    def score(output_type: str) -> float:
        given = {"output_type": output_type}
        found = calibrate(pipe, CLIPS[:1], speedups=(2.0,), probes=2, probed=1, overrides=given)
        return found.candidates[0].psnr_db.item()

    assert score("pil") == score("np")


@pytest.mark.parametrize(
    ("clips", "batch", "expected"), [(3, 1, 2), (3, 2, 2), (3, 3, 1), (1, 4, 2)]
)
def test_one_pass_is_enough_where_all_come_to_a_window_together(clips, batch, expected):
    assert fit_passes(clips, batch) == expected


def fixed_candidates(monkeypatch: Any) -> None:
    monkeypatch.setattr(calibrating.CalibrationRun, "_searched", lambda *_: ([COMPUTED], [None]))


def shrink_weakly(monkeypatch: Any) -> None:
    """Corrections are hardly shrunk, whatever left-out clips say: one clip is enough."""
    weakest = -torch.arange(len(STRENGTHS), dtype=torch.float64)
    monkeypatch.setattr(RidgeMoments, "gains", lambda *_: weakest)


def frames_of(pipe: Any, clip: ClipSpec, plan: Plan) -> Any:
    with accelerate(pipe, plan=plan, mix=(1.0, -3.0)):
        return pipe(**call_arguments(pipe, clip)).frames[0]


def scores_of(pipe: Any, clips: list[ClipSpec], plan: Plan) -> list[float]:
    """Of frames in 8 bits, as files are."""

    def score(clip: ClipSpec) -> float:
        pair = record(pipe, [clip])[0].frames, frames_of(pipe, clip, plan)
        return float(psnr(*(np.rint(255 * frames) for frames in pair), data_range=255))

    return [score(clip) for clip in clips]


def test_one_clip_is_enough_for_a_fit(pipe, monkeypatch):
    """The plan is better on it than its centre, lines here. The score is lower than that: nothing
    is known of other clips."""
    fixed_candidates(monkeypatch)

    def lines(computed: Any, field: ErrorModel, *, depth: int) -> tuple[Plan, float]:
        return Plan.of(computed, field.sampler, {}, depth), 0.0

    monkeypatch.setattr(refine, "fit", lines)
    monkeypatch.setattr(calibrating, "FIT_PASSES", 1)
    shrink_weakly(monkeypatch)
    settings = {"speedups": (2.0,), "probes": 2, "probed": 1}
    profile = calibrate(pipe, CLIPS[:1], **settings)
    (candidate,) = profile.candidates
    (fitted,) = scores_of(pipe, CLIPS[:1], profile.plan_of(candidate))
    (centre,) = scores_of(pipe, CLIPS[:1], lines(COMPUTED, profile.error_model, depth=1)[0])
    assert fitted > centre and candidate.psnr_db.item() < fitted


def test_candidates_are_searched_anew_with_other_probes(pipe, tmp_path):
    """The gain is part of what plans are searched by."""

    def searched(probes: int) -> int:
        reported: list[str] = []
        calibrate(
            pipe, CLIPS[:1], speedups=(2.0,), probes=probes, probed=1, work=tmp_path,
            on_progress=lambda what, *_: reported.append(what),
        )  # fmt: skip
        return reported.count("search")

    assert [searched(2), searched(2), searched(3)] == [1, 0, 1]


@pytest.mark.parametrize(
    ("first", "asked"),
    [
        ({"probes": 2}, {"probes": 3}),
        ({"probed": 1}, {"probed": 2}),
        ({"batch": 1}, {"batch": 2}),
    ],
    ids=str,
)
def test_candidates_of_other_settings_are_not_gone_on_with(
    pipe, tmp_path, monkeypatch, first, asked
):
    """The same plans, but fitted otherwise, or with other clips: as if nothing was stored."""
    fixed_candidates(monkeypatch)
    settings = {"speedups": (2.0,), "probes": 2, "probed": 1}
    before = calibrate(pipe, CLIPS, work=tmp_path, **settings | first)
    resumed = calibrate(pipe, CLIPS, work=tmp_path, **settings | asked)
    afresh = calibrate(pipe, CLIPS, **settings | asked)
    (old,), (new,), (own,) = before.candidates, resumed.candidates, afresh.candidates
    assert torch.equal(new.corrections, own.corrections) and torch.equal(new.psnr_db, own.psnr_db)
    assert not torch.equal(old.corrections, own.corrections), "the control: these settings matter"


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    "at", [("uncached", 1), ("probe", 1), ("candidates", 1), ("candidates", 4)], ids=str
)
def test_a_calibration_that_was_killed_goes_on_where_it_was(pipe, tmp_path, monkeypatch, at):
    """Bit-equal to one that was not, and nothing that was finished is reported again."""
    fixed_candidates(monkeypatch)
    settings = {"speedups": (2.0,), "probes": 2, "probed": 1}
    if not hasattr(pipe, "_whole"):
        pipe._whole = calibrate(pipe, CLIPS, **settings)  # once for all cases
    reported: list[tuple[str, int]] = []

    def kill(what: str, done: int, total: int) -> None:
        if (what, done) == at:
            raise Killed
        reported.append((what, done))

    with pytest.raises(Killed):
        calibrate(pipe, CLIPS, work=tmp_path, on_progress=kill, **settings)
    assert "forward" not in vars(pipe.transformer) and "step" not in vars(pipe.scheduler)
    before, again = set(reported), []
    profile = calibrate(
        pipe,
        CLIPS,
        work=tmp_path,
        on_progress=lambda what, done, _: again.append((what, done)),
        **settings,
    )
    finished = (
        before - {("probe", 0)} if at[0] == "probe" else before
    )  # a clip's probes go together
    assert again[0] == (at if at[0] != "probe" else ("probe", 0))
    assert not finished & set(again)
    for whole, resumed in zip(tensors_of(pipe._whole), tensors_of(profile), strict=True):
        assert torch.equal(whole, resumed)


def test_a_finished_folder_gives_the_profile_without_a_run(pipe, tmp_path, monkeypatch):
    fixed_candidates(monkeypatch)
    settings = {"speedups": (2.0,), "probes": 2, "probed": 1, "work": tmp_path}
    first = calibrate(pipe, CLIPS[:1], **settings)

    def run(*_: Any) -> None:
        raise AssertionError("a run is made")

    for module in (refine, recordings, probes):
        monkeypatch.setattr(module, "run", run)
    second = calibrate(pipe, CLIPS[:1], **settings)
    for one, other in zip(tensors_of(first), tensors_of(second), strict=True):
        assert torch.equal(one, other)


def test_a_folder_of_something_else_is_refused(pipe, tmp_path):
    settings = {"speedups": (), "probes": 2, "probed": 1, "work": tmp_path}
    calibrate(pipe, CLIPS[:1], **settings)
    with pytest.raises(ValueError, match="was begun with other clips; accepted: another folder"):
        calibrate(pipe, CLIPS[1:2], **settings)
    with pytest.raises(ValueError, match="was begun with other pipelines; accepted: another"):
        calibrate(tiny.tiny_wan(seed=3), CLIPS[:1], **settings)
    rounded = tiny.tiny_wan()
    rounded.transformer.to(torch.bfloat16)
    with pytest.raises(ValueError, match="was begun with other dtypes; accepted: another folder"):
        calibrate(rounded, CLIPS[:1], **settings)


def test_without_speedups_there_are_no_candidates(pipe):
    profile = calibrate(pipe, CLIPS[:1], speedups=(), probes=2, probed=1)
    assert profile.candidates == ()


@pytest.mark.parametrize("name", ["hunyuan-video", "cogvideox-2b", "ltx-video"])
def test_families_of_one_forward_a_step_are_calibrated_as_one_part(name, monkeypatch):
    """Branches in one batch are combined: features are of the guided prediction."""
    fixed_candidates(monkeypatch)
    monkeypatch.setattr(refine, "_frames_db", lambda *_: 40.0)  # of latents: there is no VAE
    pipe, clip, given = prepared(name, steps=STEPS)
    clips = [clip, dataclasses.replace(clip, seed=clip.seed + 1)]
    profile = calibrate(pipe, clips, speedups=(2.0,), probes=2, probed=1, overrides=given)
    assert (profile.key.parts, profile.sampler.branch_weights) == (1, (1.0,))
    (candidate,) = profile.candidates
    assert (candidate.latents_db > 0).all()
    with accelerate(pipe, speedup=2.0, profile=profile) as handle:
        latents = pipe(**call_arguments(pipe, clip) | given).frames
        report = handle.report()
    assert report.planned == COMPUTED
    assert report.steps_computed == len(COMPUTED)
    assert not report.notes[1:]
    assert torch.isfinite(latents).all()


def test_experts_with_a_guidance_each_are_calibrated(tmp_path):
    """No window of a candidate reaches across the switch, and the profile's file knows it."""
    pipe = tiny.tiny_wan(transformer_2=True, boundary_ratio=0.8)
    scales = {"guidance_scale_2": 1.5}
    profile = calibrate(pipe, CLIPS[:2], speedups=(2.0,), probes=2, probed=1, overrides=scales)
    profile.save(tmp_path / "a.safetensors")
    second = Profile.load(tmp_path / "a.safetensors").sampler.second
    begins = int((profile.sampler.timesteps >= 800).sum())
    assert second == SecondExpert(begins, share=pytest.approx(0.5 / 3))
    before = coefficients_before_run(
        profile, pipe.scheduler, profile.sampler.num_steps, 4.0, separate=True, guidance_2=2.0
    )
    assert before is not None and before.second == SecondExpert(begins, 1 / 3)
    (candidate,) = profile.candidates
    plan = profile.plan_of(candidate)
    assert begins in plan.computed
    assert all(
        (used < begins) == (step < begins)
        for step, one in plan.extrapolations.items() for weights in one.weights for used in weights
    )  # fmt: skip
    with accelerate(pipe, speedup=2.0, profile=profile) as handle:
        pipe(**call_arguments(pipe, CLIPS[0]) | scales)
        report = handle.report()
    assert report.planned == candidate.computed
    assert not any("inner products" in note for note in report.notes)


def test_a_guidance_that_varies_is_refused_for_candidates(monkeypatch):
    """Where a pipeline does not say so, what is cached by branch is no prediction."""
    monkeypatch.setattr(session, "second_guidance", lambda _: None)
    pipe = tiny.tiny_wan(transformer_2=True)
    with pytest.raises(ValueError, match="guidance is not 4 at every step; accepted: the same"):
        calibrate(
            pipe, CLIPS[:1], speedups=(2.0,), probes=2, probed=1,
            overrides={"guidance_scale_2": 1.5},
        )  # fmt: skip


def test_an_error_model_predicts_what_one_reused_prediction_does_at_the_last_step():
    """There nothing comes after it, so that the predicted error is exact."""
    pipe, clip, given = prepared("wan2.1-1.3b")
    recording = record(pipe, [clip], given)[0]
    last = clip.steps - 1
    plan = Plan(clip.steps, {last: Extrapolation(({last - 1: 1.0}, {last - 1: 1.0}))})
    field = ErrorModel(
        recording.sampler, recording.gram[None], torch.ones(clip.steps), error_memory=math.inf
    )
    with accelerate(pipe, plan=plan, mix=recording.sampler.branch_weights):
        made = pipe(**call_arguments(pipe, clip) | given).frames.flatten()
    error = ((made - recording.final).norm() / recording.final.norm()) ** 2
    assert energies(plan, field).item() == pytest.approx(error.item(), rel=1e-3)


# --- probes ---


def test_probes_are_summed_up_by_hand():
    """Two clips at step 0 with gains 3 and 4: root of 12.5; 1 at step 4; between them by logarithm.

    Each cosine says e^(-steps left / memory): here 1/e with 8 and with 4 steps left.
    """
    found = [(0, 3.0, math.exp(-1)), (0, 4.0, math.exp(-1)), (4, 1.0, math.exp(-1))]
    gain, memory = gain_and_memory(found, 8)
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


def test_a_schedule_that_cannot_be_known_before_a_run_is_refused():
    class NeedsMu(FlowMatchEulerDiscreteScheduler):
        def set_timesteps(self, steps: int) -> None:  # type: ignore[override]
            raise ValueError("`mu` must be passed")

    with pytest.raises(
        ValueError, match="timesteps of NeedsMu are not known before a run: `mu` must be"
    ):
        planned_coefficients(NeedsMu(), STEPS, (1.0,))


def test_a_pipeline_with_another_cache_is_refused(pipe):
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))
    try:
        with pytest.raises(
            ValueError, match=r"transformer has a cache of diffusers on .*; accepted"
        ):
            calibrate(pipe, CLIPS)
    finally:
        pipe.transformer.disable_cache()


def test_bad_input_is_named(pipe):
    with pytest.raises(ValueError, match="batch is 0; accepted: 1 or more"):
        calibrate(pipe, CLIPS, batch=0)
    with pytest.raises(ValueError, match="clips have 0 kinds of steps"):
        calibrate(pipe, [])
    mixed = [CLIPS[0], dataclasses.replace(CLIPS[1], guidance=5.0)]
    with pytest.raises(ValueError, match="clips have 2 kinds of steps, guidance and size"):
        calibrate(pipe, mixed)
    with pytest.raises(
        ValueError, match="probes is 1, probed is 3; accepted: 0 or at least 2 probes, and 1 to"
    ):
        calibrate(pipe, CLIPS, probes=1)
    with pytest.raises(
        ValueError, match="probes is 8, probed is 4; accepted: 0 or at least 2 probes, and 1 to"
    ):
        calibrate(pipe, CLIPS, probed=4)
    with pytest.raises(
        ValueError, match=r"speedups has \[1.0, 11.0\]; accepted: above 1, up to 10"
    ):
        calibrate(pipe, CLIPS, speedups=(1.0, 2.0, 11.0))
