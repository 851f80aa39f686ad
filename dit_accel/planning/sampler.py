"""What a sampler adds to the latents, told by stepping a twin of its scheduler on unit vectors.

Any sampler that is linear in the predictions gives its shares so, Euler and multistep alike. Lane s
of the twin starts at 0 and is given a prediction of 1 at step s and 0 at all others; the last lane
starts at 1 and is given 0 throughout. Where they end are the shares of the predictions, and of the
noise that a run starts from.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch

from dit_accel.planning.plan import SamplerCoefficients


class NotLinearError(ValueError):
    """The final latents are not the weighted sum of predictions that plans are made of."""


def check_steps(scheduler: Any) -> None:
    """Refuse a sampler whose step is no function of prediction, timestep and sample.

    Raises:
        NotLinearError: naming it; CogVideoXDPMScheduler, which also draws noise at every step.
    """
    kind = type(scheduler)
    taken = list(inspect.signature(kind.step).parameters)[1:4]
    if "timestep" in taken[2:] or "sample" in taken[:2]:
        raise NotLinearError(
            f"{kind.__name__} steps by {', '.join(taken)}, ...; accepted: samplers that step by "
            "model_output, timestep, sample, which plans can be made for. Accelerate by threshold, "
            "or take another scheduler"
        )


class ImpulseResponse:
    """A twin of a scheduler, stepped along."""

    def __init__(self, scheduler: Any) -> None:
        check_steps(scheduler)
        self._twin = copy.deepcopy(scheduler)
        for name, value in list(vars(self._twin).items()):
            if isinstance(value, torch.Tensor):
                setattr(self._twin, name, value.cpu())
        vars(self._twin).pop("step", None)  # one that is listened to
        for name in ("_step_index", "_begin_index"):
            if hasattr(self._twin, name):
                setattr(self._twin, name, None)
        self._steps = len(scheduler.timesteps)
        self._done = 0
        self._values = torch.zeros(1, self._steps + 1, 1, 1, 1)
        self._values[0, -1] = 1

    def step(self, timestep: Any, **kwargs: Any) -> None:
        """The next step, with what the pipeline passes to the scheduler's."""
        unit = torch.zeros_like(self._values)
        unit[0, self._done] = 1
        if isinstance(timestep, torch.Tensor):
            timestep = timestep.cpu()
        self._values = self._twin.step(unit, timestep, self._values, **kwargs)[0].float()
        self._done += 1

    @property
    def coefficients(self) -> torch.Tensor:
        """`(n + 1,)` float64: of every prediction, then of the start."""
        return self._values.flatten().double()


def coefficients_of(scheduler: Any, mix: tuple[float, ...]) -> SamplerCoefficients:
    """The schedule of a run that is to come, from a scheduler whose timesteps are set.

    Args:
        scheduler: left as it is.
        mix: weight of every part in the guided prediction.
    """
    times = scheduler.timesteps.cpu()
    twin = copy.deepcopy(scheduler)
    twin.timesteps = times
    if hasattr(twin, "sigmas"):
        twin.sigmas = twin.sigmas.cpu()
    lanes = ImpulseResponse(twin)
    for time in times:
        lanes.step(time)
    return SamplerCoefficients(lanes.coefficients[:-1], times.double().flatten(), mix)


def planned_coefficients(scheduler: Any, steps: int, mix: tuple[float, ...]) -> SamplerCoefficients:
    """As `schedule_of`, of a scheduler whose timesteps are not set yet.

    Raises:
        ValueError: it must be told more than the number of steps (a shift by the clip's size).
    """
    twin = copy.deepcopy(scheduler)
    try:
        twin.set_timesteps(steps)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{type(twin).__name__} cannot be planned for without a run: {error}"
        ) from error
    return coefficients_of(twin, mix)
