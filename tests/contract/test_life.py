"""From installing to removing, on every family and technique: neutral, loose, reported, restored.

The fixture `stock` checks after each test that nothing is left behind.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pytest
import torch
from calls import state_of
from techniques import ENGINES, combinations, is_equal, refusals
from tiny_models import FURTHER, MODELS, STEPS, TinyModel

from dit_accel import FAMILIES, accelerate
from dit_accel.core.interceptor import Forward, ForwardCall, Interceptor
from dit_accel.core.report import SiteReport
from dit_accel.core.session import Session
from dit_accel.models.families import Family
from dit_accel.models.pipelines import record


def test_every_family_has_a_tiny_model():
    missing = {row.name for row in FAMILIES.values()} - {one.family for one in MODELS.values()}
    newest = version("diffusers") == record()[0]  # older ones do not have all
    assert missing <= (set() if newest else {*FURTHER})


@combinations()
def test_neutral_is_the_stock_clip_bit_for_bit(stock, model, technique):
    pipe, clip = stock
    with accelerate(pipe, **technique.neutral(model, pipe)) as handle:
        for _ in range(1 + technique.recorded(model)):
            assert is_equal(model.run(pipe, **technique.changes), clip)
        report = handle.report()
    assert report.steps_computed == STEPS
    if technique.cell != "scene" and model.row.blocks:
        assert report.flops_kept == 1.0


@combinations()
def test_loose_changes_the_clip_and_the_report_is_true(stock, model, technique):
    pipe, clip = stock
    with accelerate(pipe, **technique.loose(model, pipe)) as handle:
        if technique.recorded(model):
            assert is_equal(model.run(pipe, **technique.changes), clip)
        with counted(pipe, model.row) as calls:
            fast = model.run(pipe, **technique.changes)
        report = handle.report()
    assert fast.isfinite().all() and not torch.equal(fast, clip)
    assert report.steps == STEPS
    assert (report.flops_kept is not None) == bool(model.row.blocks)
    assert ("of the FLOPs" in report.summary()) == bool(model.row.blocks)
    assert any("FLOPs are not counted" in note for note in report.notes) != bool(model.row.blocks)
    if technique.cell not in ("UniCP", "scene"):  # tiny attention gains nothing from pruning
        assert (report.flops_kept or 0) < 1 and report.steps_computed < STEPS
    if technique.name == "speedup":  # a plan weighs only what a run has
        assert report.steps_computed == STEPS / 2, report.notes
    for (transformer, attention), number in calls.items():
        ours = [s for s in report.sites if s.transformer == transformer and _holds(s, attention)]
        reported = sum(len(s.computed) + len(s.pruned) + len(s.blended) for s in ours)
        assert number == reported, f"{transformer}.{attention}"


@contextlib.contextmanager
def counted(pipe: Any, family: Family) -> Iterator[Counter[tuple[str, str]]]:
    """Calls of the first linear layer of every self-attention: what was really computed.

    Where no row says which those are: of the transformer.
    """
    calls: Counter[tuple[str, str]] = Counter()
    with contextlib.ExitStack() as hooks:
        for name in family.components:
            module = getattr(pipe, name, None)
            for path, part in _attentions(module, family) if module is not None else ():
                layer = next(m for m in part.modules() if isinstance(m, torch.nn.Linear))
                where = name, path
                calls[where] = 0
                hook = layer.register_forward_pre_hook(lambda *_, w=where: calls.update([w]))
                hooks.callback(hook.remove)
        yield calls


def _attentions(module: Any, family: Family) -> list[tuple[str, torch.nn.Module]]:
    paths = [
        f"{group}.{index}.{family.attention}"
        for group in family.blocks
        for index in range(len(getattr(module, group)))
    ]
    return [(path, module.get_submodule(path)) for path in paths or [""]]


def _holds(site: SiteReport, attention: str) -> bool:
    """Whether the attention runs where the site is computed."""
    return site.name in ("output", "model") or f"{attention}.".startswith(f"{site.name}.")


@combinations(others=ENGINES)
def test_installing_twice_is_refused_and_changes_nothing(workbench, stock, model, technique):
    pipe, _ = stock
    expected, settings = workbench.accelerated(model, technique), technique.loose(model, pipe)
    with accelerate(pipe, **settings):
        model.run(pipe, **technique.changes)
        before = state_of(pipe)
        windows = [{"threshold": 0.0, "site": site} for site in model.row.sites]
        for second in (settings, *windows, {"speedup": 2.0}):
            with pytest.raises(RuntimeError, match="accelerated already; call remove"):
                accelerate(pipe, **second)
            assert state_of(pipe) == before
        assert is_equal(model.run(pipe, **technique.changes), expected)


@refusals()
def test_what_a_family_has_not_is_refused_by_name(workbench, model, technique):
    pipe = workbench.pipe(model)
    before = state_of(pipe)
    with pytest.raises(ValueError, match="accepted") as error:
        accelerate(pipe, **technique.loose(model, pipe))
    assert model.family in str(error.value)
    assert state_of(pipe) == before


class Outputs(Interceptor):
    """Predictions by step and branch, before all that stands around the forward."""

    def __init__(self, session: Session) -> None:
        self.session, self.found = session, {}

    def around(self, call: ForwardCall, forward: Forward) -> Any:
        output = forward(call)
        self.found[self.session.step, self.session.branch] = output[0].clone()
        return output


def negative(model: TinyModel, changes: dict[str, Any], *, other: bool) -> dict[str, Any]:
    """Another negative prompt, in the form that the call has."""
    given = model.arguments | changes
    if "negative_prompt_embeds" in given and "negative_prompt" not in changes:
        return {"negative_prompt_embeds": given["negative_prompt_embeds"] * (3 if other else 1)}
    if "negative_prompt" not in given:
        return {}
    text, prompt = "a green triangle" if other else "blue square", given["prompt"]
    return {"negative_prompt": text if isinstance(prompt, str) else [text] * len(prompt)}


# Bases of pruned attention are learned over the branches: they choose keys, and are no value.
# A speedup without a profile is planned by the recorded outputs of both.
@combinations(without=("unicp", "pruned", "sliced", "speedup"))
def test_no_branch_reads_what_another_one_cached(stock, model, technique):
    """The latents stand still here, so that branches can only meet in a cache."""
    pipe, _ = stock
    pipe.scheduler.step = lambda output, time, sample, *args, **kwargs: (sample,)
    found = []
    try:
        for other in (False, True):
            with accelerate(pipe, **technique.loose(model, pipe)) as handle:
                outputs = Outputs(handle._session)
                handle._session.interceptors.insert(0, outputs)
                changes = technique.changes | negative(model, technique.changes, other=other)
                model.run(pipe, **changes)  # a second call is the first one again: test_beside.py
                found.append(outputs.found)
    finally:
        del pipe.scheduler.step
    assert found[0].keys() == found[1].keys()
    for (_, branch), one, other in zip(found[0], *(f.values() for f in found), strict=True):
        if model.branches == "batched":  # the first half is without the prompt
            assert torch.equal(one.chunk(2)[1], other.chunk(2)[1])
            assert not torch.equal(one.chunk(2)[0], other.chunk(2)[0]), "the control"
        elif branch in ("cond", "pred_cond"):
            assert torch.equal(one, other)
        elif branch in ("uncond", "pred_uncond"):
            assert not torch.equal(one, other), "the control"
