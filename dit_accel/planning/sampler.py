"""Measures what each prediction adds to the final latents: the impulse response of a scheduler.

In: a scheduler. Out: its `SamplerCoefficients`. A copy of it is stepped on n + 1 numbers: number s
starts at 0 and gets a prediction of 1 at step s, of 0 elsewhere; the last one starts at 1 and gets
0 throughout. Where they end are the coefficients of the predictions, and of the noise. One more
number gets random predictions: it ends at their weighted sum only where the sampler is linear in
them and draws no noise. Every other sampler is refused before the first step.
Knows the diffusers scheduler interface. The global random generator is never advanced.
Source: ours.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dit_accel.planning.plan import SamplerCoefficients

OF_A_RUN = ("timesteps", "sigmas", "num_inference_steps")  # what `set_timesteps` sets
MAX_LINEAR_ERROR = 1e-3  # of a random trajectory, relative; float32 rounding stays far below


class NotLinearError(ValueError):
    """The final latents are not the weighted sum of predictions that plans are made of."""


def _refusal(scheduler: Any, problem: str, accepted: str) -> NotLinearError:
    instead = "Accelerate by threshold, or take another scheduler"
    return NotLinearError(f"{type(scheduler).__name__} {problem}; accepted: {accepted}. {instead}")


def check_steps(scheduler: Any) -> None:
    """Refuse a sampler whose step is no function of prediction, timestep and sample.

    Raises:
        NotLinearError: naming it; CogVideoXDPMScheduler, which also draws noise at every step.
    """
    taken = list(inspect.signature(type(scheduler).step).parameters)[1:4]
    if "timestep" in taken[2:] or "sample" in taken[:2]:
        accepted = "samplers that step by model_output, timestep, sample, as plans need it"
        raise _refusal(scheduler, f"steps by {', '.join(taken)}, ...", accepted)


def unstepped(scheduler: Any) -> Any:
    """A copy of a scheduler that has run, as it was before its first step.

    `set_timesteps` forgets what the steps left behind; the run's own timesteps are put back.
    """
    own = copy.deepcopy(scheduler)
    of_run = {name: value for name, value in vars(own).items() if name in OF_A_RUN}
    more = {"mu": 1.0} if getattr(own.config, "use_dynamic_shifting", False) else {}
    own.set_timesteps(len(own.timesteps), **more)
    vars(own).update(of_run)
    return own


class ImpulseResponse:
    """A copy of a scheduler that is stepped on unit predictions."""

    def __init__(self, scheduler: Any, begin: int = 0) -> None:
        check_steps(scheduler)
        self._copy = copy.deepcopy(scheduler)
        for name, value in list(vars(self._copy).items()):
            if isinstance(value, torch.Tensor):
                setattr(self._copy, name, value.cpu())
        vars(self._copy).pop("step", None)  # a wrapped one: calibration listens to the original
        for name, value in (("_step_index", None), ("_begin_index", begin or None)):
            if hasattr(self._copy, name):
                setattr(self._copy, name, value)
        self._step = 0
        num_steps = len(scheduler.timesteps) - begin
        self._random = torch.randn(num_steps + 1, generator=torch.Generator().manual_seed(0))
        # shaped as latents are: the step of UniPC needs batch and channels
        self._values = torch.zeros(1, num_steps + 2, 1, 1, 1)
        self._values[0, -2], self._values[0, -1] = 1, self._random[-1]
        self._states = [self._values]

    def step(self, timestep: Any, **kwargs: Any) -> None:
        """Make the next step, with what the pipeline passes to the scheduler's."""
        unit = torch.zeros_like(self._values)
        unit[0, self._step], unit[0, -1] = 1, self._random[self._step]
        if isinstance(timestep, torch.Tensor):
            timestep = timestep.cpu()
        with torch.random.fork_rng(devices=[]):
            self._values = self._copy.step(unit, timestep, self._values, **kwargs)[0].float()
        self._states.append(self._values)
        self._step += 1

    @property
    def coefficients(self) -> torch.Tensor:
        """`(n + 1,)` float64: of every prediction, then of the noise."""
        return self._values.flatten()[:-1].double()

    @property
    def states(self) -> torch.Tensor:
        """`(steps + 1, n + 1)` float64: the same weights in the latents before every step that was
        made, and after the last one."""
        return torch.stack([values.flatten()[:-1] for values in self._states]).double()

    def check(self) -> None:
        """After the last step: a NotLinearError where the sampler adds up anything else."""
        terms = self.coefficients * self._random
        error = (float(self._values.flatten()[-1]) - terms.sum()).abs() / terms.abs().sum()
        if not error <= MAX_LINEAR_ERROR:  # also where a number is not finite
            problem = f"is random, not linear or not finite at {self._step} steps"
            accepted = "samplers that add up weighted predictions and draw no noise"
            raise _refusal(self._copy, problem, accepted)


