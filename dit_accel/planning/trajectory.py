"""Converts Gram matrices of one sampler's predictions to coordinates that belong to no sampler.

In: a scheduler; Gram matrices of its predictions. Out: its `Trajectory`; the Gram matrices of
velocities over the noise angle, and the conversion back.

The latents before every step are weighted sums of the predictions and the starting noise. So is the
velocity v_s = a_s prediction_s + b_s x_s (`planning/noise_levels.py`). So there is a matrix M,
triangular over the steps, with

    velocities = M predictions,      K = r² M G Mᵀ,      G = M⁻¹ K M⁻ᵀ / r²

G is the Gram matrix of the predictions, K that of the velocities, and r the scale of the final
latents. The equations are exact for any number of components: the difference of two branches has no
term in the latents. The noise is a row of both matrices.
Knows schedulers by `noise_levels` and by their impulse response; no model.
Source: ours (docs/how-it-works.md). Shapes are those of `planning/plan.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from dit_accel.planning.noise_levels import NoiseLevels, NoLevelsError, noise_levels
from dit_accel.planning.plan import SamplerCoefficients
from dit_accel.planning.sampler import Response, response_of

# Largest error of the latents for a known clip and noise. Measured: up to 0.06 if DDIM rounds its
# timesteps, 1.4 if the levels are wrong.
MAX_LEVEL_ERROR = 0.25
_ROUNDING = 1e-4  # of weights whose sum is 0, relative to one of them


@dataclass(frozen=True)
class Trajectory:
    """The run of a sampler, over the noise angle.

    Args:
        sampler: its n steps and B components.
        levels: the noise levels before each step and at the end.
        states: `(n + 1, n + 1)` float64: row by row, the latents before each step and at the end;
            in the columns, the weights of the guided predictions, then of the starting noise.
    """

    sampler: SamplerCoefficients
    levels: NoiseLevels
    states: torch.Tensor

    @property
    def angles(self) -> torch.Tensor:
        """`(n,)`: the noise angle of each prediction, falling."""
        return self.levels.angles[:-1]

    @property
    def matrix(self) -> torch.Tensor:
        """`(R, R)`: M of the module's docstring. Rows are components by step, then the noise."""
        n, weights = self.sampler.num_steps, self.sampler.step_weights
        own, of_state = self.levels.factors
        found = torch.zeros(self.sampler.num_rows, self.sampler.num_rows, dtype=torch.float64)
        for component, weight in enumerate(weights):
            found[:n, component * n : (component + 1) * n] = self.states[:-1, :-1] * weight
        found[:n, -1] = self.states[:-1, -1]
        found[:n] *= of_state[:, None]  # the other rows are differences, with no latents in them
        rows = torch.arange(len(weights) * n)
        found[rows, rows] += own.repeat(len(weights))
        found[-1, -1] = 1 / self.levels.scales[0]
        return found

    def denoised_errors(self, gram: torch.Tensor) -> torch.Tensor:
        """How far the clips that the predictions point at are from the final clip.

        The latents x of a step and its velocity v point at the clip cos θ x / r - sin θ v, which
        is the mean of all clips that are still possible (Tweedie's formula). So the error is an
        estimate of their variance.

        Args:
            gram: `(R, R)`, inner products of the predictions (as in `ErrorModel`). Unless
                `errors_need_noise`, the noise may be unknown, with a row of 0.

        Returns:
            `(n,)`: squared errors, over the squared norm of the final clip.
        """
        errors = self._denoised_errors
        return ((errors @ gram) * errors).sum(1) * self.levels.scales[-1] ** 2

    @property
    def errors_need_noise(self) -> bool:
        """Whether `denoised_errors` depend on the starting noise, beside the predictions.

        They do if the model predicts the velocity of DDIM. If it predicts that of flow matching, or
        the noise, both clips contain the starting noise alike.
        """
        of_final = (self.states[-1, -1] / self.levels.scales[-1]).abs()
        return bool((self._denoised_errors[:, -1].abs() > _ROUNDING * of_final).any())

    @property
    def _denoised_errors(self) -> torch.Tensor:
        """`(n, R)`: the errors as weighted sums of the rows of a Gram matrix."""
        own, of_state = self.levels.factors
        guide = self.sampler.guide
        states = self.states @ guide
        velocities = own[:, None] * guide[:-1] + of_state[:, None] * states[:-1]
        cos, sin, scales = self.angles.cos(), self.angles.sin(), self.levels.scales
        final = states[-1] / scales[-1]
        return (cos / scales[:-1])[:, None] * states[:-1] - sin[:, None] * velocities - final

    def to_angles(self, gram: torch.Tensor) -> torch.Tensor:
        """Convert Gram matrices `(..., R, R)` of predictions (as in `ErrorModel`) to velocities.

        The result is over the squared norm of the final clip.
        """
        matrix = self.matrix
        return matrix @ gram @ matrix.T * self.levels.scales[-1] ** 2

    def from_angles(self, gram: torch.Tensor) -> torch.Tensor:
        """The inverse of `to_angles`."""
        half = torch.linalg.solve(self.matrix, gram)
        return torch.linalg.solve(self.matrix, half.mT).mT / self.levels.scales[-1] ** 2


def trajectory_of(
    scheduler: Any, branch_weights: tuple[float, ...], begin: int = 0, num_steps: int | None = None,
    *, response: Response | None = None,
) -> Trajectory:  # fmt: skip
    """The trajectory of a run, from a scheduler whose timesteps are set.

    Args:
        scheduler, branch_weights, begin, num_steps: as in `coefficients_of`.
        response: the run's impulse response, if it was measured before.

    Raises:
        NotLinearError: as in `coefficients_of`.
        NoLevelsError: the noise levels of the scheduler's latents are unknown.

    Example:
        >>> from diffusers import FlowMatchEulerDiscreteScheduler
        >>> scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        >>> scheduler.set_timesteps(3)
        >>> trajectory_of(scheduler, (1.0,)).levels.angles.round(decimals=2).tolist()
        [1.57, 1.25, 0.01, 0.0]
    """
    response = response or response_of(scheduler, begin, num_steps)
    for levels in noise_levels(scheduler, begin, num_steps):
        if _is_consistent(levels, response.states):
            return Trajectory(response.sampler(branch_weights), levels, response.states)
    raise NoLevelsError(
        f"the latents of {type(scheduler).__name__} do not have its noise levels at "
        f"{len(response.timesteps)} steps; accepted: schedulers whose step leads from one noise "
        "level to the next lower one"
    )


def _is_consistent(levels: NoiseLevels, states: torch.Tensor) -> bool:
    """Whether these levels are those of the sampler.

    To test it, the model is assumed to predict always the same clip and the same noise. Then the
    latents before every step must be α clip + σ noise, for a sampler of any order.
    """
    own, of_state = levels.factors
    latents = torch.stack([levels.alphas, levels.sigmas], 1)  # (n + 1, 2), of clip and noise
    angles = levels.angles
    velocities = torch.stack([-angles.sin(), angles.cos()], 1)[:-1]
    predictions = (velocities - of_state[:, None] * latents[:-1]) / own[:, None]
    if not (predictions.isfinite().all() and (angles.diff() < 0).all()):
        return False
    reached = states @ torch.cat([predictions, latents[:1]])
    return bool(((reached - latents).abs() <= MAX_LEVEL_ERROR).all())
