"""The profile file: what calibration measured of one pipeline; safetensors with a JSON header.

A profile knows two kinds of things. The *field* (inner products of predictions, gain, memory) lets
plans be made for any number of steps and any guidance, without a run. The *rungs* are plans of the
calibrated number of steps that were carried out and refined, with what they really gave, prompt by
prompt. It is stored over the scheduler's timesteps, so that another number of steps is served by
interpolation; what cannot be carried over is refused, with the difference named.

Knows numbers and files; nothing of a live model.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dit_accel.planning.difficulty import PromptDifficulty
from dit_accel.planning.plan import Plan, SamplerCoefficients
from dit_accel.planning.search import ErrorModel

PROFILE_FORMAT = "dit-accel-profile"
PROFILE_VERSION = 1
SUFFIX = ".safetensors"
OTHER_SIZE_DB = 3.0  # what clips of another size are believed to lose (docs/planning.md)

# What the file calls every field, by the field's name here. The right sides are the format: a field
# may be renamed, its name in the file may not. In the header stand the identity, the schedule's mix
# and the numbers; all else are tensors, each under its section's name and a dot.
KEY_NAMES = {
    "pipeline": "pipeline",
    "transformer": "transformer",
    "scheduler": "scheduler",
    "weights": "weights",
    "sampler": "sampler",
    "parts": "parts",
    "steps": "steps",
    "guidance": "guidance",
    "height": "height",
    "width": "width",
    "frames": "frames",
    "dtype": "dtype",
}
COEFFICIENTS_NAMES = {"coefficients": "shares", "timesteps": "times", "branch_weights": "mix"}
PROFILE_NAMES = {
    "gram": "gram",
    "error_gain": "gain",
    "error_memory": "memory",
    "depth": "depth",
    "metadata": "made",
}
CANDIDATE_NAMES = {
    "corrections": "changes",
    "psnr_db": "psnr_db",
    "latents_db": "latents_db",
    "extrapolation_error": "surprise",
    "error_spread": "spread",
    "alarm": "alarm",
}
DIFFICULTY_NAMES = {"centre": "centre", "weights": "weights", "known": "known"}


class ProfileError(ValueError):
    """A file that is no profile, or a profile that is not of this pipeline."""


@dataclass(frozen=True)
class ProfileKey:
    """What a profile is of, or a run wants one for.

    Args:
        pipeline, transformer, scheduler: class names.
        weights: a short hash of the transformer's configuration and some of its weights.
        sampler: a short hash of the scheduler's configuration.
        parts: of the guided prediction; 2 where guidance runs as separate forwards.
        steps, guidance, height, width, frames, dtype: of the clips.
    """

    pipeline: str
    transformer: str
    scheduler: str
    weights: str
    sampler: str
    parts: int
    steps: int
    guidance: float
    height: int
    width: int
    frames: int
    dtype: str

    def refusals(self, wanted: ProfileKey) -> tuple[str, ...]:
        """Differences from `wanted` over which a profile cannot be carried, each in words."""
        names = ["pipeline", "transformer", "scheduler", "weights", "sampler", "parts"]
        if self.parts == 1:
            names.append("guidance")
        return self._named(wanted, names)

    def carried(self, wanted: ProfileKey) -> tuple[str, ...]:
        """Differences over which it is carried, each in words."""
        names = ["steps", "height", "width", "frames", "dtype"]
        if self.parts > 1:
            names.append("guidance")
        return self._named(wanted, names)

    def as_filed(self) -> dict[str, Any]:
        """By the names that the profile file has; JSON-able."""
        return {filed: getattr(self, name) for name, filed in KEY_NAMES.items()}

    @classmethod
    def from_filed(cls, values: Mapping[str, Any]) -> ProfileKey:
        """Of what `as_filed` gives.

        Raises:
            KeyError: a name is missing.
            TypeError: there is a name that is not known.
        """
        unknown = sorted(set(values) - set(KEY_NAMES.values()))
        if unknown:
            raise TypeError(f"identity has {unknown}")
        return cls(**{name: values[filed] for name, filed in KEY_NAMES.items()})

    def of_size(self, height: int, width: int, frames: int) -> bool:
        """Whether it is of clips of this size; of none in particular: yes."""
        own = (self.height, self.width, self.frames)
        return not any(own) or own == (height, width, frames)

    def _named(self, wanted: ProfileKey, names: list[str]) -> tuple[str, ...]:
        pairs = ((name, getattr(self, name), getattr(wanted, name)) for name in names)
        return tuple(
            f"{name} is {mine} in the profile, {theirs} here"
            for name, mine, theirs in pairs
            if mine != theirs
        )


@dataclass(frozen=True)
class CandidatePlan:
    """A plan that was carried out on every calibration prompt.

    Args:
        computed: its computed steps, in order.
        changes: `(k, F)` float64, of every window's line.
        psnr_db: `(P,)` of each prompt against its uncached twin, served by changes that had not
            seen it.
        latents_db: `(P,)` the same of the latents, relative to their size.
        surprise: `(k,)` mean of the logarithm of what the line missed by at each computed step.
        spread: `(k,)` its standard deviation over prompts.
        alarm: `(P,)` of no use any more; zeros in what is calibrated now. Earlier versions took a
            score of each prompt from it, and refuse a file without it.
    """

    computed: tuple[int, ...]
    corrections: torch.Tensor
    psnr_db: torch.Tensor
    latents_db: torch.Tensor
    extrapolation_error: torch.Tensor
    error_spread: torch.Tensor
    alarm: torch.Tensor


@dataclass(frozen=True)
class Profile:
    """What calibration measured.

    Args:
        identity: of what.
        schedule: of the calibrated number of steps.
        gram: `(P, R, R)`, as `planner.Field` takes it; of calibration the mean over clips, P = 1.
        gain: `(n,)`.
        memory: in steps.
        depth: computed predictions that the rungs' forecasts read.
        rungs: from many computed steps to few.
        prompts: how many were calibrated on.
        made: versions and settings, for people.
        difficulty: how hard prompts are, by their text; None where that is not known.
    """

    key: ProfileKey
    schedule: SamplerCoefficients
    gram: torch.Tensor
    error_gain: torch.Tensor
    error_memory: float
    depth: int
    candidates: tuple[CandidatePlan, ...]
    metadata: dict[str, Any]
    difficulty: PromptDifficulty | None = None

    def for_text(self, text: torch.Tensor | None) -> Profile:
        """As it would be, were all clips of calibration as hard as these prompts.

        Args:
            text: `(B, T)` pooled embeddings; None, or of another width: the profile itself.
        """
        known = self.difficulty
        if known is None or text is None or text.shape[-1] != len(known.centre):
            return self
        hard = known.of(text)
        return self._giving(lambda psnr_db: known.shifted(psnr_db, hard))

    def resized(self) -> Profile:
        """As it is believed to be of clips of another size: none were made in calibration, and
        `OTHER_SIZE_DB` are taken off what each plan gave."""
        return self._giving(lambda psnr_db: psnr_db - OTHER_SIZE_DB)

    def _giving(self, moved: Callable[[torch.Tensor], torch.Tensor]) -> Profile:
        candidates = (dataclasses.replace(r, psnr_db=moved(r.psnr_db)) for r in self.candidates)
        return dataclasses.replace(self, candidates=tuple(candidates))

    @property
    def field(self) -> ErrorModel:
        """For planning at the calibrated steps and guidance."""
        return ErrorModel(self.schedule, self.gram, self.error_gain, self.error_memory)

    def plan_of(self, candidate: CandidatePlan) -> Plan:
        """The rung as a plan."""
        parts = len(self.schedule.branch_weights)
        changes = {
            step: candidate.corrections[place, : parts * min(place + 1, self.depth) + 1]
            for place, step in enumerate(candidate.computed)
        }
        return Plan.of(candidate.computed, self.schedule, changes, self.depth)

    def field_for(self, schedule: SamplerCoefficients) -> ErrorModel:
        """The field over another schedule: rows are interpolated in the timestep.

        Args:
            schedule: of as many parts; its mix may be another (another guidance).

        Raises:
            ProfileError: the number of parts differs.
        """
        if len(schedule.branch_weights) != len(self.schedule.branch_weights):
            raise ProfileError(
                f"the profile has {len(self.schedule.branch_weights)} parts, the run "
                f"{len(schedule.branch_weights)}"
            )
        to = _interpolation(self.schedule.timesteps, schedule.timesteps)
        parts = len(schedule.branch_weights)
        eye = torch.eye(parts + 1, dtype=torch.float64)
        wide = torch.kron(eye, to)[: parts * len(to) + 1, : parts * to.shape[1] + 1]
        wide[-1], wide[:, -1], wide[-1, -1] = 0.0, 0.0, 1.0
        ratio = self.schedule.num_steps / schedule.num_steps
        gain = (to @ self.error_gain.log()).exp()
        return ErrorModel(schedule, wide @ self.gram @ wide.T, gain, self.error_memory / ratio)

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        from safetensors.torch import save_file

        own, schedule = PROFILE_NAMES, COEFFICIENTS_NAMES
        tensors = {
            own["gram"]: self.gram.float(),
            own["error_gain"]: self.error_gain,
            schedule["coefficients"]: self.schedule.coefficients,
            schedule["timesteps"]: self.schedule.timesteps,
        }
        for place, candidate in enumerate(self.candidates):
            tensors |= _filed(f"rungs.{place}", candidate, CANDIDATE_NAMES)
        if self.difficulty is not None:
            tensors |= _filed("difficulty", self.difficulty, DIFFICULTY_NAMES)
        head = {
            "format": PROFILE_FORMAT,
            "version": PROFILE_VERSION,
            "identity": self.key.as_filed(),
            schedule["branch_weights"]: list(self.schedule.branch_weights),
            own["error_memory"]: self.error_memory,
            own["depth"]: self.depth,
            "rungs": [candidate.computed for candidate in self.candidates],
            "careful": [],  # nothing reads it any more, and earlier versions refuse a file without
            own["metadata"]: self.metadata,
        }
        path = Path(path)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        os.close(handle)
        try:
            contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
            save_file(contiguous, temporary, metadata={"profile": json.dumps(head)})
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Profile:
        """Read a file.

        A section that is not known is read over: those of levels and of plans that a run turned to,
        say, which older files may have.

        Raises:
            ProfileError: it is no profile, or of a version that is not known.
            FileNotFoundError: it is not there.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise FileNotFoundError(f"no profile at {path}")
        try:
            with safe_open(str(path), "pt") as file:
                head = json.loads((file.metadata() or {}).get("profile", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, ValueError) as error:
            raise ProfileError(f"{path} is no profile: {error}") from error
        head = head if isinstance(head, dict) else {}
        if head.get("format") != PROFILE_FORMAT or head.get("version") != PROFILE_VERSION:
            found = f"format {head.get('format')!r}, version {head.get('version')!r}"
            raise ProfileError(
                f"{path} has {found}; accepted: {PROFILE_FORMAT}, version {PROFILE_VERSION}"
            )
        try:
            return cls._of(head, tensors)
        except (KeyError, TypeError, ValueError) as error:
            raise ProfileError(f"{path} is a damaged profile: {error}") from error

    @classmethod
    def _of(cls, head: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Profile:
        candidates = tuple(
            CandidatePlan(tuple(computed), **_of_file(f"rungs.{place}", tensors, CANDIDATE_NAMES))
            for place, computed in enumerate(head["rungs"])
        )
        own, schedule = PROFILE_NAMES, COEFFICIENTS_NAMES
        known = f"difficulty.{DIFFICULTY_NAMES['centre']}" in tensors
        profile = cls(
            key=ProfileKey.from_filed(head["identity"]),
            schedule=SamplerCoefficients(
                tensors[schedule["coefficients"]],
                tensors[schedule["timesteps"]],
                tuple(head[schedule["branch_weights"]]),
            ),
            gram=tensors[own["gram"]].double(),
            error_gain=tensors[own["error_gain"]],
            error_memory=float(head[own["error_memory"]]),
            depth=int(head[own["depth"]]),
            candidates=candidates,
            metadata=head[own["metadata"]],
            difficulty=PromptDifficulty(**_of_file("difficulty", tensors, DIFFICULTY_NAMES))
            if known
            else None,
        )
        _ = profile.field  # its shapes are checked there
        for candidate in profile.candidates:
            rows = {
                len(tensor)
                for tensor in (
                    candidate.corrections,
                    candidate.extrapolation_error,
                    candidate.error_spread,
                )
            }
            if rows != {len(candidate.computed)}:
                raise ValueError(f"a rung of {len(candidate.computed)} steps has values of {rows}")
        return profile


def _filed(section: str, value: Any, names: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """The tensors of a part of the profile, by their names in the file."""
    return {f"{section}.{filed}": getattr(value, name) for name, filed in names.items()}


def _of_file(
    section: str, tensors: Mapping[str, torch.Tensor], names: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    """And back: by field."""
    return {name: tensors[f"{section}.{filed}"] for name, filed in names.items()}


def _interpolation(given: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """`(m, n)`: weights of values at n given (falling) times for values at m wanted ones; level
    beyond the ends."""
    weights = torch.zeros(len(wanted), len(given), dtype=torch.float64)
    for row, time in enumerate(wanted.tolist()):
        after = int((given > time).sum())  # the first that is not above
        if after in (0, len(given)):
            weights[row, min(after, len(given) - 1)] = 1.0
            continue
        high, low = float(given[after - 1]), float(given[after])
        share = (high - time) / (high - low)
        weights[row, after - 1], weights[row, after] = 1 - share, share
    return weights
