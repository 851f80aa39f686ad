"""Measures what each prediction adds to the final latents: the impulse response of a scheduler.

In: a scheduler. Out: its `SamplerCoefficients`. A copy of the scheduler is stepped on n + 1
numbers. Number s starts at 0 and gets a prediction of 1 at step s, and of 0 at all other steps. The
last number starts at 1 and always gets 0. Their final values are the coefficients of the
predictions and of the noise. One more number gets random predictions. It ends at their weighted sum
only if the sampler is linear in the predictions and draws no noise. Any other sampler is refused
before the first step.
Knows the diffusers scheduler interface. The global random generator is never advanced.
Source: ours.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dit_accel.planning.plan import SamplerCoefficients

OF_A_RUN = ("timesteps", "sigmas", "num_inference_steps")  # attributes that `set_timesteps` sets
# Relative error with random predictions up to which a sampler counts as linear; float32 rounding
# stays far below.
MAX_LINEAR_ERROR = 1e-3


class NotLinearError(ValueError):
    """The final latents are not a weighted sum of the predictions, so no plan can be made."""


def _refusal(scheduler: Any, problem: str, accepted: str) -> NotLinearError:
    instead = "Use another scheduler, or accelerate by threshold"
    return NotLinearError(f"{type(scheduler).__name__} {problem}; accepted: {accepted}. {instead}")


def check_steps(scheduler: Any) -> None:
    """Refuse a sampler whose `step` does not begin with prediction, timestep and sample.

    Raises:
        NotLinearError: the arguments differ, as in CogVideoXDPMScheduler, which also draws noise at
            every step; the error names the scheduler.
    """
    taken = list(inspect.signature(type(scheduler).step).parameters)[1:4]
    if "timestep" in taken[2:] or "sample" in taken[:2]:
        accepted = "schedulers whose step begins with model_output, timestep, sample"
        raise _refusal(scheduler, f"has step({', '.join(taken)}, ...)", accepted)


def unstepped(scheduler: Any) -> Any:
    """A copy of a scheduler that has run, in the state before its first step.

    `set_timesteps` clears the state that the steps left behind. Then the run's own timesteps are
    put back.
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
        vars(self._copy).pop("step", None)  # calibration's wrapper, which must not see these steps
        for name, value in (("_step_index", None), ("_begin_index", begin or None)):
            if hasattr(self._copy, name):
                setattr(self._copy, name, value)
        self._step = 0
        num_steps = len(scheduler.timesteps) - begin
        self._random = torch.randn(num_steps + 1, generator=torch.Generator().manual_seed(0))
        # The shape is that of latents, because UniPC's step needs batch and channels.
        self._values = torch.zeros(1, num_steps + 2, 1, 1, 1)
        self._values[0, -2], self._values[0, -1] = 1, self._random[-1]
        self._states = [self._values]

    def step(self, timestep: Any, **kwargs: Any) -> None:
        """Make the next step, with the arguments that the pipeline passes to the scheduler."""
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
        """`(n + 1,)` float64: the coefficients of the predictions, then of the noise."""
        return self._values.flatten()[:-1].double()

    @property
    def states(self) -> torch.Tensor:
        """`(steps + 1, n + 1)` float64: the same weights in the latents, for all steps made so far.

        Each row is for the latents before a step; the last row is for those after the last step.
        """
        return torch.stack([values.flatten()[:-1] for values in self._states]).double()

    def check(self) -> None:
        """Call it after the last step, to refuse a sampler that is not linear.

        Raises:
            NotLinearError: the final value with random predictions is not their weighted sum.
        """
        terms = self.coefficients * self._random
        error = (float(self._values.flatten()[-1]) - terms.sum()).abs() / terms.abs().sum()
        if not error <= MAX_LINEAR_ERROR:  # `not <=` also catches NaN
            problem = f"is random, not linear or not finite at {self._step} steps"
            accepted = "schedulers that add up weighted predictions and draw no noise"
            raise _refusal(self._copy, problem, accepted)


