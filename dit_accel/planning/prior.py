"""The prior: an error model for pipelines that were never measured, made from models that were.

In: profiles of some models and their trajectories, or the file that ships. Out: a `Profile` without
candidates, for any run whose sampler has a trajectory. Each model's Gram matrix is converted to
velocities over the noise angle (`planning/trajectory.py`) and interpolated to common places. The
matrices of all models are then averaged. For a run, the average is converted back. The error gain
is converted in the same way:

    place of an angle θ:  u = t / (3 - 2 t),   t = sin θ / (sin θ + cos θ)
    gain_s c_s = r_n sum over j > s of a_sj Γ(θ_j) / r_j

u falls evenly over the steps of a flow schedule with shift 3. j counts the latents: those before
step j, or at the end for j = n. r_j is their scale, and a_sj is what a unit of prediction s adds in
the step that leads to them. Γ(θ) is the factor by which an error at angle θ grows until the end, if
all latents are scaled to one size.
Knows numbers and its own file; no pipeline.
Source: ours (docs/how-it-works.md).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dit_accel.core.document import Field
from dit_accel.planning import profile_file
from dit_accel.planning.error_model import ErrorModel
from dit_accel.planning.interpolation import interpolate_gram, linear_weights
from dit_accel.planning.noise_levels import NoLevelsError
from dit_accel.planning.plan import SamplerCoefficients
from dit_accel.planning.prediction import Evidence
from dit_accel.planning.profile import Profile, check_gram
from dit_accel.planning.profile_file import ProfileError, TensorFields
from dit_accel.planning.profile_key import ProfileKey
from dit_accel.planning.sampler import Response, response_of, state_of
from dit_accel.planning.search import PLAN_DEPTH
from dit_accel.planning.trajectory import Trajectory, trajectory_of

PRIOR_FORMAT = "dit-accel-prior"
SHIPPED = Path(__file__).parent / "prior.safetensors"
PLACES = torch.linspace(1.0, 0.003, 50, dtype=torch.float64)  # places of the rows in a file
MOST_PARTS = 2  # components of a run: one guided prediction, or two components of guidance
_SHIFT = 3.0
_LEAST_GAIN = 1e-6
MOST_MODELS = 1000


def places_of(angles: torch.Tensor) -> torch.Tensor:
    """Noise angles -> places in a run: 1 for pure noise, 0 for the clean clip.

    Example:
        >>> places_of(torch.tensor([math.pi / 2, math.atan(3.0), 0.0])).round(decimals=3).tolist()
        [1.0, 0.5, 0.0]
    """
    share = angles.sin() / (angles.sin() + angles.cos())
    return share / (_SHIFT - (_SHIFT - 1) * share)


@dataclass(frozen=True)
class Prior:
    """An average of error models, over several models.

    Args:
        grams: by number of components B: `(50 B + 1, 50 B + 1)` float64, the inner products of the
            velocities at `PLACES` and of the noise, over the squared norm of the final clip.
        gains: `(50,)`, Γ at the same places.
        memory: the error memory, in places.
        models: names of the models that the prior is made from.
        judged: `(m, 2)`: for each of m models that were left out of a prior in turn, mean and
            standard deviation over clips of the real less the predicted PSNR, in dB; m may be 0.
    """

    grams: dict[int, torch.Tensor]
    gains: torch.Tensor
    memory: float
    models: tuple[str, ...]
    judged: torch.Tensor = dataclasses.field(
        default_factory=lambda: torch.zeros(0, 2, dtype=torch.float64)
    )

    @classmethod
    def of(cls, measured: Sequence[tuple[str, Profile, Trajectory]]) -> Prior:
        """The prior from names, profiles, and the trajectories on which the profiles were measured.

        Raises:
            ValueError: `measured` is empty.
        """
        if not measured:
            raise ValueError("measured is empty; accepted: at least one profile")
        grams: dict[int, list[torch.Tensor]] = {}
        for _, profile, trajectory in measured:
            for gram in _grams(profile, trajectory):
                grams.setdefault((len(gram) - 1) // len(PLACES), []).append(gram)
        logs = [_gains(profile, trajectory).log() for _, profile, trajectory in measured]
        memories = [_memory(profile, trajectory) for _, profile, trajectory in measured]
        return cls(
            {parts: torch.stack(some).mean(0) for parts, some in sorted(grams.items())},
            torch.stack(logs).mean(0).exp(),
            math.exp(sum(map(math.log, memories)) / len(memories)),
            tuple(name for name, _, _ in measured),
        )

    def error_model_for(self, trajectory: Trajectory) -> ErrorModel:
        """The error model of a run that was not measured.

        Raises:
            ProfileError: no model of the prior has as many components; or the final latents do not
                depend on the prediction of a step (as where a clean clip is predicted), so that its
                gain is infinite.
        """
        sampler, levels = trajectory.sampler, trajectory.levels
        parts = len(sampler.branch_weights)
        if parts not in self.grams:
            accepted = ", ".join(map(str, self.grams))
            raise ProfileError(
                f"the run's number of branches is {parts}; accepted with this prior: {accepted}"
            )
        places = places_of(levels.angles)
        gram = trajectory.from_angles(interpolate_gram(self.grams[parts], PLACES, places[:-1]))
        growth = (linear_weights(PLACES, places[1:]) @ self.gains.log()).exp()
        gain = (_added(trajectory) @ growth / sampler.coefficients).abs().clamp_min(_LEAST_GAIN)
        if not gain.isfinite().all():
            step = int((~gain.isfinite()).nonzero()[0])
            raise ProfileError(
                f"the final latents do not depend on the prediction of step {step}; accepted: "
                "schedulers whose final latents depend on every prediction"
            )
        steps_a_place = sampler.num_steps / float(places[0] - places[-1])
        final = sampler.final_weights
        gram = gram / (final @ gram @ final)
        return ErrorModel(sampler, gram[None], gain, self.memory * steps_a_place)

    def profile_for(self, trajectory: Trajectory, guidance: float) -> Profile:
        """A profile for a run whose pipeline has none of its own.

        Raises:
            ProfileError: as in `error_model_for`.
        """
        sampler = trajectory.sampler
        model = self.error_model_for(trajectory)
        key = ProfileKey(
            *("",) * 5, parts=len(sampler.branch_weights), steps=sampler.num_steps,
            guidance=guidance,
        )  # fmt: skip
        return Profile(
            key, sampler, model.gram, model.error_gain, model.error_memory, PLAN_DEPTH, (), {},
            evidence=self.evidence,
        )  # fmt: skip

    @property
    def evidence(self) -> Evidence:
        """The evidence for plans that are made from this prior."""
        return Evidence.of_left_out(self.judged, len(self.models))

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        tensors = {f"gram.{parts}": gram.float() for parts, gram in self.grams.items()}
        tensors["gains"] = self.gains
        if len(self.judged):
            tensors["judged"] = self.judged
        head = {"models": list(self.models), "memory": self.memory, "branches": list(self.grams)}
        profile_file.write(path, head, tensors, form=PRIOR_FORMAT)

    @classmethod
    def load(cls, path: Path = SHIPPED) -> Prior:
        """Read a file.

        Raises:
            ProfileError: the file is no prior, or a field is not accepted; the error names the file
                and the field.
            FileNotFoundError: the file does not exist.
        """
        return profile_file.load(Path(path), cls._of, "a damaged prior", form=PRIOR_FORMAT)

    @classmethod
    def _of(cls, head: Field, tensors: TensorFields) -> Prior:
        count = len(PLACES)
        parts = [field.whole(1, MOST_PARTS) for field in head.at("branches").entries(1, 2)]
        grams = {}
        for part in parts:
            name, rows = f"gram.{part}", part * count + 1
            grams[part] = check_gram(name, tensors.get(name, (rows, rows))[None])[0]
        judged = {}
        if "judged" in tensors:
            judged["judged"] = tensors.get("judged", (None, 2), -1000.0, 1000.0)
        models = tuple(field.text() for field in head.at("models").entries(1, MOST_MODELS))
        gains = tensors.get("gains", (count,), 1e-9, 1e9)
        return cls(grams, gains, head.at("memory").number(1e-6, 1e9), models, **judged)


@functools.cache
def shipped() -> Prior:
    """The prior that ships with the package."""
    return Prior.load()


class SchedulerCache:
    """Caches the impulse response of a scheduler and the prior's profiles for it.

    A measurement takes milliseconds, so it is made only when the scheduler's state changes. Equal
    runs share one profile.
    """

    def __init__(self) -> None:
        self._state: tuple[Any, ...] = ()  # one is enough: a pipeline's runs mostly share it
        self._response: Response | None = None
        self._profiles: dict[tuple[Any, ...], Profile | None] = {}

    def response(
        self, scheduler: Any, begin: int = 0, num_steps: int | None = None,
        given: Mapping[str, Any] | None = None,
    ) -> Response:  # fmt: skip
        """As `response_of`."""
        of_steps = sorted((given or {}).items())
        state = type(scheduler), begin, num_steps, *of_steps, *state_of(scheduler)
        if self._response is None or state != self._state:
            self._response, self._profiles = response_of(scheduler, begin, num_steps, given), {}
            self._state = state
        return self._response

    def profile(
        self, scheduler: Any, sampler: SamplerCoefficients, guidance: float,
        given: Mapping[str, Any] | None = None,
    ) -> Profile | None:  # fmt: skip
        """As `profile_by_prior`; `given` as in `response_of`."""
        response = self.response(scheduler, 0, sampler.num_steps, given)
        key = sampler.branch_weights, sampler.second, guidance
        if key not in self._profiles:
            self._profiles[key] = profile_by_prior(scheduler, sampler, guidance, response)
        return self._profiles[key]


def profile_by_prior(
    scheduler: Any, sampler: SamplerCoefficients, guidance: float, response: Response | None = None
) -> Profile | None:
    """The shipped prior's profile for a run; None if the prior does not know such a run.

    Args:
        scheduler: the run's, with its timesteps set.
        sampler: coefficients of the run, over the first timesteps of the scheduler.
        guidance: guidance scale, for the profile's key.
        response: the run's impulse response, if it was measured before.
    """
    weights, n = sampler.branch_weights, sampler.num_steps
    try:
        found = trajectory_of(scheduler, weights, 0, n, response=response)
        found = dataclasses.replace(found, sampler=sampler)
        return shipped().profile_for(found, guidance)
    except (NoLevelsError, ProfileError):
        return None


def _grams(profile: Profile, trajectory: Trajectory) -> list[torch.Tensor]:
    """A model's Gram matrices of velocities at `PLACES`.

    The first has the model's own components. If there are two, the second has the guided prediction
    as its only component.
    """
    gram = trajectory.to_angles(profile.gram.mean(0))
    guide = profile.sampler.guide
    one_part = len(profile.sampler.branch_weights) == 1
    each = [gram] if one_part else [gram, guide @ gram @ guide.T]
    places = places_of(trajectory.angles)
    return [interpolate_gram(one, places, PLACES) for one in each]


def _added(trajectory: Trajectory) -> torch.Tensor:
    """`(n, n)`: what a unit of each prediction adds to the latents in each step.

    All latents are scaled to the size of the final clip. What a prediction added in earlier steps
    is subtracted: the sampler scales that part as it scales the starting noise.
    """
    states, scales = trajectory.states, trajectory.levels.scales
    before, after = states[:-1], states[1:]
    scale = after[:, -1:] / before[:, -1:]
    return (after - scale * before)[:, :-1].T * scales[-1] / scales[1:]


def _gains(profile: Profile, trajectory: Trajectory) -> torch.Tensor:
    """Γ at `PLACES`, assumed to be constant over the steps to which one prediction is added."""
    sums = _added(trajectory).sum(1) / profile.sampler.coefficients
    growth = (profile.error_gain / sums.abs().clamp_min(_LEAST_GAIN)).clamp_min(_LEAST_GAIN)
    places = places_of(trajectory.levels.angles)[1:]
    return (linear_weights(places, PLACES) @ growth.log()).exp()


def _memory(profile: Profile, trajectory: Trajectory) -> float:
    places = places_of(trajectory.levels.angles)
    return profile.error_memory * float(places[0] - places[-1]) / profile.sampler.num_steps
