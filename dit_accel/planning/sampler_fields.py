"""Reads the coefficients of a sampler from a profile's file, or from one of what was learnt.

In: tensors and fields of the header. Out: `SamplerCoefficients`, every value checked.
Knows what a sampler is; the names in the file are those of the caller.
Source: ours.
"""

from __future__ import annotations

from collections.abc import Callable

from dit_accel.core.document import DocumentError, Field
from dit_accel.planning.plan import SamplerCoefficients, SecondExpert
from dit_accel.planning.profile_file import TensorFields

MOST_BRANCHES = 8  # that a file may have


def read_sampler(
    tensors: TensorFields, coefficients: str, timesteps: str, branch_weights: Field,
    second: Callable[[int], SecondExpert | None],
) -> SamplerCoefficients:  # fmt: skip
    """A sampler of a file.

    Args:
        coefficients, timesteps: names of tensors.
        branch_weights: one number a branch.
        second: reads the second expert, of so many steps.

    Raises:
        DocumentError: a field is not accepted; names it.
    """
    adds = tensors.get(coefficients, (None,), -1e6, 1e6)
    times = tensors.get(timesteps, (len(adds),), -1e6, 1e6)
    steps = times.diff()  # Mochi's timesteps go up
    if not bool((steps < 0).all() or (steps > 0).all()):
        raise DocumentError(f"{timesteps} goes up and down; accepted: timesteps in order")
    weights = []
    for field in branch_weights.entries(1, MOST_BRANCHES):
        weights.append(field.number(-1e6, 1e6))
        if not weights[-1]:  # a correction is divided by it
            raise field.error("a number that is not 0")
    return SamplerCoefficients(adds, times, tuple(weights), second(len(times)))
