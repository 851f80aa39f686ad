"""Spends minutes on a calibration: what they are in runs, what fits, and when it is enough.

In: minutes, the measured seconds of a step and of what was done so far, the moments of the fits.
Out: which plans are carried out, whether another clip fits and whether it pays.
Costs are in uncached runs: a run that computes k of n steps counts k / n.
Knows numbers; no pipeline. Source: ours (research/LOG.md, 2026-11-28, compares what was tried).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from dit_accel.calibration.fit import RidgeMoments
from dit_accel.planning.prediction import QualityDistribution

ENOUGH_DB = 0.3  # a clip that would gain less is not made
FEW_SPEEDUPS = (2.0, 2.5, 3.85, 5.0, 7.14)  # plans between them are made of their neighbours
_RIDGE = 1e-4  # relative to the features' squares
FIRST_PROBED = 1  # clips that are probed


def probing_cost(probed: Sequence[int], steps: int) -> float:
    """Uncached runs that probes at these steps of a clip cost."""
    return sum(steps - step for step in probed) / steps


class TooFewMinutesError(ValueError):
    """The minutes are over before anything is measured."""


@dataclass(frozen=True)
class Estimate:
    """What minutes are on this machine, from two measured steps.

    Args:
        minutes: > 0.
        step_seconds: of a computed step, of all clips in one call.
        steps: of a run.
        batch: clips in one call.
        clip_runs: uncached runs that a clip costs, with all plans.
        first_runs: uncached runs before the first plan is carried out.
    """

    minutes: float
    step_seconds: float
    steps: int
    batch: int
    clip_runs: float
    first_runs: float

    @property
    def run_seconds(self) -> float:
        """Of one clip's uncached run, without text and decoding."""
        return self.step_seconds * self.steps / self.batch

    @property
    def runs(self) -> float:
        """Uncached runs that the minutes have room for."""
        return 60 * self.minutes / self.run_seconds

    @property
    def clips(self) -> int:
        """That fit, of any number."""
        return max(int((self.runs - self.first_runs) / self.clip_runs), 0)


class Budget:
    """Minutes, of which some are spent.

    Args:
        minutes: > 0.
        seconds: by piece of work, of all that was done; grows.
    """

    def __init__(self, minutes: float, seconds: dict[str, float]) -> None:
        self.minutes, self.seconds = minutes, seconds

    @property
    def left(self) -> float:
        """Seconds."""
        return 60 * self.minutes - sum(self.seconds.values())

    def fits(self, *pieces: str, times: float = 1.0) -> bool:
        """Whether there is time for one more piece of each of these kinds; a piece that was never
        done fits.

        Args:
            pieces: the beginnings of names.
            times: as much of each.
        """
        wanted = 0.0
        for piece in pieces:
            known = [took for name, took in self.seconds.items() if name.startswith(piece)]
            wanted += statistics.median(known) if known else 0.0
        return times * wanted <= self.left


def next_gain_db(windows: Iterable[RidgeMoments], plans: Iterable[QualityDistribution]) -> float:
    """By how much one more clip would raise the quality that plans guarantee, in dB.

    It raises the PSNR of a clip, by better weights, and narrows the bound, by one more clip that
    was counted: the mean over windows, and the mean over plans.
    """
    fitted = statistics.fmean(window_gain_db(window) for window in windows)
    return fitted + statistics.fmean(plan.next_gain_db for plan in plans)


def window_gain_db(window: RidgeMoments) -> float:
    """By how much one more clip would lower the error of a new one, in dB.

    A correction that is fitted to P clips leaves about R (1 + c / P) of a new clip's error, and
    R (1 - c / P) of a clip's that it was fitted to. The second is known, and the first for P - 1
    clips, each left out in turn; so c is. Infinite with fewer than two clips.
    """
    number = len(window.matrices)
    if number < 2:
        return math.inf
    matrices = torch.stack([*window.matrices.values()])
    vectors = torch.stack([*window.vectors.values()])
    total, wanted = matrices.sum(0), vectors.sum(0)
    own = _left(window, matrices, vectors, _fitted(total, wanted).expand_as(vectors))
    new = _left(window, matrices, vectors, _fitted(total - matrices, wanted - vectors))
    excess = max(new / own - 1, 0.0) / (1 / (number - 1) + new / own / number)
    return 10 * math.log10((1 + excess / number) / (1 + excess / (number + 1)))


def _fitted(matrices: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """`(..., F)`: the ridge regression of these moments."""
    diagonal = matrices.diagonal(dim1=-2, dim2=-1)
    penalised = matrices + torch.diag_embed(_RIDGE * diagonal + 1e-30)
    return torch.linalg.solve(penalised, vectors)


def _left(
    window: RidgeMoments, matrices: torch.Tensor, vectors: torch.Tensor, found: torch.Tensor
) -> float:
    """What corrections `(P, F)` leave of the clips' squared errors, summed up."""
    squares = sum(window.squares.values())
    gained = 2 * (found * vectors).sum()
    lost = torch.einsum("pf,pfg,pg->", found, matrices, found)
    return max(squares - float(gained - lost), 1e-12 * squares)
