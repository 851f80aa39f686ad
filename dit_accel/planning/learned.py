"""What was learnt from runs of one pipeline: observations of runs, and measured PSNRs.

In: runs, and PSNRs of clips. Out: a `Learned`. An observation is a sum over clips with every step
computed: the inner products of all rows, over the squared norm of the final latents. There can be
several observations, each for its own steps, guidance and size.
Knows numbers. `planning/learned_file.py` has the file. Source: ours.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass

import torch

from dit_accel.planning.plan import SamplerCoefficients
from dit_accel.planning.profile_key import ProfileKey

MOST_ROWS = 256  # rows of a Gram matrix; nothing is learnt from runs with more
MOST_LEARNED_BYTES = 1 << 19  # of all tensors; beyond it the oldest observations are dropped
MOST_MEASURED = 256  # measured PSNRs; beyond it the oldest are dropped
KINDS = ("calibrated", "inner products")  # kinds of plans, as in `choice.BASES`


def is_off() -> bool:
    """Whether the environment switches learning off: `$DIT_ACCEL_NO_LEARN` is set and not empty."""
    return bool(os.environ.get("DIT_ACCEL_NO_LEARN"))


@dataclass(frozen=True)
class RunKind:
    """The settings that runs must share so that their inner products can be summed.

    Args:
        sampler: sampler coefficients of the runs.
        guidance: guidance scale of the runs; with several components the branch weights follow from
            it.
        numbers: elements in the latents of one clip; another number means another size.
    """

    sampler: SamplerCoefficients
    guidance: float
    numbers: int

    def is_like(self, other: RunKind, *, any_size: bool = False) -> bool:
        """Whether both kinds are the same.

        Args:
            any_size: whether the sizes may differ.
        """
        one, two = self.sampler, other.sampler
        return (
            (any_size or self.numbers == other.numbers)
            and self.has_steps_of(other)
            and one.second == two.second
            and abs(self.guidance - other.guidance) < 1e-6
            and _near(torch.tensor(one.branch_weights), torch.tensor(two.branch_weights))
        )

    def has_steps_of(self, other: RunKind) -> bool:
        """Whether both kinds have the same rows, whatever their guidance."""
        one, two = self.sampler, other.sampler
        return (
            one.num_steps == two.num_steps
            and len(one.branch_weights) == len(two.branch_weights)
            and _near(one.timesteps, two.timesteps)
            and _near(one.coefficients, two.coefficients)
        )

    def may_transfer(self, other: RunKind) -> bool:
        """Whether observations of these runs can be transferred to runs of the other kind.

        With one component, guidance is already part of the predictions, so it must be the same.
        """
        parts = len(self.sampler.branch_weights)
        same = parts > 1 or abs(self.guidance - other.guidance) < 1e-6
        return same and parts == len(other.sampler.branch_weights)


def _near(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-4, atol=1e-6)


@dataclass(frozen=True)
class Observations:
    """A sum of Gram matrices over clips with every step computed.

    Args:
        kind: settings of the runs.
        clips: number of clips.
        products: `(R, R)` float64, R = B n + 1: the Gram matrices of the clips as in `ErrorModel`,
            summed. The noise row is 0 where the noise is not known.
    """

    kind: RunKind
    clips: int
    products: torch.Tensor

    def __add__(self, other: Observations) -> Observations:
        return dataclasses.replace(
            self, clips=self.clips + other.clips, products=self.products + other.products
        )

    @property
    def nbytes(self) -> int:
        """Size in the file, in bytes."""
        rows = len(self.products)
        return 8 * (rows * (rows + 1) // 2 + 2 * self.kind.sampler.num_steps)


@dataclass(frozen=True)
class Measured:
    """A clip's PSNR: predicted before its run, and measured after it.

    Args:
        name: of the clip; a clip is counted once for each kind.
        kind: kind of the clip's plan, one of `KINDS`.
        predicted: PSNR in dB that the plan alone predicts, without the `offset_db` of
            `QualityEstimate`.
        measured: PSNR in dB.
    """

    name: str
    kind: str
    predicted: float
    measured: float


@dataclass(frozen=True)
class Learned:
    """What was learnt from the runs of one pipeline.

    Args:
        key: key of the pipeline; without a number of steps, a guidance or a size.
        observations: in the order of their last change, the latest last.
        measured: predicted and measured PSNRs, the oldest first.
        runs: number of runs that were learnt from. If observations were dropped, it exceeds the
            number of clips in the others.
    """

    key: ProfileKey
    observations: tuple[Observations, ...] = ()
    measured: tuple[Measured, ...] = ()
    runs: int = 0

    def with_run(self, one: Observations) -> Learned:
        """The same with one more run. The oldest observations are dropped if there are too many."""
        others, found = [], one
        for known in self.observations:
            if known.kind.is_like(one.kind):
                found = known + one
            else:
                others.append(known)
        every = [*others, found]
        while len(every) > 1 and sum(each.nbytes for each in every) > MOST_LEARNED_BYTES:
            del every[0]
        return dataclasses.replace(self, observations=tuple(every), runs=self.runs + 1)

    def differences(self, kind: str) -> tuple[float, ...]:
        """Measured less predicted PSNR of clips with plans of this kind, in dB."""
        return tuple(one.measured - one.predicted for one in self.measured if one.kind == kind)

    def with_measured(self, one: Measured) -> Learned:
        """The same with one more PSNR, which replaces that of the same clip with the same kind of
        plan."""
        same = one.name, one.kind
        others = [known for known in self.measured if (known.name, known.kind) != same]
        return dataclasses.replace(self, measured=(*others, one)[-MOST_MEASURED:])
