"""Reads the coefficients of a sampler from the file of a profile or of a `Learned`.

In: tensors and fields of the header. Out: `SamplerCoefficients`, every value checked.
Knows the fields of a sampler; the caller gives their names in the file.
Source: ours.
"""

from __future__ import annotations

from collections.abc import Callable

from dit_accel.core.document import DocumentError, Field
from dit_accel.planning.plan import SamplerCoefficients, SecondExpert
from dit_accel.planning.profile_file import TensorFields

MOST_BRANCHES = 8  # the most branches that are accepted in a file


def read_sampler(
    tensors: TensorFields, coefficients: str, timesteps: str, branch_weights: Field,
    second: Callable[[int], SecondExpert | None],
) -> SamplerCoefficients:  # fmt: skip
    """The sampler coefficients in a file.

    Args:
        coefficients, timesteps: names of the two tensors.
        branch_weights: header field with one number for each branch.
        second: reads the second expert, given the number of steps.

    Raises:
        DocumentError: a field is not accepted; the error names it.
    """
    adds = tensors.get(coefficients, (None,), -1e6, 1e6)
    times = tensors.get(timesteps, (len(adds),), -1e6, 1e6)
    steps = times.diff()  # Mochi's timesteps go up
    if not bool((steps < 0).all() or (steps > 0).all()):
        raise DocumentError(f"{timesteps} rises and falls; accepted: only rising or only falling")
    weights = []
    for field in branch_weights.entries(1, MOST_BRANCHES):
        weights.append(field.number(-1e6, 1e6))
        if not weights[-1]:  # corrections are divided by it
            raise field.error("a number that is not 0")
    return SamplerCoefficients(adds, times, tuple(weights), second(len(times)))
