"""The prior: an error model of a pipeline that was never measured, from models that were.

In: profiles of some models and their trajectories, or the file that ships. Out: a `Profile` of any
run whose sampler has a trajectory, without candidates. A model's Gram matrix is turned into one of
velocities over the noise angle (`planning/trajectory.py`), interpolated to common places, and
averaged; for a run the way goes back. Errors too:

    place of an angle θ:  u = t / (3 - 2 t),   t = sin θ / (sin θ + cos θ)
    gain_s c_s = r_n sum over j > s of a_sj Γ(θ_j) / r_j

u falls evenly over the steps of a flow of shift 3. Γ is the growth to the end of an error of
latents of one size, and a_sj what a unit of prediction s adds to the latents in step j.
Knows numbers and its own file; no pipeline.
Source: ours (docs/how-it-works.md).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
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
PLACES = torch.linspace(1.0, 0.003, 50, dtype=torch.float64)  # of the rows of a file
MOST_PARTS = 2  # components of a run: as one, or those of guidance apart
_SHIFT = 3.0
_LEAST_GAIN = 1e-6
MOST_MODELS = 1000


def places_of(angles: torch.Tensor) -> torch.Tensor:
    """Noise angles -> places in a run: 1 at pure noise, 0 at the clip.

    Example:
        >>> places_of(torch.tensor([math.pi / 2, math.atan(3.0), 0.0])).round(decimals=3).tolist()
        [1.0, 0.5, 0.0]
    """
    share = angles.sin() / (angles.sin() + angles.cos())
    return share / (_SHIFT - (_SHIFT - 1) * share)


@dataclass(frozen=True)
class Prior:
    """What models have in common.

    Args:
        grams: by number of components B: `(50 B + 1, 50 B + 1)` float64, inner products of
            velocities at `PLACES` and of the noise, over the squared norm of the final clip.
        gains: `(50,)`, Γ at the same places.
        memory: of an error's direction, in places.
        models: what it is made of.
        judged: `(m, 2)`: by model that was left out of a prior: mean and standard deviation of the
            real less the predicted PSNR over its clips, in dB; m may be 0.
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
        """From names, profiles and the trajectories that these were measured on.

        Raises:
            ValueError: there is none.
        """
        if not measured:
            raise ValueError("accepted: at least one profile")
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
        """Of a run that was not measured.

        Raises:
            ProfileError: no model of the prior has as many components, or the final latents do not
                depend on a step's prediction (a clean clip is predicted), so its gain is infinite.
        """
        sampler, levels = trajectory.sampler, trajectory.levels
        parts = len(sampler.branch_weights)
        if parts not in self.grams:
            accepted = ", ".join(map(str, self.grams))
            raise ProfileError(f"the run has {parts} branches; accepted by the prior: {accepted}")
        places = places_of(levels.angles)
        gram = trajectory.from_angles(interpolate_gram(self.grams[parts], PLACES, places[:-1]))
        growth = (linear_weights(PLACES, places[1:]) @ self.gains.log()).exp()
        gain = (_added(trajectory) @ growth / sampler.coefficients).abs().clamp_min(_LEAST_GAIN)
        if not gain.isfinite().all():
            raise ProfileError("a step's prediction has no part in the final latents")
        steps_a_place = sampler.num_steps / float(places[0] - places[-1])
        final = sampler.final_weights
        gram = gram / (final @ gram @ final)
        return ErrorModel(sampler, gram[None], gain, self.memory * steps_a_place)

    def profile_for(self, trajectory: Trajectory, guidance: float) -> Profile:
        """The profile that stands for a run's own, where it has none.

        Raises:
            ProfileError: as of `error_model_for`.
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
        """What a plan from this prior rests on."""
        return Evidence.of_left_out(self.judged, len(self.models))

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            OSError: it cannot be written.
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
            ProfileError: it is no prior, or a field is not accepted; names the file and the field.
            FileNotFoundError: it is not there.
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
    """The prior of the package."""
    return Prior.load()


class SchedulerCache:
    """What is measured of a scheduler, and the prior's profiles: once for each of its states, as it
    takes milliseconds; equal runs have one profile."""

    def __init__(self) -> None:
        self._state: tuple[Any, ...] = ()  # runs of one pipeline mostly have one
        self._response: Response | None = None
        self._profiles: dict[tuple[Any, ...], Profile | None] = {}

    def response(self, scheduler: Any, begin: int = 0, num_steps: int | None = None) -> Response:
        """As `response_of`."""
        state = type(scheduler), begin, num_steps, *state_of(scheduler)
        if self._response is None or state != self._state:
            self._response, self._profiles = response_of(scheduler, begin, num_steps), {}
            self._state = state
        return self._response

    def profile(
        self, scheduler: Any, sampler: SamplerCoefficients, guidance: float
    ) -> Profile | None:
        """As `profile_by_prior`."""
        response = self.response(scheduler, 0, sampler.num_steps)
        key = sampler.branch_weights, sampler.second, guidance
        if key not in self._profiles:
            self._profiles[key] = profile_by_prior(scheduler, sampler, guidance, response)
        return self._profiles[key]


def profile_by_prior(
    scheduler: Any, sampler: SamplerCoefficients, guidance: float, response: Response | None = None
) -> Profile | None:
    """The shipped prior's profile of a run; None where it does not know such a run.

    Args:
        scheduler: whose timesteps are set.
        sampler: of the run, which begins with them.
        guidance: its scale, for the profile's key.
        response: of this run, where it was measured before.
    """
    weights, n = sampler.branch_weights, sampler.num_steps
    try:
        found = trajectory_of(scheduler, weights, 0, n, response=response)
        found = dataclasses.replace(found, sampler=sampler)
        return shipped().profile_for(found, guidance)
    except (NoLevelsError, ProfileError):
        return None


def _grams(profile: Profile, trajectory: Trajectory) -> list[torch.Tensor]:
    """A model's velocities at `PLACES`: as it guides, and as one guided prediction."""
    gram = trajectory.to_angles(profile.gram.mean(0))
    weights = profile.sampler.step_weights
    guide = torch.cat([weight.diag() for weight in weights], 1)
    one = torch.ones(1, 1, dtype=torch.float64)
    guide = torch.block_diag(guide, one)  # type: ignore[no-untyped-call]
    each = [gram] if len(weights) == 1 else [gram, guide @ gram @ guide.T]
    places = places_of(trajectory.angles)
    return [interpolate_gram(one, places, PLACES) for one in each]


def _added(trajectory: Trajectory) -> torch.Tensor:
    """`(n, n)`: what a unit of each prediction adds in each step, in sizes of the final clip.

    What it added before goes on as the start noise does: by the sampler, without predictions.
    """
    states, scales = trajectory.states, trajectory.levels.scales
    before, after = states[:-1], states[1:]
    scale = after[:, -1:] / before[:, -1:]
    return (after - scale * before)[:, :-1].T * scales[-1] / scales[1:]


def _gains(profile: Profile, trajectory: Trajectory) -> torch.Tensor:
    """Γ at `PLACES`, taken as constant over the steps to which a prediction is added."""
    sums = _added(trajectory).sum(1) / profile.sampler.coefficients
    growth = (profile.error_gain / sums.abs().clamp_min(_LEAST_GAIN)).clamp_min(_LEAST_GAIN)
    places = places_of(trajectory.levels.angles)[1:]
    return (linear_weights(places, PLACES) @ growth.log()).exp()


def _memory(profile: Profile, trajectory: Trajectory) -> float:
    places = places_of(trajectory.levels.angles)
    return profile.error_memory * float(places[0] - places[-1]) / profile.sampler.num_steps
