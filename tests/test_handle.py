"""accelerate() on tiny pipelines of Wan: what `contract/` does not try on every family."""

import dataclasses
import threading
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from calls import LOOSE, STEPS, call, state_of
from flop_counter import counted_flops, forward_arguments
from tiny import tiny_wan

import dit_accel
from dit_accel import EDCW, accelerate
from dit_accel.caching import loops
from dit_accel.core.families import FAMILIES, SITES


@pytest.mark.parametrize("site", SITES)
def test_branches_share_their_decisions_and_both_ends_are_computed(site):
    pipe = tiny_wan()
    with accelerate(pipe, site=site, config=LOOSE) as handle:
        call(pipe)
        report = handle.report()
    assert set(report.branches) == {"cond", "uncond"}
    by_site = {}
    for one in report.sites:
        by_site.setdefault(one.name, set()).add((one.computed, one.cached))
        assert {0, 1, STEPS - 1} <= set(one.computed)
        assert sorted(one.computed + one.cached) == list(range(STEPS))
        assert set(one.drift) == set(one.computed) - {0}
    assert all(len(actions) == 1 for actions in by_site.values())
    expected = {"attention": 3, "block": 3, "model": 1}[site]
    assert len(by_site) == expected


def test_one_device_read_a_step():
    pipe = tiny_wan()
    with accelerate(pipe, threshold=0.0, site="attention") as handle:
        call(pipe)
        assert handle.report().host_syncs == STEPS - 1  # nothing to compare at step 0


def test_no_guidance_is_one_branch_and_the_same_steps():
    pipe = tiny_wan()
    with accelerate(pipe, config=LOOSE) as handle:
        call(pipe, guidance_scale=1.0)
        (site,) = handle.report().sites
    assert site.branch == "cond"
    assert sorted(site.computed + site.cached) == list(range(STEPS))


def test_two_experts_keep_apart_and_each_begins_with_a_compute():
    pipe = tiny_wan(transformer_2=True)
    with accelerate(pipe, config=LOOSE) as handle:
        call(pipe)
        sites = handle.report().sites
    steps = {s.transformer: sorted(s.computed + s.cached) for s in sites}
    assert sorted(steps["transformer"] + steps["transformer_2"]) == list(range(STEPS))
    assert steps["transformer"][-1] < steps["transformer_2"][0]
    for site in sites:
        assert site.computed[0] == steps[site.transformer][0]


def test_two_pipelines_do_not_touch_each_other():
    one, two = tiny_wan(seed=1), tiny_wan(seed=2)
    stock_one, stock_two = call(one), call(two)
    with accelerate(one, config=LOOSE):
        fast_one = call(one)
        assert np.array_equal(call(two), stock_two)
        with accelerate(two, site="block", config=LOOSE):
            fast_two = call(two)
            assert np.array_equal(call(one), fast_one)
            assert not np.array_equal(fast_two, stock_two)
        assert np.array_equal(call(two), stock_two)
    assert np.array_equal(call(one), stock_one)


def test_another_size_after_the_first_run():
    pipe = tiny_wan()
    with accelerate(pipe, site="attention", config=LOOSE):
        small = call(pipe)
        large = call(pipe, height=32, width=32)
        assert large.shape != small.shape
        assert np.array_equal(call(pipe), small)


def test_what_somebody_else_wraps_meanwhile_stays():
    pipe = tiny_wan()
    stock = call(pipe)
    handle = accelerate(pipe, config=LOOSE)
    fast, below = call(pipe), pipe.transformer.forward
    calls: list[int] = []

    def theirs(*args, **kwargs):
        calls.append(1)
        return below(*args, **kwargs)

    pipe.transformer.forward = theirs
    assert np.array_equal(call(pipe), fast) and calls
    handle.remove()
    assert pipe.transformer.forward is theirs
    assert np.array_equal(call(pipe), stock)


