"""Reads the noise level of a run's latents at every step, and the form of the model's prediction.

In: a scheduler whose timesteps are set. Out: its `NoiseLevels`. Before every step and at the end,
the latents are x = α x0 + σ ε, with the clip x0 and the noise ε. A formula converts the prediction
to the velocity dx/dθ at the noise angle θ = atan(σ / α).
Knows the schedulers of diffusers by their public attributes and settings: flow matching, DDIM, the
solvers over sigmas, EDM. A scheduler without such levels is refused, and the error names it.
Source: ours; the velocity over the angle is v-prediction, arXiv 2202.00512, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

Form = Literal["flow", "v", "epsilon", "sample"]
_FORMS: dict[str, Form] = {
    "flow_prediction": "flow", "v_prediction": "v", "epsilon": "epsilon", "sample": "sample",
}  # fmt: skip


class NoLevelsError(ValueError):
    """The noise levels of a scheduler's latents are unknown."""


@dataclass(frozen=True)
class NoiseLevels:
    """The noise in the latents of a run of n steps, and the form of its predictions.

    Args:
        alphas, sigmas: `(n + 1,)` float64: factors of the clip and the noise before each step and
            at the end.
        form: what the model predicts.
        sign: -1 if the model predicts the negative of that.
    """

    alphas: torch.Tensor
    sigmas: torch.Tensor
    form: Form
    sign: float = 1.0

    @property
    def angles(self) -> torch.Tensor:
        """`(n + 1,)`: θ, from π/2 (noise) to 0 (the clip); log SNR = -2 log tan θ."""
        return torch.atan2(self.sigmas, self.alphas)

    @property
    def scales(self) -> torch.Tensor:
        """`(n + 1,)`: r in the latents x = r (cos θ x0 + sin θ ε)."""
        return torch.hypot(self.sigmas, self.alphas)

    @property
    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """a and b, `(n,)` each, in the velocity over the angle, v = a prediction + b x.

        With the predicted clip x̂0 and the predicted noise ε̂, v = cos θ ε̂ - sin θ x̂0.
        """
        angle, scale = self.angles[:-1], self.scales[:-1]
        cos, sin = angle.cos(), angle.sin()
        none = torch.zeros_like(angle)
        by_form = {
            "flow": lambda: (scale, cos - sin),  # it predicts ε - x0, and x = α x0 + (1 - α) ε
            "v": lambda: (none + 1, none),
            "epsilon": lambda: (1 / cos, -sin / cos / scale),
            "sample": lambda: (-1 / sin, cos / sin / scale),
        }
        own, of_state = by_form[self.form]()
        return self.sign * own, of_state


def noise_levels(scheduler: Any, begin: int, num_steps: int | None) -> list[NoiseLevels]:
    """The possible noise levels of a run: one entry, or two.

    For solvers over sigmas, the public attributes do not say whether the latents have constant
    variance. Then there are two entries, and `trajectory.py` finds the right one.

    Args:
        scheduler: the run's; it is not changed.
        begin, num_steps: the run uses `num_steps` timesteps from index `begin` on; None: all.

    Raises:
        NoLevelsError: no levels are known; the error names the scheduler and what is accepted.
    """
    count = len(scheduler.timesteps[begin:][:num_steps])
    flow = type(scheduler).__name__.startswith("FlowMatch")
    named = "flow_prediction" if flow else scheduler.config.get("prediction_type")
    form = _FORMS.get(str(named))
    sigmas = getattr(scheduler, "sigmas", None)
    if form is None:
        raise _unknown(scheduler, f"has prediction_type {named}")
    if getattr(scheduler, "final_alpha_cumprod", None) is not None:
        return [_by_timestep(scheduler, begin, count, form)]
    if sigmas is None or len(sigmas) < begin + count + 1:
        raise _unknown(scheduler, "has no noise level for every step")
    sigmas = _numbers(sigmas)[begin : begin + count + 1]
    if hasattr(scheduler, "precondition_outputs"):  # EDM: α is the deviation of the clips
        sign = 1.0 if form == "v" else -1.0
        data = torch.full_like(sigmas, float(scheduler.config.sigma_data))
        return [NoiseLevels(data, sigmas, "v", sign)]
    if flow and scheduler.config.get("invert_sigmas"):  # Mochi's sigmas are the clip's share
        return [NoiseLevels(sigmas, 1 - sigmas, "flow", -1.0)]
    if flow or scheduler.config.get("use_flow_sigmas"):
        return [NoiseLevels(1 - sigmas, sigmas, form)]
    size = (1 + sigmas**2).sqrt()
    one = torch.ones_like(sigmas)
    return [NoiseLevels(one / size, sigmas / size, form), NoiseLevels(one, sigmas, form)]


def _by_timestep(scheduler: Any, begin: int, count: int, form: Form) -> NoiseLevels:
    """DDIM's levels, from the cumulative product of alphas at every timestep and at the end."""
    labels = scheduler.timesteps.cpu()[begin : begin + count + 1].long()
    products = _numbers(scheduler.alphas_cumprod)[labels]
    if len(products) == count:
        products = torch.cat([products, _numbers(scheduler.final_alpha_cumprod).reshape(1)])
    return NoiseLevels(products.clamp(0, 1).sqrt(), (1 - products).clamp(0, 1).sqrt(), form)


def _numbers(values: Any) -> torch.Tensor:
    return torch.as_tensor(values).detach().cpu().double()


def _unknown(scheduler: Any, problem: str) -> NoLevelsError:
    return NoLevelsError(
        f"{type(scheduler).__name__} {problem}; accepted: schedulers of flow matching, DDIM, EDM "
        "and solvers over sigmas. Their prediction_type is epsilon, sample, v_prediction or "
        "flow_prediction"
    )
