"""Kinds of runs on every family and technique: half precision, two experts, several prompts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from techniques import ENGINES, KINDS, combinations, is_equal
from tiny_models import STEPS, TinyModel

from dit_accel import accelerate


def bfloat16(pipe: Any) -> None:
    pipe.to(torch.bfloat16)


def cast(arguments: dict[str, Any]) -> dict[str, Any]:
    """Embeddings in bfloat16."""

    def one(value: Any) -> Any:
        is_number = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.bfloat16() if is_number else value

    return {name: one(value) for name, value in arguments.items()}


@combinations("bf16", variants=False, only=KINDS, others=ENGINES)
def test_a_run_in_bfloat16(workbench, model, technique):
    changes = cast(model.arguments) | technique.changes
    check(workbench, model, workbench.pipe(model, bfloat16), technique, changes, "bfloat16")


def check(
    workbench: Any, model: TinyModel, pipe: Any, technique: Any, changes: dict[str, Any], kind: str
) -> None:
    """Neutral is stock, loose is finite and reported, removed is stock."""
    stock = workbench.clip(model, technique, kind, lambda: model.run(pipe, **changes))
    with accelerate(pipe, **technique.neutral(model, pipe)):
        for _ in range(1 + technique.recorded(model)):
            assert is_equal(model.run(pipe, **changes), stock)
    with accelerate(pipe, **technique.loose(model, pipe)) as handle:
        for _ in range(1 + technique.recorded(model)):
            fast = model.run(pipe, **changes)
        report = handle.report()
    assert fast.isfinite().all() and not torch.equal(fast, stock)
    assert report.steps == STEPS and fast.dtype == stock.dtype
    assert is_equal(model.run(pipe, **changes), stock)


AUTOCAST = ("windows-attention", "unicp", "sliced", "speedup")


@combinations(variants=False, only=AUTOCAST, others=ENGINES)
def test_a_run_under_autocast(workbench, model, technique):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        check(workbench, model, workbench.pipe(model), technique, technique.changes, "autocast")


@combinations(
    "several prompts", variants=False, only=KINDS, others=ENGINES, without=("reposition",)
)
def test_several_prompts_in_one_call(workbench, model, technique):
    if model.family == "wan-vace":
        pytest.skip("the pipeline makes one clip a call")
    pipe = workbench.pipe(model)
    check(workbench, model, pipe, technique, twice(model.arguments), "several prompts")


def twice(arguments: dict[str, Any]) -> dict[str, Any]:
    """The prompt twice, as text or as embeddings; the clips differ in their noise."""
    given: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor):
            given[name] = torch.cat([value, 2 * value if value.is_floating_point() else value])
        elif name in ("prompt", "negative_prompt") and value is not None:
            given[name] = [value, "a green triangle"]
    return given


@combinations("two experts", models=("wan-two-experts",))
def test_two_experts_have_their_own_values(workbench, model, technique):
    pipe = workbench.pipe(model)
    with accelerate(pipe, **technique.loose(model, pipe)) as handle:
        for _ in range(1 + technique.recorded(model)):
            model.run(pipe, **technique.changes)
        sites = handle.report().sites
    steps: dict[str, set[int]] = {"transformer": set(), "transformer_2": set()}
    for site in sites:
        steps[site.transformer].update(site.computed, site.not_computed, site.pruned, site.blended)
    assert steps["transformer"] | steps["transformer_2"] == {*range(STEPS)}
    assert max(steps["transformer"]) < min(steps["transformer_2"])
