"""Levels carried out on a tiny model: what is left out, what is kept, and nothing stays behind."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from test_speed import trial

from dit_accel import accelerate, bench, speed
from dit_accel.levels import Level, LevelTable, parse
from dit_accel.plans import Forecast, Plan
from dit_accel.steering import Steering
from dit_accel.takes import Clip
from dit_accel.trials import try_levels

STEPS = 6
MIX = (1.0, -3.0)
SIZE = {"height": 64, "width": 64}  # 48 tokens: three blocks of keys
ONE_BLOCK, ATTENTION, PRUNED = (parse(n) for n in ("block:0.34-0.66", "attention", "prune:0.4"))


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.tiny_wan()


def made(pipe: Any, **changes: Any) -> np.ndarray:
    draw = torch.Generator().manual_seed(0)
    given = {"num_inference_steps": STEPS, "generator": draw, "output_type": "latent"}
    return pipe(**tiny.CALL | SIZE | given | changes).frames[0].numpy()


def plan_of(levels: Mapping[int, Level], served: int | None = None) -> Plan:
    line = Forecast(tuple({served - 1: 1.0} for _ in MIX)) if served else None
    return Plan(STEPS, {served: line} if served and line else {}, levels)


@contextmanager
def calls(modules: Mapping[str, torch.nn.Module]) -> Iterator[dict[str, int]]:
    """How often each is called, below whatever wraps it later."""
    counts = dict.fromkeys(modules, 0)
    inner = {name: module.forward for name, module in modules.items()}

    def counted(name: str) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return inner[name](*args, **kwargs)

        return forward

    for name, module in modules.items():
        module.forward = counted(name)
    yield counts
    for module in modules.values():
        del module.forward


def test_without_levels_nothing_is_wrapped_and_the_clip_is_bit_equal(pipe):
    stock = made(pipe)
    with accelerate(pipe, plan=plan_of({}), mix=MIX) as handle:
        assert "forward" not in vars(pipe.transformer.blocks[1])
        assert np.array_equal(made(pipe), stock)
        assert handle.report().levels == {}


@pytest.mark.parametrize("level", [ONE_BLOCK, ATTENTION, PRUNED], ids=lambda level: level.name)
def test_steps_before_the_level_are_untouched_and_removal_restores(pipe, level):
    """At a level in the last step all latents before it are those of the stock pipeline."""
    seen: dict[str, list[torch.Tensor]] = {"stock": [], "ours": []}

    def hear(into: str) -> Any:
        def step_ended(pipe: Any, step: int, timestep: Any, kept: dict[str, Any]) -> dict[str, Any]:
            seen[into].append(kept["latents"].clone())
            return kept

        return step_ended

    stock = made(pipe, callback_on_step_end=hear("stock"))
    before = {name: set(vars(module)) for name, module in pipe.transformer.named_modules()}
    processors = [block.attn1.processor for block in pipe.transformer.blocks]
    with accelerate(pipe, plan=plan_of({STEPS - 1: level}), mix=MIX) as handle:
        ours = made(pipe, callback_on_step_end=hear("ours"))
        report = handle.report()
    assert report.levels == {STEPS - 1: level.name}
    assert all(map(torch.equal, seen["stock"][:-1], seen["ours"][:-1]))
    assert not torch.equal(seen["stock"][-1], seen["ours"][-1])
    assert not np.array_equal(stock, ours)
    assert np.array_equal(made(pipe), stock)
    assert {name: set(vars(m)) for name, m in pipe.transformer.named_modules()} == before
    assert [block.attn1.processor for block in pipe.transformer.blocks] == processors


def test_a_run_of_blocks_is_not_called_and_its_flops_are_saved(pipe):
    blocks = {str(i): block for i, block in enumerate(pipe.transformer.blocks)}
    with (
        calls(blocks) as counts,
        accelerate(pipe, plan=plan_of({3: ONE_BLOCK, 5: ONE_BLOCK}), mix=MIX) as handle,
    ):
        made(pipe)
        report = handle.report()
    assert counts == {"0": 2 * STEPS, "1": 2 * (STEPS - 2), "2": 2 * STEPS}
    given = {
        "hidden_states": torch.empty(1, 16, 3, 8, 8, device="meta"),
        "timestep": torch.empty(1, device="meta"),
        "encoder_hidden_states": torch.empty(1, 16, tiny.TEXT_WIDTH, device="meta"),
    }
    costs = bench.count_flops(pipe.transformer, (), given)
    assert report.flops_full == 2 * STEPS * costs[""]
    assert report.flops_full - report.flops_spent == 4 * costs["blocks.1"]
    assert report.steps_computed == STEPS
    assert "2 of them for less" in report.summary()
    assert report.kept_bytes > 0


def test_a_kept_residual_is_added_to_what_enters(pipe):
    """A block that doubles: its residual is its input. Reused at step 2, it is that of step 1."""
    block, entered, left = pipe.transformer.blocks[1], [], []
    block.forward = lambda tokens, *_, **__: 2 * tokens
    after = pipe.transformer.blocks[2].register_forward_pre_hook(
        lambda _, args: left.append(args[0].clone())
    )
    before = pipe.transformer.blocks[0].register_forward_hook(
        lambda _, args, out: entered.append(out.clone())
    )
    try:
        with accelerate(pipe, plan=plan_of({2: ONE_BLOCK, 4: parse("block:0.34-0.66:line")}),
                        mix=MIX):  # fmt: skip
            made(pipe)
            times = pipe.scheduler.timesteps.tolist()
    finally:
        after.remove()
        before.remove()
        del block.forward
    cond = slice(0, None, 2)
    x, y = entered[cond], left[cond]
    assert torch.equal(y[1], 2 * x[1])
    assert torch.equal(y[2], x[2] + x[1])
    slope = (times[4] - times[3]) / (times[3] - times[1])  # full steps 1 and 3 are kept
    assert torch.allclose(y[4], x[4] + x[3] + slope * (x[3] - x[1]), atol=1e-5)


def test_attentions_are_reused_and_the_rest_is_fresh(pipe):
    modules = {"attn": pipe.transformer.blocks[1].attn1, "text": pipe.transformer.blocks[1].attn2}
    with (
        calls(modules) as counts,
        accelerate(pipe, plan=plan_of({3: ATTENTION}, served=4), mix=MIX) as handle,
    ):
        made(pipe)
        report = handle.report()
    assert counts == {"attn": 2 * (STEPS - 2), "text": 2 * (STEPS - 1)}
    assert report.levels == {3: "attention"}
    assert report.steps_computed == STEPS - 1


def test_a_density_of_nearly_all_is_dense_attention(pipe):
    """Of three blocks of keys all are kept: other sums, the same values."""
    stock = made(pipe)
    with accelerate(pipe, plan=plan_of({3: parse("prune:0.99")}), mix=MIX) as handle:
        assert np.allclose(made(pipe), stock, atol=1e-4)
        assert handle.report().levels == {3: "prune:0.99"}


def test_a_level_with_nothing_kept_computes(pipe):
    """At the first step there is no residual, and no basis, yet."""
    stock = made(pipe)
    for level in (ONE_BLOCK, ATTENTION, PRUNED):
        with accelerate(pipe, plan=plan_of({0: level}), mix=MIX) as handle:
            assert np.array_equal(made(pipe), stock)
            assert handle.report().levels == {}


def test_no_device_read_is_needed(pipe):
    with accelerate(pipe, plan=plan_of({2: ONE_BLOCK, 3: ATTENTION, 4: PRUNED}), mix=MIX) as handle:
        made(pipe)
        assert handle.report().device_reads == 0
        assert set(handle.report().levels) == {2, 3, 4}


def test_levels_end_where_the_guard_takes_over():
    plan = plan_of({3: ONE_BLOCK}, served=4)
    steering = Steering(plan, [5.0, 4, 3, 2, 1, 0], MIX)
    assert steering.levels == {3: ONE_BLOCK}
    steering.trip(1, "the text changed")
    assert steering.levels == {}
    assert Steering(plan, [5.0, 4, 3, 2, 1, 0], MIX, trusted=False).levels == {}


def test_spans_that_cross_are_refused_and_nothing_is_changed(pipe):
    crossing = {2: parse("block:0-0.66"), 3: parse("block:0.34-1")}
    with pytest.raises(ValueError, match=r"blocks 0 to 2 and 1 to 3; accepted: apart, or one insi"):
        accelerate(pipe, plan=plan_of(crossing), mix=MIX)
    assert "forward" not in vars(pipe.transformer)
    assert "forward" not in vars(pipe.transformer.blocks[0])


def test_a_family_without_such_sites_is_refused():
    run = trial("hunyuan-video")
    other = speed.build(run)
    plan = Plan(run.clip.steps, {}, {1: ATTENTION})
    with pytest.raises(ValueError, match="level is 'attention'; accepted for hunyuan-video: those"):
        accelerate(other, plan=plan)


def test_a_pilot_plans_levels_where_the_profile_says_that_they_pay(pipe, tiny_profile):
    """Without error, at a tenth of a step: the slower plan costs no more than the faster one."""
    share = torch.tensor([0.1], dtype=torch.float64)
    table = LevelTable((ATTENTION,), (1,), torch.zeros(1, 1, 10).double(), share, share, "none", 1)
    slow, fast = (
        dataclasses.replace(rung, psnr_db=torch.full((4,), db, dtype=torch.float64))
        for rung, db in zip(tiny_profile.rungs, (40.0, 30.0), strict=True)
    )
    profile = dataclasses.replace(tiny_profile, levels=table, rungs=(slow, fast))
    call = {"num_inference_steps": 10, "height": 16, "width": 16, "num_frames": 5}
    with accelerate(pipe, speedup=2, profile=profile) as handle:
        made(pipe, **call)
        report = handle.report()
    assert report.planned == slow.computed
    assert set(report.levels.values()) == {"attention"}
    assert report.prediction is not None and report.prediction["computed"] < len(slow.computed)
    assert any("are computed for less" in note for note in report.notes)
    without = dataclasses.replace(profile, levels=None)
    for settings in ({"profile": without}, {"profile": profile, "static": True}):
        with accelerate(pipe, speedup=2, **settings) as handle:
            made(pipe, **call)
            report = handle.report()
        assert (report.planned, report.levels) == (fast.computed, {})


# --- trials ---


def clip_of(prompt: str = "a green square") -> Clip:
    return Clip(prompt, "blue square", 0, STEPS, 4.0, 64, 64, 9, max_sequence_length=16)


def test_trials_leave_the_run_and_the_pipeline_alone(pipe):
    heard: list[torch.Tensor] = []
    stock = made(pipe)
    levels = [parse("prune:0.99"), ATTENTION, ONE_BLOCK]
    step = type(pipe.scheduler).step

    class Listening(type(pipe.scheduler)):  # type: ignore[misc]
        def step(self, output: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            heard.append(output.clone())
            return step(self, output, *args, **kwargs)

    kind, pipe.scheduler.__class__ = type(pipe.scheduler), Listening
    try:
        made(pipe, prompt="a green square")
        alone = list(heard)
        heard.clear()
        table = try_levels(pipe, [clip_of()], levels, ages=(1, 2))
    finally:
        pipe.scheduler.__class__ = kind
    assert all(map(torch.equal, alone, heard[:STEPS]))
    assert len(heard) == 2 * STEPS  # a run an age
    assert np.array_equal(made(pipe), stock)
    assert table.errors.shape == (3, 2, STEPS)
    assert (table.errors[0] < 1e-4).all()  # nothing is left out
    assert (table.errors[1:, :, 2] > 1e-4).all()
    assert float(table.flops[0]) >= 1  # scores come beside it
    assert float(table.flops[1]) < 1 and float(table.flops[2]) < 0.8
    assert (table.seconds > 0).all()
    assert (table.device, table.clips) == ("cpu", 1)


def test_an_older_value_errs_more(pipe):
    table = try_levels(pipe, [clip_of()], [ONE_BLOCK], ages=(1, 2))
    assert float(table.errors[0, 1, 4]) > float(table.errors[0, 0, 4])


def test_an_error_is_that_of_the_guided_prediction(pipe):
    """By hand at step 2, age 1: the level's run has the stock latents up to there."""
    outputs: dict[str, list[torch.Tensor]] = {"stock": [], "level": []}

    def listen(name: str) -> Any:
        return pipe.transformer.register_forward_hook(
            lambda _, args, out: outputs[name].append(out[0].clone())
        )

    call = {"prompt": "a green square"}
    hook = listen("stock")
    made(pipe, **call)
    hook.remove()
    with accelerate(pipe, plan=plan_of({2: ONE_BLOCK}), mix=MIX):
        hook = listen("level")
        made(pipe, **call)
        hook.remove()
    full, ours = (o[5] + 4.0 * (o[4] - o[5]) for o in (outputs["stock"], outputs["level"]))
    by_hand = float((ours - full).norm() / full.norm())
    table = try_levels(pipe, [clip_of()], [ONE_BLOCK], ages=(1,))
    assert float(table.errors[0, 0, 2]) == pytest.approx(by_hand, rel=1e-4)


def test_bad_trials_are_named(pipe):
    with pytest.raises(ValueError, match="0 clips, 1 levels, tried is 10; accepted: 1 or more"):
        try_levels(pipe, [], [ONE_BLOCK])
    with pytest.raises(ValueError, match=r"ages is \(1, 3\); accepted: rising, from 1 to 2"):
        try_levels(pipe, [clip_of()], [ONE_BLOCK], ages=(1, 3))
    short = dataclasses.replace(clip_of(), steps=2)
    with pytest.raises(ValueError, match=r"ages is \(1,\); accepted: rising, from 1 to 0"):
        try_levels(pipe, [short], [ONE_BLOCK], ages=(1,))
