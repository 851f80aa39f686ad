"""Every scheduler of diffusers on every tiny model: it works, or is refused before the first step.

The scheduler's own clip is the reference. A threshold must take all that a pipeline takes. Plans
need more of a sampler: they give a clip that is finite, or an error that names the scheduler and
what is accepted. None may draw from the global generator.
"""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from schedulers import NAMES, schedulers_of
from techniques import LOOSE, is_equal
from tiny_models import MODELS, TinyModel

from dit_accel import accelerate

STEPS = 9  # some samplers leave one out, and a plan takes 8
# One of each loop over a sampler: two experts and Animate step it as Wan does.
TAKEN = [name for name in MODELS if name not in ("wan-two-experts", "wan-animate")]
# Deterministic and linear by one of these settings: refusing them would be wrong.
PLANNED = {
    *("CogVideoXDDIM", "DDIM", "DDIMParallel", "DEISMultistep", "DPMSolverMultistep"),
    *("DPMSolverMultistepInverse", "DPMSolverSinglestep", "EDMDPMSolverMultistep", "EDMEuler"),
    *("EulerDiscrete", "FlowMatchEulerDiscrete", "IPNDM", "KDPM2Discrete", "LMSDiscrete"),
    "UniPCMultistep",
}


def run(model: TinyModel, pipe: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """A clip, and the state of the global generator after it; some samplers draw from it."""
    torch.manual_seed(1)
    return model.run(pipe, num_inference_steps=STEPS), torch.get_rng_state()


@pytest.fixture(scope="module")
def pipes() -> dict[str, Any]:
    return {name: MODELS[name].build() for name in TAKEN}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model", TAKEN)
def test_a_scheduler_works_or_is_refused(pipes, model, name):
    pipe, before, planned = pipes[model], pipes[model].scheduler, []
    try:
        for scheduler in schedulers_of(name):
            pipe.scheduler = scheduler
            try:
                stock, drawn = run(MODELS[model], pipe)
            except Exception:  # the pipeline does not take it
                continue
            if stock.isfinite().all():
                if MODELS[model].row.sites:
                    check_threshold(MODELS[model], pipe, stock, drawn)
                planned.append(check_plan(MODELS[model], pipe, stock, drawn))
    finally:
        pipe.scheduler = before
    assert any(planned) or not planned or name.removesuffix("Scheduler") not in PLANNED
    if not planned:
        pytest.skip(f"{type(pipe).__name__} does not take it, or makes no finite clip with it")


def check_threshold(model: TinyModel, pipe: Any, stock: torch.Tensor, drawn: torch.Tensor) -> None:
    site = "model" if "model" in model.row.sites else "block"
    with accelerate(pipe, threshold=0.0, site=site) as handle:
        clip, state = run(model, pipe)
        assert is_equal(clip, stock) and torch.equal(state, drawn)
        assert handle.report().steps_computed == handle.report().steps
    with accelerate(pipe, threshold=LOOSE.threshold, site=site) as handle:
        clip, state = run(model, pipe)
        assert clip.isfinite().all() and torch.equal(state, drawn)
        assert handle.report().steps_computed < handle.report().steps


def check_plan(model: TinyModel, pipe: Any, stock: torch.Tensor, drawn: torch.Tensor) -> bool:
    """Whether it was planned, and not refused."""
    calls: list[int] = []
    refused = ""
    hook = pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    with accelerate(pipe, speedup=2.0) as handle:
        torch.manual_seed(1)
        before = torch.get_rng_state()
        try:
            first, state = run(model, pipe)
        except ValueError as error:
            refused = str(error)
            assert not calls, "it was refused after the first step"
            assert torch.equal(torch.get_rng_state(), before)
        else:
            made = handle.report()
            recorded = made.steps_computed == made.steps  # else it is planned from the prior
            assert is_equal(first, stock) if recorded else first.isfinite().all()
            assert torch.equal(state, drawn), "nothing was drawn"
            clip, state = run(model, pipe)
            assert clip.isfinite().all() and torch.equal(state, drawn)
            report = handle.report()
            assert report.steps >= STEPS - 1  # some call the model more often, or leave one out
            assert report.steps_computed <= report.steps // 2 + 2
    hook.remove()
    assert not refused or (type(pipe.scheduler).__name__ in refused and "accepted" in refused)
    again, _ = run(model, pipe)
    assert torch.equal(again, stock)
    return not refused


@pytest.mark.parametrize(
    "kind", [diffusers.EulerDiscreteScheduler, diffusers.DPMSolverMultistepScheduler]
)
def test_a_sampler_of_clean_clips_is_recorded_and_planned(kind):
    """The prior knows no such run: what an early step adds is gone at the end."""
    model = MODELS["wan"]
    pipe = model.build()
    pipe.scheduler = kind(prediction_type="sample")
    stock, drawn = run(model, pipe)
    assert stock.isfinite().all() and check_plan(model, pipe, stock, drawn)