def test_an_attribute_that_somebody_else_wraps_stays_and_passes_us_by():
    pipe = tiny_wan()
    stock = call(pipe)
    handle = accelerate(pipe, config=LOOSE)
    fast, ours, calls = call(pipe), pipe.transformer.cache_context, []

    def theirs(*args, **kwargs):
        calls.append(1)
        return ours(*args, **kwargs)

    pipe.transformer.cache_context = theirs
    assert np.array_equal(call(pipe), fast) and calls
    handle.remove()
    assert pipe.transformer.cache_context is theirs
    assert not vars(pipe.transformer).keys() & {"_compiled_call_impl", "compile"}
    assert np.array_equal(call(pipe), stock)
    with accelerate(pipe, config=LOOSE):
        assert np.array_equal(call(pipe), fast)


def test_values_that_are_not_finite_are_never_reused():
    pipe = tiny_wan()
    with accelerate(pipe, config=LOOSE) as handle:
        call(pipe, prompt=None, prompt_embeds=torch.full((1, 16, 32), float("nan")),
             negative_prompt=None, negative_prompt_embeds=torch.zeros(1, 16, 32))  # fmt: skip
        assert all(not site.cached for site in handle.report().sites)


def test_steps_without_a_cache_context_are_found_by_the_timestep():
    pipe = tiny_wan()
    with accelerate(pipe, config=LOOSE) as handle:
        call(pipe)
        expected = handle.report()
    with accelerate(pipe, config=LOOSE) as handle:
        ours = pipe.transformer.cache_context
        pipe.transformer.cache_context = lambda *args, **kwargs: nullcontext()
        call(pipe)
        got = handle.report()
        pipe.transformer.cache_context = ours
    assert [(s.branch, s.computed, s.cached) for s in got.sites] == [
        (s.branch, s.computed, s.cached) for s in expected.sites
    ]


def test_report_before_any_run_and_after_removal():
    pipe = tiny_wan()
    handle = accelerate(pipe)
    with pytest.raises(RuntimeError, match="no run to report yet"):
        handle.report()
    call(pipe)
    handle.remove()
    report = handle.report()
    assert report.steps == STEPS and "wan, site model" in report.summary()
    assert report.to_dict()["flops_kept"] == report.flops_kept


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"site": "layer"}, "site is 'layer'; accepted: attention, block, model"),
        ({"threshold": -1}, "threshold is -1; accepted: a finite number >= 0"),
    ],
)
def test_bad_arguments_are_named_and_nothing_is_installed(arguments, text):
    pipe = tiny_wan()
    before = state_of(pipe)
    with pytest.raises(ValueError, match=text):
        accelerate(pipe, **arguments)
    assert state_of(pipe) == before


def test_a_pipeline_without_a_transformer_or_a_scheduler_is_refused():
    class Other:
        transformer = torch.nn.Linear(1, 1)

    with pytest.raises(ValueError, match=f"with a Linear; accepted: .*{', '.join(FAMILIES)}"):
        accelerate(Other())
    Other.transformer = None
    with pytest.raises(ValueError, match="with no transformer; accepted: "):
        accelerate(Other())
    pipe = tiny_wan()
    pipe.scheduler = None
    with pytest.raises(ValueError, match="with a WanTransformer3DModel; accepted: a scheduler"):
        accelerate(pipe, speedup=2)


def giving(pipe, more):
    """Let a forward give something beside its prediction; the calls are counted in the list."""
    inner, calls = pipe.transformer.forward, []

    def two(*args, **kwargs):
        calls.append(1)
        (video,) = inner(*args, **kwargs)
        return video, more(video)

    pipe.transformer.forward = two
    return calls


@pytest.mark.usefixtures("without_prior")
def test_a_forward_that_gives_two_predictions_is_planned():
    """As LTX-2's, which predicts video and audio."""
    pipe = tiny_wan()
    calls = giving(pipe, lambda video: video[:, :, :1])
    stock, full = call(pipe), len(calls)
    with accelerate(pipe, speedup=2.0) as handle:
        assert np.array_equal(call(pipe), stock)
        calls.clear()
        assert not np.array_equal(call(pipe), stock)
        report = handle.report()
    assert len(calls) == sum(len(site.computed) for site in report.sites) == full // 2
    assert np.array_equal(call(pipe), stock)