@dataclass(frozen=True)
class Response:
    """The impulse response of a run of n steps.

    Args:
        states: `(n + 1, n + 1)` float64: what predictions, and the noise last, weigh in the latents
            before each step and at the end.
        timesteps: `(n,)` float64.
    """

    states: torch.Tensor
    timesteps: torch.Tensor

    def sampler(self, branch_weights: tuple[float, ...]) -> SamplerCoefficients:
        """Its coefficients, with these weights of the components in the guided prediction."""
        return SamplerCoefficients(self.states[-1, :-1], self.timesteps, branch_weights)


def response_of(scheduler: Any, begin: int = 0, num_steps: int | None = None) -> Response:
    """The impulse response of a run; arguments and errors as below."""
    timesteps = scheduler.timesteps.cpu()[begin:][:num_steps]
    steps = timesteps.diff()  # Mochi's timesteps go up
    if not bool((steps < 0).all() or (steps > 0).all()):
        problem = "calls the model more than once at a timestep"
        raise _refusal(scheduler, problem, "samplers with one call at each timestep")
    response = ImpulseResponse(scheduler, begin)
    for timestep in timesteps:
        response.step(timestep)
    response.check()
    used = [*range(len(timesteps)), -1]  # steps that are left out add nothing
    return Response(response.states[:, used], timesteps.double().flatten())


def coefficients_of(
    scheduler: Any, branch_weights: tuple[float, ...], begin: int = 0, num_steps: int | None = None
) -> SamplerCoefficients:
    """The coefficients of a run, from a scheduler whose timesteps are set.

    Args:
        scheduler: left as it is.
        branch_weights: of the components in the guided prediction.
        begin, num_steps: the timesteps that the run uses; by default all.

    Raises:
        NotLinearError: plans cannot be made for this scheduler; names it and what is accepted.
    """
    return response_of(scheduler, begin, num_steps).sampler(branch_weights)


def state_of(scheduler: Any) -> Iterator[str | bytes]:
    """All that decides what a scheduler does, settings and tensors, in a form to compare."""
    for name, value in sorted(vars(scheduler).items()):
        if isinstance(value, torch.Tensor):
            value = value.cpu().double().numpy().tobytes()
        if not callable(value):
            yield name
            yield value if isinstance(value, bytes) else repr(value)


def set_timesteps(scheduler: Any, num_steps: int, *, sigmas: bool = False) -> None:
    """As a pipeline does before its loop.

    Args:
        sigmas: whether the pipeline gives noise levels, as of `Family.sigmas`.
    """
    if sigmas:
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / num_steps, num_steps))
    else:
        scheduler.set_timesteps(num_steps)


def planned_coefficients(
    scheduler: Any, num_steps: int, branch_weights: tuple[float, ...], *, sigmas: bool = False
) -> SamplerCoefficients:
    """As `coefficients_of`, from a scheduler whose timesteps are not set yet, and `set_timesteps`.

    Raises:
        ValueError: its timesteps depend on more than their number (on the clip's size, say).
    """
    own = copy.deepcopy(scheduler)
    try:
        set_timesteps(own, num_steps, sigmas=sigmas)
    except Exception as error:  # whatever a scheduler needs besides, a size or a stage
        problem = str(error) or type(error).__name__
        raise ValueError(
            f"{type(own).__name__} cannot be planned for without a run: {problem}"
        ) from error
    return coefficients_of(own, branch_weights)
