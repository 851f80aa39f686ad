"""A plan carried out at the denoiser's output, on real pipelines of tiny width."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from plan_runs import PLAN, STEPS, TWO_PARTS, NotingPolicy, inject, run

from dit_accel import accelerate
from dit_accel.caching import monitor
from dit_accel.caching.guard import GuardedPolicy
from dit_accel.caching.host_copy import HostCopy
from dit_accel.core.guidance import guided
from dit_accel.planning.choice import ErrorBand
from dit_accel.planning.plan import Extrapolation, Plan

NEUTRAL = Plan(STEPS, {})
MIX = (1.0, -3.0)  # of guidance 4


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.tiny_wan()


@pytest.fixture(scope="module")
def stock(pipe: Any) -> Any:
    return run(pipe)


def test_worked_example():
    """A run of six steps whose denoiser is replaced by one that predicts a number a step."""
    pipe, given = tiny.tiny_wan(), []
    predictions = [1.0, 2.0, 99.0, 5.0, 99.0, 6.0]  # the 99s must never be asked for
    stock = pipe.scheduler.step

    def denoiser(hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        return (torch.full_like(hidden_states, predictions[len(given)]),)

    def scheduler_step(prediction: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        given.append(float(prediction.mean()))
        return stock(prediction, *args, **kwargs)

    pipe.transformer.forward, pipe.scheduler.step = denoiser, scheduler_step
    # step 2 on the line through steps 1 and 0, step 4 the same as step 3
    line, reuse = Extrapolation(({1: 2.0, 0: -1.0},)), Extrapolation(({3: 1.0},))
    with accelerate(pipe, plan=Plan(6, {2: line, 4: reuse})) as handle:
        run(pipe, guidance_scale=1.0, output_type="latent")
        report = handle.report()
    # 2 x 2 - 1 x 1 = 3 at step 2, and 5 again at step 4
    assert given == [1.0, 2.0, 3.0, 5.0, 5.0, 6.0]
    assert report.steps_computed == 4


def test_a_plan_that_computes_all_is_bit_equal_and_removal_restores(pipe, stock):
    with accelerate(pipe, plan=NEUTRAL) as handle:
        assert np.array_equal(run(pipe), stock)
        assert handle.report().steps_computed == STEPS
    with accelerate(pipe, plan=PLAN):
        assert not np.array_equal(run(pipe), stock)
    assert np.array_equal(run(pipe), stock)
    assert "forward" not in vars(pipe.transformer)


def replayed(pipe: Any, plan: Plan, parts: int) -> Any:
    """The executor written out: the stock pipeline with a hook that swaps the outputs."""
    seen: dict[tuple[int, int], torch.Tensor] = {}  # parts by step
    now: list[torch.Tensor] = []
    noise: list[torch.Tensor] = []
    calls = iter(range(2 * STEPS))

    def swap(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        step, branch = divmod(next(calls), 2)
        second = branch == 1 and parts == 2
        if step == branch == 0:
            noise.append(kwargs["hidden_states"].clone())
        extrapolation = plan.extrapolations.get(step)
        if extrapolation is None:
            value = output[0]
            seen[step, branch] = value - now[0] if second else value
        else:
            weights = extrapolation.weights[branch if parts == 2 else 0]
            value = sum(w * seen[read, branch] for read, w in weights.items())
            value = value + now[0] if second else value + extrapolation.noise_weight * noise[0]
        now[:] = now if branch else [value]
        return (value,)

    hook = pipe.transformer.register_forward_hook(swap, with_kwargs=True)
    try:
        return run(pipe)
    finally:
        hook.remove()


@pytest.mark.parametrize(
    ("plan", "mix"), [(PLAN, (1.0,)), (TWO_PARTS, MIX)], ids=["one part", "two parts"]
)
def test_extrapolated_steps_are_the_weighted_sums_of_what_was_computed(pipe, plan, mix):
    with accelerate(pipe, plan=plan, mix=mix):
        planned = run(pipe)
    assert np.abs(planned - replayed(pipe, plan, len(mix))).max() < 1e-5


def test_a_plan_of_two_parts_that_reuses_both_reuses_both_branches(pipe):
    """c and u - c as they were are c and u as they were."""
    whole = {s: Extrapolation(({s - 1: 1.0},)) for s in (2, 4)}
    parts = {s: Extrapolation(({s - 1: 1.0}, {s - 1: 1.0})) for s in (2, 4)}
    with accelerate(pipe, plan=Plan(STEPS, whole)):
        one = run(pipe)
    with accelerate(pipe, plan=Plan(STEPS, parts), mix=MIX):
        assert np.abs(run(pipe) - one).max() < 1e-5


def test_all_computed_is_bit_equal_with_two_parts_too(pipe, stock):
    """The difference is cached; the output is the branch itself."""
    with accelerate(pipe, plan=NEUTRAL, mix=MIX):
        assert np.array_equal(run(pipe), stock)
    with accelerate(pipe, plan=NotingPolicy(NEUTRAL, MIX)):
        assert np.array_equal(run(pipe), stock)


def test_a_policy_is_asked_once_a_step_and_given_every_computed_one(pipe):
    policy = NotingPolicy(PLAN, MIX)
    with accelerate(pipe, plan=policy):
        run(pipe)
    assert policy.steps == list(range(STEPS))
    assert list(policy.errors) == [0, 1, 3]  # the last step's error changes nothing
    assert (policy.errors[0], policy.errors[1]) == (None, None)
    assert 0 < policy.errors[3] < 10
    assert policy.invalid == []


def test_the_extrapolation_error_is_how_far_the_line_misses_the_guided_prediction(pipe):
    """By hand from the outputs: |1 (line - c) - 3 (line - d)| over |c - 3 d|; and how
    much of the line's rise was right, by projection."""
    policy = NotingPolicy(NEUTRAL, MIX)
    with accelerate(pipe, plan=policy):
        run(pipe)
        times = pipe.scheduler.timesteps.tolist()
    mixed = [c - 3 * d for c, d in zip(*policy.outputs, strict=True)]
    for step in (2, 3, 4):
        ahead = (times[step] - times[step - 1]) / (times[step - 1] - times[step - 2])
        line = mixed[step - 1] + ahead * (mixed[step - 1] - mixed[step - 2])
        missed = float((line - mixed[step]).norm() / mixed[step].norm())
        assert policy.errors[step] == pytest.approx(missed, rel=1e-3)
        rise, came = line - mixed[step - 1], mixed[step] - mixed[step - 1]
        trust = float((rise * came).sum() / (rise * rise).sum())
        assert policy.trusts[step] == pytest.approx(trust, rel=1e-3)