@dataclass(frozen=True)
class Response:
    """The impulse response of a run of n steps.

    Args:
        states: `(n + 1, n + 1)` float64: row by row, the latents before each step and at the end;
            in the columns, the weights of the predictions, then of the noise.
        timesteps: `(n,)` float64.
    """

    states: torch.Tensor
    timesteps: torch.Tensor

    def sampler(self, branch_weights: tuple[float, ...]) -> SamplerCoefficients:
        """The sampler's coefficients.

        Args:
            branch_weights: weights of the components in the guided prediction.
        """
        return SamplerCoefficients(self.states[-1, :-1], self.timesteps, branch_weights)


def response_of(
    scheduler: Any, begin: int = 0, num_steps: int | None = None,
    given: Mapping[str, Any] | None = None,
) -> Response:  # fmt: skip
    """The impulse response of a run; other arguments and errors as in `coefficients_of`.

    Args:
        given: what the pipeline passes to every step beside prediction, timestep and sample.
    """
    timesteps = scheduler.timesteps.cpu()[begin:][:num_steps]
    steps = timesteps.diff()  # Mochi's timesteps go up
    if not bool((steps < 0).all() or (steps > 0).all()):
        problem = "needs more than one forward at a timestep"
        raise _refusal(scheduler, problem, "schedulers with one forward at each timestep")
    response = ImpulseResponse(scheduler, begin)
    for timestep in timesteps:
        response.step(timestep, **(given or {}))
    response.check()
    used = [*range(len(timesteps)), -1]  # the run's steps, and the noise
    return Response(response.states[:, used], timesteps.double().flatten())


def coefficients_of(
    scheduler: Any, branch_weights: tuple[float, ...], begin: int = 0, num_steps: int | None = None
) -> SamplerCoefficients:
    """The coefficients of a run, from a scheduler whose timesteps are set.

    Args:
        scheduler: the run's; it is not changed.
        branch_weights: weights of the components in the guided prediction.
        begin, num_steps: the run uses `num_steps` timesteps from index `begin` on; by default all.

    Raises:
        NotLinearError: plans cannot be made for this scheduler; the error names the scheduler and
            what is accepted.
    """
    return response_of(scheduler, begin, num_steps).sampler(branch_weights)


def state_of(scheduler: Any) -> Iterator[str | bytes]:
    """All settings and tensors that decide what a scheduler does, in a form to compare."""
    for name, value in sorted(vars(scheduler).items()):
        if isinstance(value, torch.Tensor):
            value = value.cpu().double().numpy().tobytes()
        if not callable(value):
            yield name
            yield value if isinstance(value, bytes) else repr(value)


def set_timesteps(scheduler: Any, num_steps: int, *, sigmas: bool = False) -> None:
    """Set the timesteps as a pipeline does before its loop.

    Args:
        sigmas: whether the pipeline passes sigmas to `set_timesteps` (`Family.sigmas`).
    """
    if sigmas:
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / num_steps, num_steps))
    else:
        scheduler.set_timesteps(num_steps)


def planned_coefficients(
    scheduler: Any, num_steps: int, branch_weights: tuple[float, ...], *, sigmas: bool = False,
    begin: int = 0,
) -> SamplerCoefficients:  # fmt: skip
    """As `coefficients_of`, for a scheduler whose timesteps are not set yet.

    Args:
        num_steps: the timesteps that are set; the run begins at index `begin`.

    Raises:
        ValueError: the timesteps depend on more than their number, for instance on the clip's size.
    """
    own = copy.deepcopy(scheduler)
    try:
        set_timesteps(own, num_steps, sigmas=sigmas)
    except Exception as error:  # some schedulers need more than the steps: a size or a stage
        problem = str(error) or type(error).__name__
        raise ValueError(
            f"the timesteps of {type(own).__name__} are not known before a run: {problem}"
        ) from error
    return coefficients_of(own, branch_weights, begin)