def test_a_forward_that_gives_something_else_is_computed_whole():
    """As AnyFlow's, which gives a cache of keys and values back."""
    pipe = tiny_wan()
    giving(pipe, lambda _: {"cache": 1})
    stock = call(pipe)
    with accelerate(pipe, speedup=2.0) as handle:
        for _ in range(2):
            assert np.array_equal(call(pipe), stock)
        expected = (
            "Every step was computed: a forward returns Tensor, dict; accepted: tensors only."
        )
        assert expected in handle.report().notes
        assert handle.report().steps_computed == handle.report().steps
    assert np.array_equal(call(pipe), stock)


def test_flops_kept_by_hand():
    """Model site: a reused step saves its three blocks, and nothing else of the forward."""
    pipe = tiny_wan()
    calls = forward_arguments(pipe.transformer)
    with accelerate(pipe, config=LOOSE) as handle:
        call(pipe)
        report = handle.report()
    costs = counted_flops(pipe.transformer, *calls[0])
    blocks = sum(costs[f"blocks.{i}"] for i in range(3))
    reused = len(report.sites[0].cached)
    assert report.flops_full == 2 * STEPS * costs[""]
    assert report.flops_spent == report.flops_full - 2 * reused * blocks
    assert 0 < blocks < costs[""]


def test_public_names_are_there():
    for name in dit_accel.__all__:
        assert getattr(dit_accel, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dit_accel.nothing  # noqa: B018


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("site", SITES)
def test_an_extrapolation_is_the_polynomial_through_the_cached_values(site, order):
    """First values are cached, later ones extrapolated; drift is of what would have been used."""
    pipe = tiny_wan()
    with accelerate(pipe, site=site, config=EDCW(threshold=1e9, first=3, order=order)) as handle:
        clip = call(pipe)
        report = handle.report()
    one = report.sites[0]
    assert one.extrapolated and not one.cached  # three steps are computed before the first window
    assert sorted(one.computed + one.not_computed) == list(range(STEPS))
    assert report.cached_bytes % (order + 1) == 0
    with accelerate(pipe, site=site, config=EDCW(threshold=1e9, first=3)) as handle:
        assert not np.array_equal(call(pipe), clip)
        assert handle.report().cached_bytes * (order + 1) == report.cached_bytes
        assert handle.report().sites[0].drift[1] == one.drift[1]  # one cached value: the same
        assert handle.report().sites[0].drift[2] != one.drift[2]


def test_a_forecast_with_threshold_zero_is_the_stock_clip():
    pipe = tiny_wan()
    stock = call(pipe)
    with accelerate(pipe, config=EDCW(threshold=0.0, order=1)):
        assert np.array_equal(call(pipe), stock)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("given", [{"site": "model", "config": LOOSE}, {"speedup": 2.0}], ids=str)
def test_flops_are_counted_in_every_dtype(given, dtype):
    whole = tiny_wan()
    with accelerate(whole, **given) as handle:
        call(whole, output_type="latent")
        expected = handle.report().flops_full
    pipe = tiny_wan().to(dtype)
    with accelerate(pipe, **given) as handle:
        call(pipe, output_type="latent")
        report = handle.report()
    assert report.flops_full == expected, report.notes


def test_forwards_are_counted_once_for_all_reports_of_a_run(monkeypatch):
    from dit_accel.core import flops

    pipe, counted = tiny_wan(), []
    inner = flops.forward_costs
    monkeypatch.setattr(flops, "forward_costs", lambda *a: counted.append(1) or inner(*a))
    with accelerate(pipe, config=LOOSE) as handle:
        call(pipe)
        first = handle.report()
        assert handle.report() == first
        assert len(counted) == 1, "both branches have the same inputs"
        call(pipe, height=32, width=32)
        assert handle.report().flops_full > first.flops_full
    assert len(counted) == 2


@pytest.mark.composes("plan", "other diffusers cache", limit="the predicted quality does not hold")
def test_another_cache_is_named():
    from diffusers import FirstBlockCacheConfig

    pipe = tiny_wan()
    with accelerate(pipe, speedup=2.0) as handle:
        call(pipe)
        call(pipe)
        assert handle.report().prediction is not None
        pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))
        call(pipe)
        report = handle.report()
    assert report.prediction is None
    assert any("cache of diffusers on" in note for note in report.notes)