def test_the_policy_gets_the_noise_that_the_run_started_from(pipe):
    policy, given = (
        NotingPolicy(NEUTRAL),
        torch.randn(1, 16, 3, 2, 2, generator=torch.Generator().manual_seed(3)),
    )
    with accelerate(pipe, plan=policy):
        run(pipe, latents=given)
    (noise,) = policy.noise
    assert torch.equal(noise, given)


# --- host syncs ---


@pytest.fixture
def reads(monkeypatch) -> Counter[str]:
    """How often the package's own code has a tensor's numbers read, by function."""
    counted: Counter[str] = Counter()

    def watch(name: str) -> None:
        inner = getattr(torch.Tensor, name)

        def read(self: torch.Tensor, *args: Any) -> Any:
            code = sys._getframe(1).f_code
            if "dit_accel" in code.co_filename:
                counted[code.co_name] += 1
            return inner(self, *args)

        monkeypatch.setattr(torch.Tensor, name, read)

    for name in ("tolist", "item", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        watch(name)
    return counted


TIMES = [float(STEPS - s) for s in range(STEPS)]


def test_the_device_is_read_once_a_step_at_most(pipe, reads):
    """Of 0, 1, 3 and 5 computed: step 0 after 1, steps 1 and 2 after 3, the others at the end."""
    policy = GuardedPolicy(TWO_PARTS, TIMES, MIX)
    with accelerate(pipe, plan=policy) as handle:
        run(pipe)
        assert reads == {"tolist": STEPS - 1, "time_of": 1}  # the timesteps once a run
        assert handle.report().host_syncs == 3
    assert reads.pop("notes") == 1, "and whether all was finite, for the report"


class Lagging(HostCopy):
    """A copy that arrives when it is asked for, and notes how many forwards were queued by then."""

    forwards: list[str] = []  # noqa: RUF012
    lags: list[int] = []  # noqa: RUF012

    def __init__(self, numbers: torch.Tensor) -> None:
        self._numbers, self._queued = numbers.clone(), len(self.forwards)

    def tolist(self) -> list[float]:
        self.lags.append(len(self.forwards) - self._queued)
        return self._numbers.tolist()


@pytest.fixture
def lags(pipe, monkeypatch):
    """How many forwards were queued after each measure, before the host waited for it."""
    monkeypatch.setattr(monitor, "HostCopy", Lagging)
    monkeypatch.setattr(Lagging, "forwards", [])
    monkeypatch.setattr(Lagging, "lags", [])
    hook = pipe.transformer.register_forward_hook(lambda *_: Lagging.forwards.append("queued"))
    yield Lagging.lags
    hook.remove()


LATE = Plan(8, {s: Extrapolation(({c: 1.0},)) for s, c in ((3, 2), (4, 2), (6, 5))})


def late_policy(**changes: Any) -> GuardedPolicy:
    return GuardedPolicy(LATE, [float(8 - s) for s in range(8)], **changes)


def test_the_host_waits_for_a_step_only_behind_a_later_computed_one(pipe, lags):
    """Both branches of the next computed step are queued by then."""
    policy = late_policy()
    with accelerate(pipe, plan=policy) as handle:
        run(pipe, num_inference_steps=8)
        assert handle.report().host_syncs == 4
    assert lags == [2, 2, 2, 2, 2, 2, 2], "steps 0 to 6; 7 is queued behind them all"
    assert [*policy.extrapolation_errors] == [2, 5], "the last window's too"


def test_a_late_measure_still_abandons_the_plan(pipe, lags):
    """An error outside the band at step 2 is known once 5 is computed, and 6 is extrapolated on the
    damped line from 5. From then on nothing is late."""
    narrow = {2: ErrorBand(-9.0, 0.01)}
    with accelerate(pipe, plan=(policy := late_policy(bands=narrow))) as handle:
        run(pipe, num_inference_steps=8)
        (site, _) = handle.report().sites
    assert policy.abandoned is not None and policy.abandoned[0] == 2
    assert lags[:3] == [2, 2, 2] and set(lags[5:]) == {0}
    assert site.computed == (0, 1, 2, 5, 7)


@pytest.mark.parametrize("where", ["cached", "start"])
def test_a_value_that_is_not_finite_is_replaced_before_it_is_known(pipe, stock, where, lags):
    """Steps 3 and 4 use step 2 of which a number is lost: step 1's stands for it. After step 5 the
    host knows, and 6 is computed to restore it."""
    frames = {}
    for lost in (False, True):

        def poison(tensors: Any, lost: bool = lost) -> dict[str, Any]:
            store = handle.executor.store
            value = store.noise["target"] if where == "start" else store["target", "cond"][2]
            value[0, 0, 0, 0, 0] = float("nan") if lost else value[0, 0, 0, 0, 0]
            return {}

        noisy = {s: replace(e, noise_weight=1e-3) for s, e in LATE.extrapolations.items()}
        policy = GuardedPolicy(Plan(8, noisy), [float(8 - s) for s in range(8)])
        with accelerate(pipe, plan=policy) as handle:
            frames[lost] = run(
                pipe, callback_on_step_end=inject(2, poison), num_inference_steps=8,
                output_type="latent",
            )  # fmt: skip
            computed = handle.report().sites[0].computed
    assert torch.isfinite(frames[True]).all()
    assert (frames[True] - frames[False]).abs().max() < 1.0
    assert computed == ((0, 1, 2, 5, 6, 7) if where == "cached" else (0, 1, 2, 5, 7))
    (event,) = [e for e in (policy.restored, policy.abandoned) if e]
    assert event[1].endswith("was not finite")


def test_what_is_found_when_the_run_is_over_changes_nothing_and_is_noted(pipe):
    policy = late_policy(bands={5: ErrorBand(-9.0, 0.01)})
    with accelerate(pipe, plan=policy) as handle:
        run(pipe, num_inference_steps=8)
        (note,) = handle.report().notes
    assert note.startswith("Guard after step 5: the extrapolation error was ")
    assert note.endswith("no step was left to compute, so the plan continued.")


def test_a_report_during_a_run_changes_no_decision(pipe):
    """It may be asked of one rank alone."""
    syncs = []

    def look(*_: Any) -> dict[str, Any]:
        handle.report()
        syncs.append(handle.executor.host_syncs)
        return {}

    with accelerate(pipe, plan=late_policy()) as handle:
        run(pipe, num_inference_steps=8, callback_on_step_end=look)
    assert syncs == [0, 0, 1, 2, 2, 2, 3, 4]


def test_a_policy_that_measures_nothing_reads_nothing(pipe, reads):
    with accelerate(pipe, plan=TWO_PARTS, mix=MIX) as handle:
        run(pipe)
        assert reads == {}
        assert handle.report().host_syncs == 0
    assert reads == {"notes": 1}  # once the run is over: whether what was extrapolated was finite


# --- what is cached ---


@pytest.mark.parametrize("measures", [True, False])
def test_values_are_cached_as_long_as_they_are_read_and_no_longer(pipe, measures):
    """Step 0 while step 4 uses it; where errors are measured, the two of the line as well."""
    plan = Plan(STEPS, {4: Extrapolation(({3: 1.0, 0: 0.25},))})
    cached_steps: dict[int, list[int]] = {}

    def look(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        cached_steps[step] = sorted(handle.executor.store["target", "cond"])
        return {}

    with accelerate(pipe, plan=NotingPolicy(plan) if measures else plan) as handle:
        run(pipe, callback_on_step_end=look)
        cached = handle.executor.store
        assert cached
    if measures:
        assert cached_steps == {
            0: [0], 1: [0, 1], 2: [0, 1, 2], 3: [0, 1, 2, 3], 4: [0, 2, 3], 5: [2, 3, 5],
        }  # fmt: skip
    else:
        assert cached_steps == {0: [0], 1: [0, 1], 2: [0, 2], 3: [0, 3], 4: [0, 3], 5: [5]}
    assert cached == {}, "removal frees what is cached"


def test_what_a_forecast_reads_and_is_not_there_is_computed_and_said(pipe, stock):
    """The noise that the run started from, taken away after the first step."""

    def steal(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        handle.executor.store.noise.clear()
        return {}

    plan = Plan(STEPS, {3: Extrapolation(({2: 1.0},), noise_weight=0.5)})
    with accelerate(pipe, plan=plan) as handle:
        assert np.array_equal(run(pipe, callback_on_step_end=steal), stock)
        report = handle.report()
        assert report.steps_computed == STEPS
        assert report.notes == (
            "Computed 1 more step than planned (3), because a value was missing.",
        )
        run(pipe)
        assert handle.report().notes == ()


# --- what cannot be right ---


@pytest.mark.parametrize("name", ["prompt_embeds", "negative_prompt_embeds"])
def test_another_text_is_found_before_it_is_used(pipe, name):
    """In either branch; the same text in another tensor is no other text."""
    inputs = {"callback_on_step_end_tensor_inputs": ["latents", name]}
    for change, expected in (
        (lambda tensors: {name: tensors[name] + 1.0}, [(2, "the text changed")]),
        (lambda tensors: {name: tensors[name].add_(1.0)}, [(2, "the text changed")]),
        (lambda tensors: {name: tensors[name].clone()}, []),
    ):
        policy = NotingPolicy(NEUTRAL, MIX)
        with accelerate(pipe, plan=policy):
            run(pipe, callback_on_step_end=inject(2, change), **inputs)
        assert policy.invalid == expected


def test_latents_that_jump_are_suspicious(pipe):
    policy = NotingPolicy(NEUTRAL, MIX)
    scaled = inject(2, lambda tensors: {"latents": tensors["latents"] * 5.0})
    with accelerate(pipe, plan=policy):
        run(pipe, callback_on_step_end=scaled)
    assert (2, "the latents jumped") in policy.suspicious


@pytest.mark.parametrize("where", ["cached", "start"])
def test_a_cached_value_that_is_not_finite_is_never_used(pipe, stock, where):
    """It is found before the step that would use it; that step is computed instead."""

    def poison(tensors: Any) -> dict[str, Any]:
        store = handle.executor.store
        value = store.noise["target"] if where == "start" else store["target", "cond"][1]
        value[0, 0, 0, 0, 0] = float("nan")
        return {}

    plan = Plan(STEPS, {2: Extrapolation(({1: 1.0},), noise_weight=0.5)})
    policy = NotingPolicy(plan)
    with accelerate(pipe, plan=policy) as handle:
        frames = run(pipe, callback_on_step_end=inject(1, poison))
    assert np.array_equal(frames, stock)
    lost = {"cached": [], "start": [(1, "the cached noise was not finite")]}[where]
    assert policy.invalid == lost
    assert policy.lost == ([(1, "a cached value was not finite")] if where == "cached" else [])


def test_a_lost_value_is_restored_from_its_nearest_neighbours(pipe):
    """Step 1's of the second branch is lost: on the parabola through steps 2, 0 and 3 had they been
    there; when step 2 is computed there are 0 and 2, so on the line. Its other numbers stay."""
    found, before = {}, []

    def callback(_: Any, at: int, __: Any, tensors: Any) -> dict[str, Any]:
        cached = handle.executor.store["target", "uncond"]
        if at == 1:
            before.append(cached[1].clone())
            cached[1][0, 0, 0, 0, 0] = float("nan")
        if at == 2:
            found.update({s: v.clone() for s, v in cached.items()})
        return {}

    plan = Plan(STEPS, {4: Extrapolation(({3: 1.0, 1: 0.5, 0: 0.5}, {3: 1.0, 1: 0.5}))})
    policy = NotingPolicy(plan, MIX)
    with accelerate(pipe, plan=policy) as handle:
        assert np.isfinite(run(pipe, callback_on_step_end=callback)).all()
        times = pipe.scheduler.timesteps.tolist()
    share = (times[0] - times[1]) / (times[0] - times[2])
    line = found[0] + share * (found[2] - found[0])
    assert torch.allclose(found[1].flatten()[0], line.flatten()[0], atol=1e-5)
    assert torch.equal(found[1].flatten()[1:], before[0].flatten()[1:])


class Watched(NotingPolicy):
    """Measures nothing, and checks cached values before they are used."""

    needs_error, checks_finite = False, True


def poison_cached(handle: Any) -> Any:
    def poison(tensors: Any) -> dict[str, Any]:
        handle.executor.store["target", "cond"][1][0, 0, 0, 0, 0] = float("nan")
        return {}

    return inject(1, poison)


def test_without_a_guard_too_what_is_not_finite_is_computed_and_restored(pipe, stock):
    policy = Watched(Plan(STEPS, {2: Extrapolation(({1: 1.0},)), 4: Extrapolation(({3: 1.0},))}))
    with accelerate(pipe, plan=policy) as handle:
        frames = run(pipe, callback_on_step_end=poison_cached(handle))
        report = handle.report()
    assert np.isfinite(frames).all()
    assert report.sites[0].computed == (0, 1, 2, 3, 5)
    assert report.host_syncs == 2, "one an extrapolated step"


def test_where_the_device_may_not_be_read_the_report_says_that_the_clip_is_spoilt(pipe):
    with accelerate(pipe, plan=PLAN) as handle:
        run(pipe, callback_on_step_end=poison_cached(handle))
        (note,) = handle.report().notes
        assert note.startswith("The latents were not finite from step 3 on: the clip is broken")
        run(pipe)
        assert handle.report().notes == ()


# --- reports, experts and runs ---


def test_the_report_says_what_was_done(pipe):
    with accelerate(pipe, plan=PLAN) as handle:
        run(pipe)
        report = handle.report()
    assert {site.branch for site in report.sites} == {"cond", "uncond"}
    for site in report.sites:
        assert (site.name, site.computed, site.extrapolated) == ("output", (0, 1, 3, 5), (2, 4))
    assert report.flops_kept == pytest.approx(4 / STEPS)
    assert report.threshold is None
    assert "site output, by plan: computed 4 of 6 steps" in report.summary()
    assert report.notes == ()
    latents = 16 * 3 * 2 * 2 * 4  # channels, latent frames, height, width, bytes of float32
    assert report.cached_bytes == (2 * 2 + 1) * latents  # steps 0, 1 of two branches, and the noise


def test_both_experts_follow_one_plan():
    pipe = tiny.tiny_wan(transformer_2=True)
    stock = run(pipe)
    with accelerate(pipe, plan=PLAN) as handle:
        assert not np.array_equal(run(pipe), stock)
        report = handle.report()
    assert {site.transformer for site in report.sites} == {"transformer", "transformer_2"}
    computed = {step for site in report.sites for step in site.computed}
    assert computed == set(PLAN.computed)
    assert report.flops_kept == pytest.approx(4 / STEPS)


def test_without_guidance_there_is_one_branch(pipe):
    with accelerate(pipe, plan=PLAN) as handle:
        run(pipe, guidance_scale=1.0)
        (site,) = handle.report().sites
    assert site.computed == (0, 1, 3, 5)


def test_a_run_that_was_broken_off_leaves_nothing_for_the_next(pipe):
    class Stop(Exception):
        pass

    def stop(pipe: Any, step: int, *_: Any) -> Any:
        if step == 2:
            raise Stop
        return {}

    with accelerate(pipe, plan=PLAN):
        whole = run(pipe)
        with pytest.raises(Stop):
            run(pipe, callback_on_step_end=stop)
        assert np.array_equal(run(pipe), whole)


def test_a_plan_for_another_number_of_steps_is_refused_before_the_work(pipe, stock):
    with (
        accelerate(pipe, plan=PLAN),
        pytest.raises(ValueError, match="plan is for 6 steps, but this run has 4; accepted"),
    ):
        run(pipe, num_inference_steps=4)
    assert np.array_equal(run(pipe), stock)


def test_a_plan_is_given_alone(pipe):
    with pytest.raises(ValueError, match="plan is given with threshold; accepted: alone"):
        accelerate(pipe, plan=PLAN, threshold=0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_forecasts_have_the_dtype_of_the_predictions(dtype):
    pipe = tiny.tiny_wan()
    pipe.transformer.to(dtype)
    policy = GuardedPolicy(TWO_PARTS, [float(STEPS - s) for s in range(STEPS)], MIX)
    with accelerate(pipe, plan=policy) as handle:
        frames = run(pipe)
        cached = [v for part in handle.executor.store.values() for v in part.values()]
        assert {value.dtype for value in cached} == {dtype}
    assert np.isfinite(frames).all()


def test_another_size_after_the_first_run(pipe):
    with accelerate(pipe, plan=TWO_PARTS, mix=MIX):
        small = run(pipe)
        assert run(pipe, height=32).shape != small.shape
        assert np.array_equal(run(pipe), small)


def test_the_output_class_is_handed_back_where_the_pipeline_asks_for_it(pipe):
    from types import SimpleNamespace

    kinds = []
    with accelerate(pipe, plan=PLAN):
        forward = pipe.transformer.forward

        def asking(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs | {"return_dict": True})
            kinds.append(type(output))
            return (output.sample,)

        pipe.transformer.forward = asking
        try:
            run(pipe)
        finally:
            pipe.transformer.forward = forward
    assert len(set(kinds)) == 1 and kinds[0] not in (tuple, SimpleNamespace)


def test_both_branches_of_a_batch_make_one_guided_prediction():
    """u = 1, c = 3 and s = 4: 1 + 4 (3 - 1) = 9; what both were given is itself."""
    batch = torch.tensor([[1.0], [3.0]])
    assert guided(batch, 4.0, "batched").tolist() == [[9.0]]
    assert guided(torch.tensor([[5.0], [5.0]]), 4.0, "batched").tolist() == [[5.0]]
    assert guided(batch, 4.0, "separate") is batch
    assert guided(batch, 1.0, "batched") is batch
