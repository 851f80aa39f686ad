"""The profile: what calibration measured of one pipeline, and its file.

In: what `calibration/` measured, or a file. Out: error models and plans for a run. It holds two
things: the *error model*, from which plans are made for any number of steps and any guidance, over
the scheduler's timesteps; and *candidate plans* of the calibrated steps that were carried out, with
the PSNR of each prompt. The file is safetensors with a JSON header.
Knows numbers and files; no pipeline.
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
from dit_accel.planning.profile_key import ProfileKey
from dit_accel.planning.search import ErrorModel

PROFILE_FORMAT = "dit-accel-profile"
PROFILE_VERSION = 1
SUFFIX = ".safetensors"
OTHER_SIZE_DB = 3.0  # taken off at another clip size than calibrated (docs/how-it-works.md)

# By field its name in the file. The right sides are the format: a field may be renamed, its name in
# the file may not. The key, the branch weights and the numbers are in the header; all else are
# tensors, named by section and a dot.
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
    "prompt_scores": "alarm",
}
DIFFICULTY_NAMES = {"centre": "centre", "weights": "weights", "held_out": "known"}


class ProfileError(ValueError):
    """A file that is no profile, or a profile that is not of this pipeline."""


@dataclass(frozen=True)
class CandidatePlan:
    """A plan that was carried out on every calibration prompt.

    Args:
        computed: its k computed steps, in order.
        corrections: `(k, F)` float64, of every window.
        psnr_db: `(P,)`, each prompt against its uncached reference, held out: extrapolated with
            corrections that were fitted without it.
        latents_db: `(P,)`, the same of the latents, relative to their size.
        extrapolation_error: `(k,)`, mean over prompts of its logarithm at each computed step.
        error_spread: `(k,)`, standard deviation of the same.
        prompt_scores: `(P,)`, unused; earlier versions refuse a file without it.
    """

    computed: tuple[int, ...]
    corrections: torch.Tensor
    psnr_db: torch.Tensor
    latents_db: torch.Tensor
    extrapolation_error: torch.Tensor
    error_spread: torch.Tensor
    prompt_scores: torch.Tensor


@dataclass(frozen=True)
class Profile:
    """What calibration measured.

    Args:
        key: of what.
        sampler: coefficients at the calibrated number of steps.
        gram: `(P, R, R)` as in `ErrorModel`; calibration stores the mean over clips, P = 1.
        error_gain: `(n,)`.
        error_memory: in steps.
        depth: computed steps that the candidates' extrapolations use.
        candidates: from many computed steps to few.
        metadata: versions and settings, for people.
        difficulty: of prompts by their text; None where that was not measured.
    """

    key: ProfileKey
    sampler: SamplerCoefficients
    gram: torch.Tensor
    error_gain: torch.Tensor
    error_memory: float
    depth: int
    candidates: tuple[CandidatePlan, ...]
    metadata: dict[str, Any]
    difficulty: PromptDifficulty | None = None

    def for_text(self, text: torch.Tensor | None) -> Profile:
        """The profile as if all calibration clips were as hard as these prompts.

        Args:
            text: `(B, T)` pooled embeddings; None, or of another width: the profile itself.
        """
        known = self.difficulty
        if known is None or text is None or text.shape[-1] != len(known.centre):
            return self
        score = known.score(text)
        return self._with_psnr(lambda psnr_db: known.shifted(psnr_db, score))

    def for_other_size(self) -> Profile:
        """The profile for clips of another size, which calibration did not measure: every PSNR is
        lower by `OTHER_SIZE_DB`."""
        return self._with_psnr(lambda psnr_db: psnr_db - OTHER_SIZE_DB)

    def _with_psnr(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Profile:
        candidates = (dataclasses.replace(c, psnr_db=change(c.psnr_db)) for c in self.candidates)
        return dataclasses.replace(self, candidates=tuple(candidates))

    @property
    def error_model(self) -> ErrorModel:
        """At the calibrated steps and guidance."""
        return ErrorModel(self.sampler, self.gram, self.error_gain, self.error_memory)

    def plan_of(self, candidate: CandidatePlan) -> Plan:
        """The candidate as a plan."""
        components = len(self.sampler.branch_weights)
        corrections = {
            step: candidate.corrections[place, : components * min(place + 1, self.depth) + 1]
            for place, step in enumerate(candidate.computed)
        }
        return Plan.of(candidate.computed, self.sampler, corrections, self.depth)

    def error_model_for(self, sampler: SamplerCoefficients) -> ErrorModel:
        """At other steps or another guidance: rows are interpolated over the timesteps.

        Args:
            sampler: with as many components; the branch weights may differ.

        Raises:
            ProfileError: the number of components differs.
        """
        components = len(sampler.branch_weights)
        if components != len(self.sampler.branch_weights):
            raise ProfileError(
                f"the profile has {len(self.sampler.branch_weights)} branches, the run {components}"
            )
        to = _interpolation(self.sampler.timesteps, sampler.timesteps)  # (m, n)
        # the same for every component, and the noise row as it is
        noise = torch.ones(1, 1, dtype=torch.float64)
        rows = torch.block_diag(*[to] * components, noise)  # type: ignore[no-untyped-call]
        ratio = self.sampler.num_steps / sampler.num_steps
        gain = (to @ self.error_gain.log()).exp()
        return ErrorModel(sampler, rows @ self.gram @ rows.T, gain, self.error_memory / ratio)

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        from safetensors.torch import save_file

        own, sampler = PROFILE_NAMES, COEFFICIENTS_NAMES
        tensors = {
            own["gram"]: self.gram.float(),
            own["error_gain"]: self.error_gain,
            sampler["coefficients"]: self.sampler.coefficients,
            sampler["timesteps"]: self.sampler.timesteps,
        }
        for place, candidate in enumerate(self.candidates):
            tensors |= _to_tensors(f"rungs.{place}", candidate, CANDIDATE_NAMES)
        if self.difficulty is not None:
            tensors |= _to_tensors("difficulty", self.difficulty, DIFFICULTY_NAMES)
        head = {
            "format": PROFILE_FORMAT,
            "version": PROFILE_VERSION,
            "identity": self.key.to_json(),
            sampler["branch_weights"]: list(self.sampler.branch_weights),
            own["error_memory"]: self.error_memory,
            own["depth"]: self.depth,
            "rungs": [candidate.computed for candidate in self.candidates],
            "careful": [],  # unused, but earlier versions refuse a file without it
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
        """Read a file; sections that are unknown, which older files may have, are ignored.

        Raises:
            ProfileError: it is no profile, or of an unknown version.
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
        own, sampler = PROFILE_NAMES, COEFFICIENTS_NAMES
        candidates = tuple(
            CandidatePlan(
                tuple(computed), **_from_tensors(f"rungs.{place}", tensors, CANDIDATE_NAMES)
            )
            for place, computed in enumerate(head["rungs"])
        )
        difficulty = None
        if f"difficulty.{DIFFICULTY_NAMES['centre']}" in tensors:
            fields = _from_tensors("difficulty", tensors, DIFFICULTY_NAMES)
            difficulty = PromptDifficulty(**fields)
        profile = cls(
            key=ProfileKey.from_json(head["identity"]),
            sampler=SamplerCoefficients(
                tensors[sampler["coefficients"]],
                tensors[sampler["timesteps"]],
                tuple(head[sampler["branch_weights"]]),
            ),
            gram=tensors[own["gram"]].double(),
            error_gain=tensors[own["error_gain"]],
            error_memory=float(head[own["error_memory"]]),
            depth=int(head[own["depth"]]),
            candidates=candidates,
            metadata=head[own["metadata"]],
            difficulty=difficulty,
        )
        _ = profile.error_model  # checks its shapes
        for c in candidates:
            rows = {len(t) for t in (c.corrections, c.extrapolation_error, c.error_spread)}
            if rows != {len(c.computed)}:
                raise ValueError(f"a candidate of {len(c.computed)} steps has values of {rows}")
        return profile


def _to_tensors(section: str, value: Any, names: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """The tensors of a section of the file, by their names there."""
    return {f"{section}.{filed}": getattr(value, name) for name, filed in names.items()}


def _from_tensors(
    section: str, tensors: Mapping[str, torch.Tensor], names: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    """The tensors of a section by field."""
    return {name: tensors[f"{section}.{filed}"] for name, filed in names.items()}


def _interpolation(given: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """`(m, n)`: linear weights of values at n given (falling) times for values at m wanted ones;
    constant beyond the ends."""
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