LIMIT = {"limit": "the FLOPs that it saves are not counted"}
BESIDE_A_CACHE = [
    pytest.param(given, marks=pytest.mark.composes(cell, "other diffusers cache", **LIMIT), id=cell)
    for cell, given in {
        "static plan": {"speedup": 2.0, "static": True},
        "packed plan": {"speedup": 2.0, "cache_memory": 1},
        **{f"windows at {site}": {"config": LOOSE, "site": site} for site in SITES},
        "UniCP": {"accel": "unicp-paper", "threshold": 1e9},
    }.items()
]


@pytest.mark.parametrize("given", BESIDE_A_CACHE)
def test_another_cache_goes_with_every_technique_and_is_named(given):
    from diffusers import FirstBlockCacheConfig

    pipe = tiny_wan()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.05))
    alone = call(pipe)
    with accelerate(pipe, **given) as handle:
        both = call(pipe)
        assert np.isfinite(both).all() and not np.array_equal(both, alone)
        assert any(LIMIT["limit"] in note for note in handle.report().notes)
        assert handle.report().steps_computed < STEPS
    assert np.array_equal(call(pipe), alone)


def test_several_loops_of_which_one_is_not_counted():
    pipe = tiny_wan()
    with accelerate(pipe, config=LOOSE) as handle:
        call(pipe)
        one = handle.report()
    both = loops.joined([one, one])
    assert both.flops_full == 2 * one.flops_full and both.flops_kept == one.flops_kept
    other = loops.joined([one, dataclasses.replace(one, flops_full=None, flops_spent=None)])
    assert other.flops_full is other.flops_spent is other.flops_kept is None


@pytest.mark.parametrize("given", [{"config": LOOSE}, {"speedup": 2.0}], ids=["windows", "plan"])
def test_the_report_of_an_interrupted_run_is_of_what_ran(given):
    pipe = tiny_wan()

    def stop(pipe, step, timestep, tensors):
        if step == 5:
            raise KeyboardInterrupt
        return tensors

    with accelerate(pipe, **given) as handle:
        call(pipe)
        call(pipe)
        whole = handle.report()
        with pytest.raises(KeyboardInterrupt):
            call(pipe, callback_on_step_end=stop)
        report = handle.report()
        assert (report.steps_run, report.steps) == (6, STEPS)
        assert report.flops_full == whole.flops_full // 2
        assert 0 < report.steps_computed < 6 and report.seconds > 0
        assert f"{round(report.steps_computed, 1):g} of 6 steps" in report.summary()
        assert "stopped after 6 of 12 steps" in report.summary()
        call(pipe)
        assert "stopped" not in handle.report().summary()


@pytest.mark.usefixtures("without_prior")
@pytest.mark.parametrize("given", [{"speedup": 2.0}, {"quality": 30.0}], ids=["speedup", "quality"])
def test_a_recorded_run_that_is_not_finite_gives_no_plan(given):
    pipe = tiny_wan()
    sick = {"prompt": None, "prompt_embeds": torch.full((1, 16, 32), torch.nan)}
    stock = call(pipe)
    with accelerate(pipe, **given) as handle:
        call(pipe, **sick)
        assert "had predictions that were not finite" in handle.report().notes[0]
        for _ in range(2):
            assert np.array_equal(call(pipe), stock)
            if "planned from it" in " ".join(handle.report().notes):
                break
        else:
            raise AssertionError("it is never recorded")
        call(pipe)
        assert not any("No profile" in note for note in handle.report().notes)


def test_a_handle_is_entered_once_and_not_after_it_was_removed():
    pipe = tiny_wan()
    with accelerate(pipe, config=LOOSE) as handle:
        with pytest.raises(RuntimeError, match="was entered before; accepted: a new accelerate"):
            handle.__enter__()
        call(pipe)
        assert handle.report().steps_computed < STEPS
    with pytest.raises(RuntimeError, match="was removed before; accepted: a new accelerate"):
        handle.__enter__()


