"""A plan that calibration carried out, and its section of the profile's file.

In: what calibration measured; or the section's tensors. Out: a `CandidatePlan`.
Knows the section's fields, their shapes and ranges; no pipeline.
Source: ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dit_accel.core.document import DocumentError, Field
from dit_accel.planning.plan import SamplerCoefficients, feature_count, windows
from dit_accel.planning.profile_file import Shape, TensorFields, named

# Maps each field to its name in the file. A field may be renamed in Python, but not in the file.
CANDIDATE_NAMES = {
    "corrections": "changes",
    "psnr_db": "psnr_db",
    "latents_db": "latents_db",
    "extrapolation_error": "surprise",
    "error_spread": "spread",
    "prompt_scores": "alarm",
}
EXPECTED = "expected"  # an optional field; its name is the same in the file
LARGEST_DB = 1000.0
LEAST_DEVIATION_DB = 0.1  # the least standard deviation in `expected`


@dataclass(frozen=True)
class CandidatePlan:
    """A plan that was carried out on every calibration prompt.

    Args:
        computed: its k computed steps, in order.
        corrections: `(k, F)` float64, one row for each window.
        psnr_db: `(P,)`, PSNR of each prompt's clip against its uncached reference. It is held out:
            the gain from fitting the corrections to this prompt is subtracted.
        latents_db: `(P,)`, the same for the latents, relative to their norm.
        extrapolation_error: `(k,)`, the logarithm of the extrapolation error at each computed step,
            mean over prompts.
        error_spread: `(k,)`, standard deviation of this logarithm over prompts.
        prompt_scores: `(P,)`, unused; earlier versions refuse a file without it.
        expected: `(2,)`, what other models predict for the mean PSNR before any clip is made: its
            value and its standard deviation; None: unknown.
    """

    computed: tuple[int, ...]
    corrections: torch.Tensor
    psnr_db: torch.Tensor
    latents_db: torch.Tensor
    extrapolation_error: torch.Tensor
    error_spread: torch.Tensor
    prompt_scores: torch.Tensor
    expected: torch.Tensor | None = None

    def with_psnr(self, psnr_db: torch.Tensor) -> CandidatePlan:
        """The same plan with other PSNRs; the expected mean moves by as much as their mean."""
        expected = self.expected
        if expected is not None:
            moved = float((psnr_db - self.psnr_db).mean())
            expected = expected + torch.tensor([moved, 0.0], dtype=expected.dtype)
        return dataclasses.replace(self, psnr_db=psnr_db, expected=expected)


def read(
    section: str, computed: Field, tensors: TensorFields, sampler: SamplerCoefficients, depth: int
) -> CandidatePlan:
    """Read a candidate from its section of the file.

    Args:
        section: the prefix of its tensors' names.
        computed: the header field with its computed steps.
        sampler, depth: those of the profile.

    Raises:
        DocumentError: a field is missing or not accepted; the error names it.
    """
    steps = [step.whole(0, sampler.num_steps - 1) for step in computed.entries(2)]
    if steps != sorted(set(steps)) or steps[0] != 0:
        raise computed.error("rising steps, the first of them 0")
    shapes: dict[str, tuple[Shape, float, float]] = {
        "corrections": ((len(steps), None), -1e6, 1e6),
        "psnr_db": ((None,), -LARGEST_DB, LARGEST_DB),
        "latents_db": ((None,), -LARGEST_DB, LARGEST_DB),
        "extrapolation_error": ((len(steps),), -100.0, 100.0),  # logarithms
        "error_spread": ((len(steps),), 1e-6, 100.0),
        "prompt_scores": ((None,), -1e9, 1e9),
    }
    found = {
        name: tensors.get(f"{section}.{CANDIDATE_NAMES[name]}", *wanted)
        for name, wanted in shapes.items()
    }
    expected = f"{section}.{EXPECTED}"
    if expected in tensors:
        found[EXPECTED] = tensors.get(expected, (2,), -LARGEST_DB, LARGEST_DB)
        if found[EXPECTED][1] < LEAST_DEVIATION_DB:
            raise DocumentError(
                f"{expected}[1] is {float(found[EXPECTED][1])}; accepted: {LEAST_DEVIATION_DB} or "
                "more"
            )
    least, most = _columns(steps, sampler, depth)
    if not least <= found["corrections"].shape[1] <= most:
        raise DocumentError(
            f"{section}.{CANDIDATE_NAMES['corrections']} has {found['corrections'].shape[1]} "
            f"columns; accepted: {least} to {most}"
        )
    return CandidatePlan(tuple(steps), **found)


def tensors_of(section: str, one: CandidatePlan) -> dict[str, torch.Tensor]:
    """A candidate's tensors, by their names in the file."""
    own = {} if one.expected is None else {EXPECTED: EXPECTED}
    return named(section, one, CANDIDATE_NAMES | own)


def _columns(steps: Sequence[int], sampler: SamplerCoefficients, depth: int) -> tuple[int, int]:
    """The least and the largest number of columns that the corrections may have.

    Only windows with extrapolated steps need a column for each of their features.
    """
    features = [feature_count(steps, step, depth, sampler) for step in steps]
    ends = windows(steps, sampler.num_steps)
    needed = (f for f, (a, b) in zip(features, ends, strict=True) if b - a > 1)
    return max(needed, default=1), max(features)
