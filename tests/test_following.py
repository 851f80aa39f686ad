"""A plan carried out at the denoiser's output, on real pipelines of tiny width."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import torch

from dit_accel import accelerate
from dit_accel.planner import Plan

STEPS = 6
PLAN = Plan(STEPS, {2: {1: 2.0, 0: -1.0}, 4: {3: 1.0}})
NEUTRAL = Plan(STEPS, {})


def run(pipe: Any, **changes: Any) -> Any:
    arguments = tiny.CALL | {"num_inference_steps": STEPS} | changes
    return pipe(**arguments, generator=torch.Generator().manual_seed(0)).frames


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.tiny_wan()


@pytest.fixture(scope="module")
def stock(pipe: Any) -> Any:
    return run(pipe)


def test_a_plan_that_computes_all_is_bit_equal_and_removal_restores(pipe, stock):
    with accelerate(pipe, plan=NEUTRAL) as handle:
        assert np.array_equal(run(pipe), stock)
        assert handle.report().steps_computed == STEPS
    with accelerate(pipe, plan=PLAN):
        assert not np.array_equal(run(pipe), stock)
    assert np.array_equal(run(pipe), stock)
    assert "forward" not in vars(pipe.transformer)


def test_served_steps_are_the_weighted_sums_of_what_was_computed(pipe):
    """Against a written-out sampler: the stock pipeline with a hook that swaps the outputs."""
    seen: dict[tuple[int, int], torch.Tensor] = {}
    calls = iter(range(2 * STEPS))

    def swap(module: Any, args: Any, output: Any) -> Any:
        step, branch = divmod(next(calls), 2)
        weights = PLAN.forecasts.get(step)
        seen[step, branch] = output[0] if weights is None else sum(
            w * seen[read, branch] for read, w in weights.items()
        )  # fmt: skip
        return (seen[step, branch],)

    with accelerate(pipe, plan=PLAN):
        planned = run(pipe)
    hook = pipe.transformer.register_forward_hook(swap)
    try:
        written_out = run(pipe)
    finally:
        hook.remove()
    assert np.abs(planned - written_out).max() < 1e-5


def test_the_report_says_what_was_done(pipe):
    with accelerate(pipe, plan=PLAN) as handle:
        run(pipe)
        report = handle.report()
    assert {site.branch for site in report.sites} == {"cond", "uncond"}
    for site in report.sites:
        assert (site.name, site.computed, site.forecast) == ("output", (0, 1, 3, 5), (2, 4))
    assert report.flops_kept == pytest.approx(4 / STEPS)
    assert report.threshold is None
    assert "site output, by plan: computed 4.0 of 6 steps" in report.summary()
    latents = 16 * 3 * 2 * 2 * 4  # channels, latent frames, height, width, bytes of float32
    assert report.kept_bytes == 2 * 2 * latents  # steps 0 and 1, of two branches


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
        pytest.raises(ValueError, match="the plan is for 6 steps; this run has 4"),
    ):
        run(pipe, num_inference_steps=4)
    assert np.array_equal(run(pipe), stock)


def test_a_plan_is_given_alone(pipe):
    with pytest.raises(ValueError, match="plan is given with threshold, site or config"):
        accelerate(pipe, plan=PLAN, threshold=0.5)
