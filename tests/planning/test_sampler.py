"""What one unit of each prediction adds to the final latents: by hand, and against real runs."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from dit_accel.planning.sampler import (
    ImpulseResponse,
    NotLinearError,
    coefficients_of,
    planned_coefficients,
    unstepped,
)

STEPS = 10


def test_worked_example():
    """Euler's method adds (the next noise level - this one) times the prediction."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0, num_train_timesteps=4)
    schedule = planned_coefficients(scheduler, 4, (1.0,))
    # four steps of four training timesteps: 4, 3, 2, 1; noise levels 1, 3/4, 1/2, 1/4 and 0
    assert schedule.timesteps.tolist() == pytest.approx([4.0, 3.0, 2.0, 1.0])
    # each step lowers the noise level by 1/4, so one unit of any prediction adds -1/4
    assert schedule.coefficients.tolist() == pytest.approx([-0.25] * 4)
    # predictions 8, 4, 4 and 0 from a start of 5: 5 - (8 + 4 + 4 + 0) / 4 = 1
    scheduler.set_timesteps(4)
    latents = torch.full((1,), 5.0)
    for timestep, prediction in zip(scheduler.timesteps, (8.0, 4.0, 4.0, 0.0), strict=True):
        latents = scheduler.step(torch.full((1,), prediction), timestep, latents)[0]
    assert latents.item() == pytest.approx(1.0)


def euler() -> Any:
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def unipc(order: int) -> Any:
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, solver_order=order,
        num_train_timesteps=1000,
    )  # fmt: skip


@pytest.mark.parametrize(
    "scheduler",
    [euler(), unipc(1), unipc(2), unipc(3)],
    ids=["euler", "unipc1", "unipc2", "unipc3"],
)
def test_shares_are_what_a_run_of_any_predictions_adds_up_to(scheduler):
    schedule = planned_coefficients(scheduler, STEPS, (1.0,))
    scheduler.set_timesteps(STEPS)
    draw = torch.Generator().manual_seed(0)
    start = latents = torch.randn(1, 4, 1, 2, 2, generator=draw)
    added = torch.zeros_like(start, dtype=torch.float64)
    for step, time in enumerate(scheduler.timesteps):
        prediction = torch.randn(latents.shape, generator=draw)
        latents = scheduler.step(prediction, time, latents, return_dict=False)[0]
        added += schedule.coefficients[step] * prediction
    assert torch.allclose(start + added, latents.double(), atol=2e-5)
    assert schedule.timesteps.tolist() == scheduler.timesteps.tolist()


def test_shares_of_euler_are_the_differences_of_its_noise_levels():
    scheduler = euler()
    schedule = planned_coefficients(scheduler, STEPS, (1.0,))
    scheduler.set_timesteps(STEPS)
    assert torch.allclose(schedule.coefficients, scheduler.sigmas.diff().double(), atol=1e-6)


def test_a_scheduler_that_is_looked_at_stays_as_it_is():
    scheduler = unipc(2)
    planned_coefficients(scheduler, STEPS, (1.0,))
    assert scheduler.num_inference_steps is None
    scheduler.set_timesteps(STEPS)
    before = {k: v for k, v in vars(scheduler).items() if not isinstance(v, torch.Tensor)}
    coefficients_of(scheduler, (1.0,))
    assert {k: v for k, v in vars(scheduler).items() if not isinstance(v, torch.Tensor)} == before


def test_a_sampler_that_draws_noise_at_every_step_is_refused_by_name():
    """CogVideoX's own takes the last step's sample before the timestep, and is stochastic."""
    from diffusers import CogVideoXDPMScheduler

    scheduler = CogVideoXDPMScheduler()
    scheduler.set_timesteps(4)
    message = r"CogVideoXDPMScheduler has step\(model_output, old_.*; accepted: schedulers whose"
    with pytest.raises(NotLinearError, match=message):
        ImpulseResponse(scheduler)


@pytest.mark.parametrize("name", ["UniPC", "DPMSolverMultistep", "DEISMultistep", "own sigmas"])
def test_a_scheduler_that_has_run_is_as_before_it(name):
    """A multistep scheduler keeps predictions of its last steps, which have the latents' shape."""
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    if name == "own sigmas":
        scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
        scheduler.set_timesteps(sigmas=np.linspace(1, 0.2, STEPS), mu=0.5)
    else:
        name = name if name.endswith("Multistep") else f"{name}Multistep"
        scheduler = getattr(diffusers, f"{name}Scheduler")(**flow)
        scheduler.set_timesteps(STEPS)
    before = coefficients_of(scheduler, (1.0,)).coefficients
    latents = torch.ones(1, 4, 2, 3, 3)
    for time in scheduler.timesteps:
        latents = scheduler.step(0.1 * latents, time, latents, return_dict=False)[0]
    own = unstepped(scheduler)
    assert torch.equal(own.timesteps, scheduler.timesteps)
    assert torch.equal(coefficients_of(own, (1.0,)).coefficients, before)
