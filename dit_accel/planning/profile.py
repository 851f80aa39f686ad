"""The profile: what calibration measured of one pipeline, and its file.

In: what `calibration/` measured, or a file. Out: error models and plans for a run.
A profile has two parts. From the *error model*, plans are made for any number of steps and any
guidance, by interpolation over the scheduler's timesteps. The *candidate plans* were carried out at
the calibrated number of steps, and have the PSNR of each prompt. The file is safetensors with a
JSON header.
Knows numbers and files; no pipeline.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dit_accel.core.document import DocumentError, Field
from dit_accel.planning import candidate, profile_file
from dit_accel.planning.candidate import CandidatePlan
from dit_accel.planning.difficulty import PromptDifficulty
from dit_accel.planning.error_model import ErrorModel
from dit_accel.planning.interpolation import linear_weights
from dit_accel.planning.plan import Plan, SamplerCoefficients, SecondExpert, feature_count
from dit_accel.planning.prediction import FIRST_RUN, MIN_COUNTED_CLIPS, Evidence
from dit_accel.planning.profile_file import ProfileError, TensorFields
from dit_accel.planning.profile_key import ProfileKey
from dit_accel.planning.sampler_fields import read_sampler

SUFFIX = ".safetensors"
MOST_DEPTH = 64  # the largest depth that is accepted in a file
# Subtracted from every PSNR at another clip size than calibrated (docs/how-it-works.md).
OTHER_SIZE_DB = 3.0

# Maps each field to its name in the file. The names on the right are the file format: a field may
# be renamed in Python, but not in the file. The key, the branch weights and single numbers are in
# the header. All else are tensors, named "section.field".
COEFFICIENTS_NAMES = {"coefficients": "shares", "timesteps": "times", "branch_weights": "mix"}
SECOND_NAMES = {"begin": "second_expert", "share": "second_share"}  # only where there is one
PROFILE_NAMES = {
    "gram": "gram",
    "error_gain": "gain",
    "error_memory": "memory",
    "depth": "depth",
    "metadata": "made",
}
DIFFICULTY_NAMES = {"centre": "centre", "weights": "weights", "held_out": "known"}


@dataclass(frozen=True)
class Profile:
    """What calibration measured.

    Args:
        key: the pipeline and the settings that were measured.
        sampler: coefficients at the calibrated number of steps.
        gram: `(P, R, R)` as in `ErrorModel`; calibration stores the mean over clips, P = 1. With
            minutes the prior counts as one clip.
        error_gain: `(n,)`, as in `ErrorModel`.
        error_memory: in steps, as in `ErrorModel`.
        depth: the most computed steps that an extrapolation of a candidate uses.
        candidates: candidate plans, from many computed steps to few.
        metadata: versions and settings, for people to read.
        difficulty: predicts the difficulty of a prompt from its text; None: not measured.
        evidence: what plans rest on if there are no candidates; not stored in the file.
        measured: real less predicted PSNR of clips that candidates made after calibration; not
            stored in the file.
        prior: the prior's profile that is used beside what was learnt from runs; not stored in the
            file.
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
    evidence: Evidence = FIRST_RUN
    measured: tuple[float, ...] = ()
    prior: Profile | None = None

    @property
    def rests_on(self) -> str:
        """The data that plans are made from, in words."""
        if not self.candidates:
            return self.evidence.words
        first, later = self.candidates[0], len(self.measured)
        clips = len(first.psnr_db)
        sources = [f"{clips} calibration clip{'s' * (clips != 1)}"]
        if later:
            sources.append(f"{later} later clip{'s' * (later > 1)}")
        if first.expected is not None and clips + later < MIN_COUNTED_CLIPS:
            sources.append("other models")
        *others, last = sources
        return f"{', '.join(others)} and {last}" if others else last

    def for_text(self, text: torch.Tensor | None) -> Profile:
        """The profile as if all calibration clips were as hard as these prompts.

        Args:
            text: `(B, T)` pooled embeddings; if it is None or has another width, the profile is
                returned unchanged.
        """
        known = self.difficulty
        if known is None or text is None or text.shape[-1] != len(known.centre):
            return self
        score = known.score(text)
        return self._with_psnr(lambda psnr_db: known.shifted(psnr_db, score))

    def for_other_size(self) -> Profile:
        """The profile for clips of a size that was not calibrated.

        Every PSNR is lower by `OTHER_SIZE_DB`.
        """
        return self._with_psnr(lambda psnr_db: psnr_db - OTHER_SIZE_DB)

    def without_noise(self) -> Profile:
        """The profile for a run whose starting noise is not known in the shape of predictions.

        The noise row is 0, so it gets no weight. Candidates that weigh the noise are left out.
        """
        gram = self.gram.clone()
        gram[:, -1] = gram[..., -1] = 0.0
        usable = tuple(c for c in self.candidates if not self.plan_of(c).weighs_noise)
        difficulty = self.difficulty if usable else None
        prior = None if self.prior is None else self.prior.without_noise()
        return dataclasses.replace(
            self, gram=gram, candidates=usable, difficulty=difficulty, prior=prior
        )

    def _with_psnr(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Profile:
        candidates = (one.with_psnr(change(one.psnr_db)) for one in self.candidates)
        return dataclasses.replace(self, candidates=tuple(candidates))

    @property
    def error_model(self) -> ErrorModel:
        """The error model at the calibrated steps and guidance."""
        return ErrorModel(self.sampler, self.gram, self.error_gain, self.error_memory)

    def plan_of(self, candidate: CandidatePlan) -> Plan:
        """The candidate as a plan."""
        computed, depth = candidate.computed, self.depth
        corrections = {
            step: row[: feature_count(computed, step, depth, self.sampler)]
            for step, row in zip(computed, candidate.corrections, strict=True)
        }
        return Plan.of(computed, self.sampler, corrections, depth)

    def error_model_for(self, sampler: SamplerCoefficients) -> ErrorModel:
        """The error model at other steps or another guidance.

        Rows of the Gram matrix are interpolated over the timesteps.

        Args:
            sampler: coefficients of the run, with the same number of components; the branch weights
                may differ.

        Raises:
            ProfileError: the number of components differs.
        """
        components = len(sampler.branch_weights)
        if components != len(self.sampler.branch_weights):
            raise ProfileError(
                f"the run's number of branches is {components}; accepted with this profile: "
                f"{len(self.sampler.branch_weights)}"
            )
        to = _by_expert(self.sampler, sampler)  # (m, n)
        # The interpolation is the same for every component; the noise row stays as it is.
        noise = torch.ones(1, 1, dtype=torch.float64)
        rows = torch.block_diag(*[to] * components, noise)  # type: ignore[no-untyped-call]
        ratio = self.sampler.num_steps / sampler.num_steps
        gain = (to @ self.error_gain.log()).exp()
        return ErrorModel(sampler, rows @ self.gram @ rows.T, gain, self.error_memory / ratio)

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        own, sampler, second = PROFILE_NAMES, COEFFICIENTS_NAMES, self.sampler.second
        tensors: dict[str, torch.Tensor] = {
            own["gram"]: self.gram.float(),
            own["error_gain"]: self.error_gain,
            sampler["coefficients"]: self.sampler.coefficients,
            sampler["timesteps"]: self.sampler.timesteps,
        }
        for place, one in enumerate(self.candidates):
            tensors |= candidate.tensors_of(f"rungs.{place}", one)
        if self.difficulty is not None:
            tensors |= profile_file.named("difficulty", self.difficulty, DIFFICULTY_NAMES)
        head = {
            "identity": self.key.to_json(),
            sampler["branch_weights"]: list(self.sampler.branch_weights),
            **({} if second is None else {n: getattr(second, f) for f, n in SECOND_NAMES.items()}),
            own["error_memory"]: self.error_memory,
            own["depth"]: self.depth,
            "rungs": [one.computed for one in self.candidates],
            "careful": [],  # unused, but earlier versions refuse a file without it
            own["metadata"]: self.metadata,
        }
        profile_file.write(Path(path), head, tensors)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Profile:
        """Read a file. Unknown sections, which older files may have, are ignored.

        Raises:
            ProfileError: the file is no profile, or has an unknown version, or a field is not
                accepted; the error names the file and the field.
            FileNotFoundError: the file does not exist.
        """
        return profile_file.load(Path(path), cls._of, "a damaged profile")

    @classmethod
    def _of(cls, head: Field, tensors: TensorFields) -> Profile:
        own = PROFILE_NAMES
        sampler = _sampler(head, tensors)
        depth = head.at(own["depth"]).whole(1, MOST_DEPTH)
        candidates = tuple(
            candidate.read(f"rungs.{place}", field, tensors, sampler, depth)
            for place, field in enumerate(head.at("rungs").entries())
        )
        metadata = _plain_values(head.at(own["metadata"]))
        clips = metadata.get("clips")
        return cls(
            key=ProfileKey.from_json(head.at("identity")),
            sampler=sampler,
            gram=_gram(own["gram"], tensors, sampler.num_rows),
            error_gain=tensors.get(own["error_gain"], (sampler.num_steps,), 1e-9, 1e9),
            error_memory=head.at(own["error_memory"]).number(1e-6, 1e9),
            depth=depth,
            candidates=candidates,
            metadata=metadata,
            difficulty=_difficulty(tensors, candidates),
            evidence=Evidence.of_runs(clips) if isinstance(clips, int) else FIRST_RUN,
        )


def _plain_values(fields: Field) -> dict[str, Any]:
    """Checks that a section has only texts, numbers, flags and null; returns them by name."""
    for one in fields.fields().values():
        if isinstance(one.value, str):
            one.text()
        elif not isinstance(one.value, (bool, type(None))):
            one.number()
    return dict(fields.value)


def _sampler(head: Field, tensors: TensorFields) -> SamplerCoefficients:
    names = COEFFICIENTS_NAMES
    return read_sampler(
        tensors, names["coefficients"], names["timesteps"], head.at(names["branch_weights"]),
        lambda num_steps: _second(head, num_steps),
    )  # fmt: skip


def _second(head: Field, num_steps: int) -> SecondExpert | None:
    names = SECOND_NAMES
    if names["begin"] not in head.fields():
        return None
    begin = head.at(names["begin"]).whole(1, num_steps - 1)
    return SecondExpert(begin, head.at(names["share"]).number(-1e6, 1e6))


def _gram(name: str, tensors: TensorFields, rows: int) -> torch.Tensor:
    return check_gram(name, tensors.get(name, (None, rows, rows)))


def check_gram(name: str, gram: torch.Tensor) -> torch.Tensor:
    """Refuse matrices `(P, R, R)` of a file that cannot be inner products.

    Raises:
        DocumentError: a matrix is not symmetric, or has a negative eigenvalue.
    """
    size = gram.diagonal(dim1=1, dim2=2).abs().sum(1)
    if not bool(((gram - gram.mT).abs().amax((1, 2)) <= 1e-5 * size).all()):
        raise DocumentError(f"{name} is not symmetric; accepted: a matrix of inner products")
    if not bool((torch.linalg.eigvalsh(gram)[:, 0] >= -1e-5 * size).all()):
        raise DocumentError(
            f"{name} has a negative eigenvalue; accepted: a matrix of inner products"
        )
    return gram


def _difficulty(
    tensors: TensorFields, candidates: tuple[CandidatePlan, ...]
) -> PromptDifficulty | None:
    names = {name: f"difficulty.{filed}" for name, filed in DIFFICULTY_NAMES.items()}
    if names["centre"] not in tensors:
        return None
    centre = tensors.get(names["centre"], (None,))
    weights = tensors.get(names["weights"], (len(centre),))
    held_out = tensors.get(names["held_out"], (None,), -1e6, 1e6)
    for place, one in enumerate(candidates):
        if len(one.psnr_db) != len(held_out):
            raise DocumentError(
                f"rungs.{place}.psnr_db has {len(one.psnr_db)} values; accepted: {len(held_out)}, "
                f"as many as {names['held_out']} has"
            )
    return PromptDifficulty(centre, weights, held_out)


def _by_expert(own: SamplerCoefficients, run: SamplerCoefficients) -> torch.Tensor:
    """`(m, n)`: interpolation weights of the n calibrated steps for the m steps of a run.

    If both have two experts, each step is interpolated between steps of the same expert.
    """
    if own.second is None or run.second is None:
        return linear_weights(own.timesteps, run.timesteps)
    at, to = own.second.begin, run.second.begin
    parts = (slice(None, at), slice(None, to)), (slice(at, None), slice(to, None))
    blocks = [linear_weights(own.timesteps[a], run.timesteps[b]) for a, b in parts]
    return torch.block_diag(*blocks)  # type: ignore[no-untyped-call]


__all__ = ["CandidatePlan", "Profile", "ProfileError"]
