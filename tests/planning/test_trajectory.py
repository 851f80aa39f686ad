"""One sampler's predictions, as velocities over the noise angle: by hand, and across samplers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    KDPM2DiscreteScheduler,
    UniPCMultistepScheduler,
)
from schedulers import FLOW, NAMES, schedulers_of
from scipy.interpolate import CubicSpline

from dit_accel.planning.noise_levels import NoLevelsError
from dit_accel.planning.sampler import NotLinearError, coefficients_of
from dit_accel.planning.trajectory import Trajectory, trajectory_of


def test_worked_example() -> None:
    """Two steps of Euler, from t = 1 over 1/2 to 0, with x = (1 - t) x0 + t noise.

    At t = 1 the latents are the noise: the velocity is -x0 = prediction - noise. At t = 1/2 the
    latents have the size sqrt(1/2), clip and noise in equal parts: the velocity is (noise - x0)
    times cos 45° = sqrt(1/2).
    """
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=2)
    scheduler.set_timesteps(2)
    found = trajectory_of(scheduler, (1.0,))
    half = math.sqrt(0.5)
    assert found.levels.angles.tolist() == pytest.approx([math.pi / 2, math.pi / 4, 0.0], abs=1e-6)
    assert found.levels.scales.tolist() == pytest.approx([1.0, half, 1.0], abs=1e-6)
    wanted = torch.tensor([[1.0, 0.0, -1.0], [0.0, half, 0.0], [0.0, 0.0, 1.0]]).double()
    torch.testing.assert_close(found.matrix, wanted, atol=1e-6, rtol=0)
    # a clip of 3 and a noise of 2: both predictions are 2 - 3 = -1, the velocities -3 and -sqrt(½)
    rows = torch.tensor([-1.0, -1.0, 2.0]).double()
    torch.testing.assert_close(found.matrix @ rows, torch.tensor([-3.0, -half, 2.0]).double())


def test_denoised_errors_by_hand() -> None:
    """The same sampler, with predictions of -1 and -3 from a noise of 2. The latents are 2, 5/2 and
    4. The first prediction points at the clip 2 + 1 = 3, which is 1 off; the second at the end."""
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=2)
    scheduler.set_timesteps(2)
    rows = torch.tensor([-1.0, -3.0, 2.0]).double()
    found = trajectory_of(scheduler, (1.0,)).denoised_errors(torch.outer(rows, rows) / 4**2)
    assert found.tolist() == pytest.approx([1 / 16, 0.0], abs=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scheduler", [
    FlowMatchEulerDiscreteScheduler(shift=3.0), CogVideoXDDIMScheduler(),
    UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
    CogVideoXDDIMScheduler(prediction_type="v_prediction"),
], ids=["flow", "epsilon", "unipc", "v"])  # fmt: skip
def test_denoised_errors_do_not_depend_on_the_form_of_predictions(scheduler) -> None:
    """A model that points at the clip x0 + e(s) has the error |e(s)|², in every form."""
    scheduler.set_timesteps(12)
    path = trajectory_of(scheduler, (1.0, -3.0))
    generator = torch.Generator().manual_seed(0)
    shape = {"generator": generator, "dtype": torch.float64}
    wrong, noise = torch.randn(12, 200, **shape), torch.randn(200, **shape)
    own, of_state = path.levels.factors
    cos, sin, scales = path.angles.cos(), path.angles.sin(), path.levels.scales
    guided: list[torch.Tensor] = []
    for step in range(12):  # the prediction for which the denoised clip is `wrong`
        rows = torch.stack([*guided, *[torch.zeros(200).double()] * (12 - step), noise])
        latents = path.states[step] @ rows
        velocity = (cos[step] * latents / scales[step] - wrong[step]) / sin[step]
        guided.append((velocity - of_state[step] * latents) / own[step])
    final = path.states[-1] @ torch.stack([*guided, noise]) / scales[-1]
    other = torch.randn(12, 200, **shape)  # the second component: any
    first = torch.stack(guided) - path.sampler.step_weights[1][:, None] * other
    rows = torch.cat([first / path.sampler.step_weights[0][:, None], other, noise[None]])
    gram = rows @ rows.T / (final * scales[-1]).square().sum()
    found = path.denoised_errors(gram)
    expected = (wrong - final).square().sum(1) / final.square().sum()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    gram[-1] = gram[:, -1] = 0.0  # the noise is unknown
    same = torch.allclose(path.denoised_errors(gram), expected, rtol=1e-4, atol=1e-9)
    assert same is not path.errors_need_noise
    assert path.errors_need_noise is (path.levels.form == "v")


# Of these all settings have levels, of the others at least one; what is not named has none.
HAVE_LEVELS = {
    "CogVideoXDDIM", "DDIM", "DDIMParallel", "DEISMultistep", "DPMSolverMultistep",
    "DPMSolverSinglestep", "EDMDPMSolverMultistep", "EDMEuler", "EulerDiscrete",
    "FlowMatchEulerDiscrete", "LMSDiscrete", "UniPCMultistep",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("weights", [(1.0,), (1.0, -3.0)], ids=["one", "two"])
def test_there_and_back_is_exact_for_every_scheduler_that_is_linear(weights) -> None:
    with_levels, refused = set(), dict[str, str]()
    for name in NAMES:
        for scheduler in schedulers_of(name):
            try:
                scheduler.set_timesteps(12)
                assert len(scheduler.timesteps) == 12
                own = coefficients_of(scheduler, weights)
            except Exception:  # needs more than a number of steps, or is refused by name
                continue
            try:
                found = trajectory_of(scheduler, weights)
            except NoLevelsError as error:
                refused[type(scheduler).__name__] = str(error)
                continue
            with_levels.add(name.removesuffix("Scheduler"))
            assert torch.equal(found.sampler.coefficients, own.coefficients)
            draw = torch.Generator().manual_seed(0)
            rows = torch.randn(own.num_rows, 100, generator=draw).double()
            gram = rows @ rows.T
            velocities = found.matrix @ rows * found.levels.scales[-1]
            torch.testing.assert_close(found.to_angles(gram), velocities @ velocities.T)
            back = found.from_angles(found.to_angles(gram))
            assert (back - gram).abs().max() < 1e-9 * gram.abs().max()
            blocks = found.matrix[:-1, :-1].unfold(0, 12, 12).unfold(1, 12, 12)
            assert not blocks.triu(1).any()  # of what came before only
    assert with_levels == HAVE_LEVELS
    assert all(name in said and "accepted" in said for name, said in refused.items())


def euler(shift: float) -> Any:
    return FlowMatchEulerDiscreteScheduler(shift=shift)


SAMPLERS = {
    "another shift": euler(8.0),
    "UniPC": UniPCMultistepScheduler(**FLOW),
    "DDIM": CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    ),
    "sigmas": EulerDiscreteScheduler(use_karras_sigmas=True),
    "EDM": EDMEulerScheduler(sigma_data=1.0),
}
CENTRES = torch.tensor([[1.0, 0.5, -0.5], [-0.7, 0.2, 1.0], [0.1, -1.2, -0.3]]).double()
WIDTH = 0.3  # of the mixture's Gaussians


def clip_of(latents: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
    """The mean of x0 given x = α x0 + σ ε, for a mixture of three Gaussians: `(N, 3)`."""
    variance = (alpha * WIDTH) ** 2 + sigma**2
    offset = latents[:, None] - alpha * CENTRES
    shares = torch.softmax(-(offset**2).sum(-1) / (2 * variance), 1)
    means = CENTRES + alpha * WIDTH**2 / variance * offset
    return (shares[..., None] * means).sum(1)


def run(scheduler: Any, steps: int) -> tuple[Trajectory, torch.Tensor]:
    """A run of the mixture's exact denoiser: its trajectory, and the Gram matrix of its rows."""
    scheduler.set_timesteps(steps)
    found = trajectory_of(scheduler, (1.0,))
    levels, (own, of_state) = found.levels, found.levels.factors
    noise = torch.randn(2000, 3, generator=torch.Generator().manual_seed(1)).double()
    start = latents = noise * levels.scales[0]
    rows = []
    for step, timestep in enumerate(scheduler.timesteps):
        alpha, sigma, angle = levels.alphas[step], levels.sigmas[step], levels.angles[step]
        clip = clip_of(latents, float(alpha), float(sigma))
        velocity = angle.cos() * (latents - alpha * clip) / sigma - angle.sin() * clip
        rows.append((velocity - of_state[step] * latents) / own[step])
        latents = scheduler.step(rows[-1], timestep, latents, return_dict=False)[0].double()
    flat = torch.stack([*rows, start]).flatten(1)
    return found, flat @ flat.T / latents.square().sum()