@pytest.mark.parametrize("site", SITES)
def test_reports_that_another_thread_asks_for_in_mid_run_change_nothing(site):
    pipe = tiny_wan()
    seen = []

    def ask():
        seen.append(handle.report())

    def elsewhere(module, *_):
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()

    with accelerate(pipe, site=site, config=LOOSE) as handle:
        fast = call(pipe)
        report = handle.report()
        hook = pipe.transformer.blocks[1].register_forward_hook(elsewhere)
        assert np.array_equal(call(pipe), fast)
        hook.remove()
        assert seen and handle.report().host_syncs == report.host_syncs
        thread = threading.Thread(target=lambda: call(pipe))
        thread.start()
        thread.join()
        assert handle.report().sites == report.sites, "of a run that is over"


WAYS = {"speedup": {"speedup": 2.0}} | {site: {"site": site, "config": LOOSE} for site in SITES}


@pytest.mark.parametrize("way", WAYS)
def test_a_transformer_that_is_called_beside_a_run_is_stock(way):
    """By a user, before and after a call, and in a callback; with a third text in every step."""
    pipe = tiny_wan()
    draw = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 16, 3, 2, 2, generator=draw)
    text = torch.randn(1, 16, 32, generator=draw)

    @torch.no_grad()
    def beside():
        return pipe.transformer(latents, torch.tensor([77]), text, return_dict=False)[0]

    def in_a_step(pipe, step, time, tensors):
        with pipe.transformer.cache_context("cond"):  # named as those of the pipeline
            found.append(beside())
        found.append(beside())
        return tensors

    stock, found = beside(), []
    with accelerate(pipe, **WAYS[way]) as handle:
        found.append(beside())
        call(pipe)
        fast = call(pipe)
        report = handle.report()
        found.append(beside())
        call(pipe, num_inference_steps=8)
        assert np.array_equal(call(pipe, callback_on_step_end=in_a_step), fast)
        assert handle.report().sites == report.sites
        assert report.steps_computed < STEPS
    assert len(found) == 2 + 2 * STEPS and all(torch.equal(one, stock) for one in found)


def own_loop(pipe):
    """A denoising loop that a user wrote, with arguments by position."""
    draw = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 16, 3, 2, 2, generator=draw)
    texts = torch.randn(2, 1, 16, 32, generator=draw)
    pipe.scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        for time in pipe.scheduler.timesteps:
            cond, uncond = (
                pipe.transformer(latents, time.expand(1), text, return_dict=False)[0]
                for text in texts
            )
            guided = uncond + 4 * (cond - uncond)
            latents = pipe.scheduler.step(guided, time, latents, return_dict=False)[0]
    return latents


@pytest.mark.parametrize("way", WAYS)
def test_a_loop_of_the_users_own_is_a_run(way):
    pipe = tiny_wan()
    stock = own_loop(pipe)
    with accelerate(pipe, **WAYS[way]) as handle:
        own_loop(pipe)
        assert not torch.equal(own_loop(pipe), stock)
        report = handle.report()
        assert report.steps == STEPS and report.steps_computed < STEPS
        assert report.branches == ("cond", "uncond")
    assert torch.equal(own_loop(pipe), stock)


def test_a_context_that_another_thread_enters_is_not_this_ones():
    pipe = tiny_wan()
    with accelerate(pipe, threshold=0.0) as handle:
        entered, go_on = threading.Event(), threading.Event()

        def other():
            with pipe.transformer.cache_context("uncond"):
                entered.set()
                go_on.wait(20)

        thread = threading.Thread(target=other)
        with pipe.transformer.cache_context("cond"):
            thread.start()
            assert entered.wait(20)
            found = handle._session._context
            go_on.set()
            thread.join()
            assert found == handle._session._context == ("cond", None)


def test_a_run_that_is_thought_to_be_cut_is_computed_and_the_next_one_is_planned():
    pipe = tiny_wan()
    with accelerate(pipe, speedup=2.0) as handle:
        for _ in range(2):
            call(pipe, num_inference_steps=8)
        handle._session.unused = 1  # as of a call whose last loop left a step out
        call(pipe, num_inference_steps=8)
        short = "the run is a part of 8 steps, and 7 steps are too few for a plan"
        assert short in handle.report().notes[0]
        call(pipe, num_inference_steps=8)
        assert handle.report().steps_computed == 4
