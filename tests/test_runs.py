"""Runs as they are: late beginnings, several loops and other forwards, on every family."""

import diffusers
import pytest
import tiny
import torch
from calls import call
from odd_runs import RUNS
from tiny_models import MODELS

import dit_accel
from dit_accel import EDCW, SceneConfig, UniCP, accelerate
from dit_accel.layout import Keyframe, Layout, Shot, Subject
from dit_accel.planning.transfer import computed_steps

LONG = EDCW(threshold=1e9, first=2)
REUSED = 0.25  # relative error that half of the steps may cost on random weights

quick = pytest.mark.parametrize("name", ["wan-v2v", "hunyuan-true-cfg"])
every = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) for name in RUNS]
)


def counted(pipe):
    """The forwards of a pipeline's transformers, one entry each."""
    calls = []
    for name in ("transformer", "transformer_2"):
        part = getattr(pipe, name, None)
        if part is not None:
            part.register_forward_hook(lambda module, *_: calls.append(module))
    return calls


def check_planned(name):
    row = RUNS[name]
    pipe, arguments = row.build()
    calls = counted(pipe)
    stock = row(pipe, arguments)
    assert len(calls) == row.steps * row.loops * len(row.branches)
    with accelerate(pipe, speedup=2) as handle:
        clip, first = row(pipe, arguments), handle.report()
        assert torch.equal(clip, stock) == (row.loops == 1)
        assert any("the next runs are planned from it" in note for note in first.notes)
        for _ in range(2):
            calls.clear()
            clip = row(pipe, arguments)
            report = handle.report()
            assert 0 < float((clip - stock).norm() / stock.norm()) < REUSED
            assert not any("No profile was found" in note for note in report.notes)
            half = -(-row.steps // 2) * row.loops
            assert len(calls) == half * len(row.branches)
            assert (report.steps, report.steps_computed) == (row.steps * row.loops, half)
            assert report.branches == row.branches
    later = -(-row.steps // 2) * (row.loops - 1)
    assert (first.steps, first.steps_computed) == (row.steps * row.loops, row.steps + later)
    assert torch.equal(row(pipe, arguments), stock)


@pytest.mark.usefixtures("without_prior")
@quick
def test_the_second_call_is_planned_and_reports_what_ran(name):
    check_planned(name)


@pytest.mark.usefixtures("without_prior")
@every
def test_the_second_call_of_every_family_is_planned_and_reports_what_ran(name):
    check_planned(name)


def test_loops_of_one_call_are_joined_and_the_next_call_begins_anew():
    row = RUNS["ltx-long"]
    pipe, arguments = row.build()
    with accelerate(pipe, threshold=1e9) as handle:
        for _ in range(2):
            row(pipe, arguments)
            report = handle.report()
            assert (report.steps, report.steps_run) == (60, 60)
            (site,) = report.sites
            assert sorted(site.called) == list(range(60)) and {0, 15, 30, 45} <= {*site.computed}
            assert "The call ran 4 denoising loops." in report.notes
        plain = arguments | {"temporal_tile_size": 64}
        row(pipe, plain)
        assert handle.report().steps == 15 and not handle.report().notes


def stop(step):
    def callback(pipe, at, timestep, tensors):
        if at == step:
            raise KeyboardInterrupt
        return tensors

    return callback


@pytest.mark.parametrize("begins_late_after", ["whole", "late"])
def test_an_aborted_run_leaves_nothing_for_one_that_begins_behind_it(begins_late_after):
    """The next run's first position in the schedule lies behind the last one of the aborted."""
    row = RUNS["wan-v2v"]
    pipe, arguments = row.build()
    late = arguments | {"strength": 0.6}
    stock = row(pipe, late)
    aborted = arguments | {"strength": {"whole": 1.0, "late": 0.8}[begins_late_after]}
    with accelerate(pipe, threshold=0.0) as handle:
        with pytest.raises(KeyboardInterrupt):
            row(pipe, aborted, callback_on_step_end=stop(1))
        pipe.maybe_free_model_hooks()  # as users do to free memory
        assert torch.equal(row(pipe, late), stock)
        assert (handle.report().steps, handle.report().steps_run) == (9, 9)
        assert torch.equal(row(pipe, late), stock)
        assert handle.report().steps == 9


@pytest.mark.parametrize("speedup", [2.0, 2.5, 4.0])
@pytest.mark.parametrize("steps", [12, 20, 30])
def test_a_speed_that_is_asked_for_is_given_in_whole_steps(steps, speedup, caplog):
    """On a model that nobody calibrated, by a sampler whose latents once seemed to jump."""
    pipe = tiny.tiny_wan()
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    )
    settings = {"num_inference_steps": steps, "output_type": "latent"}
    with accelerate(pipe, speedup=speedup) as handle:
        assert "runs are planned from the prior" in caplog.text
        for seed in range(3):
            call(pipe, seed=seed, **settings)
            report = handle.report()
            count = computed_steps(speedup, steps)
            assert len(report.planned) == count
            assert report.steps_computed <= count + 1
            said = " ".join(report.notes)
            assert (report.steps_computed > count) == ("more step" in said)
            exact = abs(steps / count - speedup) <= 0.005 * speedup
            assert exact != (f"a speedup of {speedup:g} becomes {steps / count:.2f}" in said)


def test_steps_beyond_the_plan_are_counted_with_their_reason():
    def disturb(pipe, at, timestep, tensors):
        if at == 5:
            tensors["prompt_embeds"] = -tensors["prompt_embeds"]
        return tensors

    pipe, changed = tiny.tiny_wan(), ["latents", "prompt_embeds"]
    with accelerate(pipe, speedup=2.0) as handle:
        call(pipe, num_inference_steps=20)
        call(
            pipe, num_inference_steps=20, callback_on_step_end=disturb,
            callback_on_step_end_tensor_inputs=changed,
        )  # fmt: skip
        report = handle.report()
    added = sorted({*report.sites[0].computed} - {*report.planned})
    assert added and 6 in {*added, *report.planned}
    (note,) = [note for note in report.notes if note.startswith("Computed ")]
    count = f"{len(added)} more step{'s' if len(added) > 1 else ''} than planned"
    assert note == (
        f"Computed {count} ({', '.join(map(str, added))}), because the text changed after step 5."
    )


LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
TWO_SUBJECTS = Layout(
    (
        Shot(
            "one", "a red circle",
            (
                Subject("a", "a red circle", (Keyframe(0.0, LEFT),)),
                Subject("b", "a blue square", (Keyframe(0.0, RIGHT),)),
            ),
        ),
    )
)  # fmt: skip


@pytest.mark.parametrize("strength", [0.8, 0.5, 0.2])
def test_a_layout_isolates_in_a_run_that_begins_late_or_says_that_it_does_not(strength):
    row = RUNS["wan-v2v"]
    pipe, arguments = row.build()
    frames = torch.rand(1, 9, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    arguments |= {
        "prompt": TWO_SUBJECTS.prompts, "negative_prompt": None, "height": 32, "width": 64,
        "video": frames, "strength": strength,
    }  # fmt: skip
    stock = row(pipe, arguments)
    steps = int(16 * strength)
    for settings, noted in (
        (SceneConfig(text=0.0), False),
        (SceneConfig(text=0.0, steps=(0.0, 0.01)), True),
    ):
        with accelerate(pipe, layout=TWO_SUBJECTS, scene=settings) as handle:
            clip = row(pipe, arguments)
            report = handle.report()
        assert report.steps == steps
        assert torch.equal(clip, stock) == noted
        assert (report.scene.split_calls == 0) == noted
        expected = f"Isolation was active at none of the {steps} steps: steps is (0.0, 0.01)"
        assert any(expected in note for note in report.scene.notes) == noted


def test_a_run_that_begins_too_late_for_a_plan_is_computed_with_a_note():
    row = RUNS["wan-v2v"]
    pipe, arguments = row.build()
    arguments |= {"strength": 0.2}
    stock = row(pipe, arguments)
    with accelerate(pipe, speedup=2) as handle:
        for _ in range(2):
            assert torch.equal(row(pipe, arguments), stock)
            assert handle.report().notes == (
                "Every step was computed: the run begins at step 13, and 3 steps are too few for a "
                "plan. A threshold accelerates such runs too.",
            )


def without_guidance_after(step):
    """A trick that is in use: no guidance in the late steps, which then have one forward."""

    def callback(pipe, at, timestep, tensors):
        if at == step:
            pipe._guidance_scale = 1.0
        return tensors

    return callback


@pytest.mark.usefixtures("without_prior")
def test_a_run_whose_forwards_change_is_never_planned_from_and_says_so():
    pipe = tiny.tiny_wan()
    changing = {"output_type": "latent", "callback_on_step_end": without_guidance_after(5)}
    stock = call(pipe, **changing)
    with accelerate(pipe, speedup=2) as handle:
        for _ in range(2):
            assert torch.equal(call(pipe, **changing), stock)
            notes = " ".join(handle.report().notes)
            assert "the forwards of a step changed during the run" in notes
        call(pipe, output_type="latent")
        call(pipe, output_type="latent")
        assert handle.report().steps_computed == 6


@pytest.mark.parametrize(
    ("name", "weights"), [("hunyuan-true-cfg", (1.0, -2.0)), ("wan-modular", (1.0, -4.0))]
)
def test_how_the_branches_are_weighed_is_measured_where_the_pipeline_does_not_say(name, weights):
    """1 and 1 - s for a scale s: 3 in HunyuanVideo's call, 5 of a modular pipeline's guider."""
    row = RUNS[name]
    pipe, arguments = row.build()
    with accelerate(pipe, speedup=2) as handle:
        row(pipe, arguments)
        row(pipe, arguments)
        found = handle.executor.policy.branch_weights
    assert found == pytest.approx(weights, abs=0.01)


def test_true_guidance_is_planned_from_the_first_call_on_and_may_come_and_go():
    row = RUNS["hunyuan-true-cfg"]
    pipe, guided = row.build()
    plain = guided | {"true_cfg_scale": 1.0}
    with accelerate(pipe, speedup=2) as handle:
        for arguments, branches in ((guided, 2), (plain, 1), (guided, 2)):
            row(pipe, arguments)
            report = handle.report()
            assert (report.steps_computed, len(report.branches)) == (8.0, branches)
            assert "Planned from a prior" in " ".join(report.notes)


def test_guidance_that_ends_within_a_run_that_the_prior_plans_is_noted():
    pipe = tiny.tiny_wan()
    changing = {"output_type": "latent", "callback_on_step_end": without_guidance_after(5)}
    stock = call(pipe, **changing)
    with accelerate(pipe, speedup=2) as handle:
        clip = call(pipe, **changing)
        report = handle.report()
        assert any("Guidance changed from 4 to 1" in note for note in report.notes)
        assert report.prediction is None
    assert clip.isfinite().all() and float((clip - stock).norm() / stock.norm()) < 0.5


def other_text_after(step):
    def callback(pipe, at, _, tensors):
        return {"prompt_embeds": -2 * tensors["prompt_embeds"]} if at == step else tensors

    names = ["latents", "prompt_embeds"]
    return {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": names}


@pytest.mark.parametrize("site", ["model", "block", "attention"])
def test_a_guider_may_call_the_transformer_again_with_the_same_text(site):
    """Skip-layer guidance: a third forward a step, with the prompt, that leaves a block out."""
    row = RUNS["wan-modular"]
    pipe, arguments = row.build()
    guider = getattr(diffusers, "SkipLayerGuidance", None)
    if guider is None:
        pytest.skip("this diffusers has no guiders")
    skipped = diffusers.LayerSkipConfig(indices=[1], fqn="blocks")
    interval = {"skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
    pipe.update_components(guider=guider(skip_layer_config=skipped, **interval))
    stock = row(pipe, arguments)
    with accelerate(pipe, threshold=0, site=site) as handle:
        assert torch.equal(row(pipe, arguments), stock)
        report = handle.report()
    assert report.steps == report.steps_computed == row.steps
    assert report.branches == ("cond", "uncond", "cond2")
    with accelerate(pipe, config=LONG, site=site) as handle:
        assert torch.equal(row(pipe, arguments), row(pipe, arguments))
        assert handle.report().steps == row.steps


@pytest.mark.parametrize("name", ["LattePipeline", "cogvideox"])
def test_noise_that_the_calls_eta_adds_is_refused_where_the_sampler_takes_it(name):
    """Latte's DDIM draws noise with an eta above 0; CogVideoX's takes the number and ignores it."""
    model = MODELS[name]
    pipe = model.build()
    stock = model.run(pipe, eta=0.5)
    assert torch.equal(stock, model.run(pipe)) == (name == "cogvideox")
    with accelerate(pipe, speedup=2):
        if name == "cogvideox":
            assert not torch.equal(model.run(pipe, eta=0.5), stock)
        else:
            with pytest.raises(ValueError, match="DDIMScheduler is random"):
                model.run(pipe, eta=0.5)
    with dit_accel.recorded(pipe) as reference:
        assert torch.equal(model.run(pipe, eta=0.5), stock)
    assert (reference.run.profile is not None) == (name == "cogvideox"), reference.problem


@pytest.mark.parametrize(
    "settings",
    [
        *({"config": LONG, "site": site} for site in ("attention", "block", "model")),
        {"accel": UniCP(windows=LONG, pcas=None)},
    ],
    ids=lambda given: given.get("site", "unicp"),
)
def test_windows_do_not_use_values_of_a_text_that_a_callback_replaced(settings):
    pipe = tiny.tiny_wan()
    changing = {"output_type": "latent", **other_text_after(4)}
    with accelerate(pipe, **settings) as handle:
        call(pipe, output_type="latent")
        assert 5 not in next(one for one in handle.report().sites if one.branch == "cond").computed
        call(pipe, **changing)
        report = handle.report()
    note = "The text changed at step 5: values cached before were dropped."
    assert note in report.notes
    for site in report.sites:
        assert (5 in site.computed) == (site.branch == "cond")


@pytest.mark.parametrize("given", [{"static": True}, {"guard": False}], ids=str)
def test_a_plan_without_guard_says_that_the_text_changed(given):
    pipe = tiny.tiny_wan()
    with accelerate(pipe, speedup=2, **given) as handle:
        call(pipe, output_type="latent", **other_text_after(4))
    report = handle.report()
    assert report.prediction is None
    assert report.notes[-1] == (
        "The text changed at step 5, but a plan without guard still has predictions of the "
        "earlier text."
    )
    with accelerate(pipe, speedup=2, **given) as handle:
        call(pipe, output_type="latent")
        assert handle.report().prediction is not None
        assert not any("The text" in note for note in handle.report().notes)


def test_a_guider_that_begins_within_a_run_is_noted_and_predicts_nothing():
    """The pipeline has no guidance scale to look at: the guider has it, and its interval."""
    if "hunyuan-video-1.5" not in MODELS:
        pytest.skip("this diffusers has no HunyuanVideo 1.5")
    model = MODELS["hunyuan-video-1.5"]
    pipe = model.build()
    pipe.guider = diffusers.ClassifierFreeGuidance(guidance_scale=4.0, start=0.2)
    with accelerate(pipe, speedup=2) as handle:
        model.run(pipe)
        report = handle.report()
        assert report.notes[-1] == (
            "The forwards changed from pred_cond to pred_cond and pred_uncond at step 1, but the "
            "plan still has the branch weights of the first step."
        )
        assert report.prediction is None
        pipe.guider = diffusers.ClassifierFreeGuidance(guidance_scale=4.0)
        model.run(pipe)
        assert handle.report().prediction is not None
        assert not any("branch weights" in note for note in handle.report().notes)


@pytest.mark.usefixtures("without_prior")
def test_true_guidance_may_come_and_go_between_calls():
    row = RUNS["hunyuan-true-cfg"]
    pipe, guided = row.build()
    plain = guided | {"true_cfg_scale": 1.0}
    stronger = guided | {"true_cfg_scale": 5.0}
    with accelerate(pipe, speedup=2) as handle:
        found = []
        for arguments in (plain, plain, guided, guided, stronger, plain, guided):
            row(pipe, arguments)
            report = handle.report()
            found.append((report.steps_computed, len(report.branches)))
    whole, half = 16.0, 8.0
    assert found == [
        (whole, 1), (half, 1), (whole, 2), (half, 2), (half, 2), (half, 1), (half, 2),
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_windows_own_sampler_is_planned_for_where_it_draws_no_noise(eta):
    row = RUNS["ltx-long"]
    pipe, arguments = row.build()
    pipe.scheduler = diffusers.LTXEulerAncestralRFScheduler(eta=eta)
    stock = row(pipe, arguments)
    with accelerate(pipe, speedup=2) as handle:
        if eta > 0:
            with pytest.raises(ValueError, match="LTXEulerAncestralRFScheduler is random"):
                row(pipe, arguments)
        else:
            row(pipe, arguments)
            row(pipe, arguments)
            assert handle.report().steps_computed <= 0.6 * handle.report().steps
    assert torch.equal(row(pipe, arguments), stock)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_scheduler_is_listened_to_for_one_step_and_left_as_it_was(dtype):
    row = RUNS["hunyuan-true-cfg"]
    pipe, arguments = row.build()
    pipe.transformer.to(dtype)
    arguments |= {
        name: value.to(dtype)
        for name, value in arguments.items()
        if "embeds" in name and value is not None
    }
    seen = []

    def note(pipe, at, timestep, tensors):
        seen.append("step" in vars(pipe.scheduler))
        return tensors

    with accelerate(pipe, speedup=2) as handle:
        row(pipe, arguments, callback_on_step_end=note)
        row(pipe, arguments)
        weights = handle.executor.policy.branch_weights
        pipe.transformer.register_forward_pre_hook(_stop)
        with pytest.raises(RuntimeError, match="stopped"):
            row(pipe, arguments)
    assert weights == pytest.approx((1.0, -2.0), abs=0.03)
    assert not any(seen) and "step" not in vars(pipe.scheduler)


def _stop(module, arguments):
    raise RuntimeError("stopped")