def at_angles(found: Trajectory, gram: torch.Tensor) -> np.ndarray:
    """Velocities' inner products at angles that all samplers have between theirs."""
    wanted = np.linspace(0.4, 1.5, 12)
    known = found.angles.flip(0).numpy()
    velocities = found.to_angles(gram)[:-1, :-1].flip(0, 1).numpy()
    once = CubicSpline(known, velocities, axis=0)(wanted)
    return np.asarray(CubicSpline(known, once, axis=1)(wanted))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_same_model_has_the_same_velocities_whatever_the_sampler(name) -> None:
    exact = at_angles(*run(euler(3.0), 400))
    errors = []
    for steps in (20, 100):
        found = at_angles(*run(SAMPLERS[name], steps))
        errors.append(np.abs(found - exact).max() / np.abs(exact).max())
    assert errors[1] < 0.06 and errors[1] < errors[0] / 2


def test_a_sampler_with_two_calls_a_step_is_refused_by_name() -> None:
    scheduler = KDPM2DiscreteScheduler()
    scheduler.set_timesteps(10)
    with pytest.raises((NoLevelsError, NotLinearError), match=r"KDPM2DiscreteScheduler.*accepted"):
        trajectory_of(scheduler, (1.0,))


def test_a_part_of_a_run_has_the_levels_of_its_steps() -> None:
    scheduler = euler(3.0)
    scheduler.set_timesteps(10)
    whole = trajectory_of(scheduler, (1.0,))
    part = trajectory_of(scheduler, (1.0,), begin=4)
    short = trajectory_of(scheduler, (1.0,), num_steps=7)
    assert torch.equal(part.angles, whole.angles[4:])
    assert torch.equal(short.levels.angles, whole.levels.angles[:8])
    assert torch.equal(short.matrix[:7, :7], whole.matrix[:7, :7])
