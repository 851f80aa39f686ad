"""Reads how much noise the latents of a run hold at every step, and what its model predicts.

In: a scheduler whose timesteps are set. Out: its `NoiseLevels`: before every step and at the end
the latents are x = α x0 + σ ε, with the clip x0 and the noise ε, and a formula turns the prediction
into the velocity dx/dθ at the noise angle θ = atan(σ / α).
Knows the schedulers of diffusers by their public attributes and settings: flow matching, DDIM, the
solvers over sigmas, EDM; a scheduler without such levels is refused by name.
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
    """It is not known how much noise the latents of a scheduler hold."""


@dataclass(frozen=True)
class NoiseLevels:
    """The noise in the latents of a run of n steps, and the form of its predictions.

    Args:
        alphas, sigmas: `(n + 1,)` float64: factors of clip and noise before each step, and at the
            end.
        form: what the model predicts.
        sign: -1 where it predicts the negative of that.
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
        """`(n + 1,)`: r, of the latents x = r (cos θ x0 + sin θ ε)."""
        return torch.hypot(self.sigmas, self.alphas)

    @property
    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`(n,)` twice: a and b in the velocity over the angle, v = a prediction + b x.

        With the clip and the noise that the model predicts, v = cos θ ε̂ - sin θ x̂0.
        """
        angle, scale = self.angles[:-1], self.scales[:-1]
        cos, sin = angle.cos(), angle.sin()
        none = torch.zeros_like(angle)
        by_form = {
            "flow": lambda: (scale, cos - sin),  # it predicts ε - x0, and x is α x0 + (1 - α) ε
            "v": lambda: (none + 1, none),
            "epsilon": lambda: (1 / cos, -sin / cos / scale),
            "sample": lambda: (-1 / sin, cos / sin / scale),
        }
        own, of_state = by_form[self.form]()
        return self.sign * own, of_state


def noise_levels(scheduler: Any, begin: int = 0, num_steps: int | None = None) -> list[NoiseLevels]:
    """What the levels of a run may be: one entry, or two where public attributes leave it open
    whether latents over sigmas keep their size; `trajectory.py` finds the one that is right.

    Args:
        scheduler: left as it is.
        begin, num_steps: the timesteps that the run uses; by default all.

    Raises:
        NoLevelsError: none is known; names the scheduler and what is accepted.
    """
    count = len(scheduler.timesteps[begin:][:num_steps])
    flow = type(scheduler).__name__.startswith("FlowMatch")
    named = "flow_prediction" if flow else scheduler.config.get("prediction_type")
    form = _FORMS.get(str(named))
    sigmas = getattr(scheduler, "sigmas", None)
    if form is None:
        raise _unknown(scheduler, f"predicts {named}")
    if getattr(scheduler, "final_alpha_cumprod", None) is not None:
        return [_by_timestep(scheduler, begin, count, form)]
    if sigmas is None or len(sigmas) < begin + count + 1:
        raise _unknown(scheduler, "has no noise level for every step")
    sigmas = _numbers(sigmas)[begin : begin + count + 1]
    if hasattr(scheduler, "precondition_outputs"):  # EDM, over the clip's own deviation
        sign = 1.0 if form == "v" else -1.0
        data = torch.full_like(sigmas, float(scheduler.config.sigma_data))
        return [NoiseLevels(data, sigmas, "v", sign)]
    if flow and scheduler.config.get("invert_sigmas"):  # Mochi's grow with the clip
        return [NoiseLevels(sigmas, 1 - sigmas, "flow", -1.0)]
    if flow or scheduler.config.get("use_flow_sigmas"):
        return [NoiseLevels(1 - sigmas, sigmas, form)]
    size = (1 + sigmas**2).sqrt()
    one = torch.ones_like(sigmas)
    return [NoiseLevels(one / size, sigmas / size, form), NoiseLevels(one, sigmas, form)]


def _by_timestep(scheduler: Any, begin: int, count: int, form: Form) -> NoiseLevels:
    """DDIM's: the cumulative product of alphas at every timestep, and the last one."""
    labels = scheduler.timesteps.cpu()[begin : begin + count + 1].long()
    products = _numbers(scheduler.alphas_cumprod)[labels]
    if len(products) == count:
        products = torch.cat([products, _numbers(scheduler.final_alpha_cumprod).reshape(1)])
    return NoiseLevels(products.clamp(0, 1).sqrt(), (1 - products).clamp(0, 1).sqrt(), form)


def _numbers(values: Any) -> torch.Tensor:
    return torch.as_tensor(values).detach().cpu().double()


def _unknown(scheduler: Any, problem: str) -> NoLevelsError:
    return NoLevelsError(
        f"{type(scheduler).__name__} {problem}; accepted: flow matching, DDIM, solvers over sigmas "
        "and EDM, that predict epsilon, sample, v_prediction or flow_prediction"
    )
