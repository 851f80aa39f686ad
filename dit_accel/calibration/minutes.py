"""Plans a calibration that has a limit in minutes: how many runs fit, and when clips are enough.

In: minutes, the measured seconds of a step and of the work done so far, the moments of the fits.
Out: an estimate of the runs that fit, whether there is time for another clip, and what it would
gain.
Costs are in uncached runs: a run that computes k of n steps counts as k / n.
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

ENOUGH_DB = 0.3  # no further clip is made if it would gain less
FEW_SPEEDUPS = (2.0, 2.5, 3.85, 5.0, 7.14)  # `transfer.between` estimates plans between them
_RIDGE = 1e-4  # relative to the squared norms of the features
FIRST_PROBED = 1  # number of clips that are probed with uncached runs, if probes are asked for
# A probe of the start: clips that are probed, runs of each, and the speedup of these runs.
START_CLIPS, START_RUNS, START_SPEEDUP = 4, 2, 3.85
START_COST = START_CLIPS * START_RUNS / START_SPEEDUP  # of all, in uncached runs


def probing_cost(probed: Sequence[int], steps: int) -> float:
    """The cost of probes at these steps of one clip, in uncached runs."""
    return sum(steps - step for step in probed) / steps


class TooFewMinutesError(ValueError):
    """The minutes are too few to measure anything."""


@dataclass(frozen=True)
class Estimate:
    """How much work fits into the minutes on this machine, from two measured steps.

    Args:
        minutes: > 0.
        step_seconds: time of a computed step, for all clips in one call together.
        steps: steps of a run.
        batch: clips in one call.
        clip_runs: the cost of a clip with all plans, in uncached runs.
        first_runs: the cost of probes of uncached runs, in uncached runs.
        start_runs: the cost of probes of the start. They are made if the first clip says so, and
            while there is time left for the plans of one clip.
    """

    minutes: float
    step_seconds: float
    steps: int
    batch: int
    clip_runs: float
    first_runs: float
    start_runs: float = 0.0

    @property
    def run_seconds(self) -> float:
        """Seconds of one clip's uncached run, without text encoding and decoding."""
        return self.step_seconds * self.steps / self.batch

    @property
    def runs(self) -> float:
        """The number of uncached runs that fit into the minutes."""
        return 60 * self.minutes / self.run_seconds

    @property
    def probe_runs(self) -> float:
        """The cost of all probes that fit into the minutes, in uncached runs."""
        left = self.runs - self.first_runs - self.clip_runs
        return self.first_runs + min(max(left, 0.0), self.start_runs)

    @property
    def clips(self) -> int:
        """The number of clips that fit into the minutes beside all probes."""
        left = self.runs - self.probe_runs  # exactly one clip's if that limits the probes
        return max(int(left / self.clip_runs + 1e-9), 0)

    @property
    def most_clips(self) -> int:
        """The number of clips that fit into the minutes without probes of the start."""
        return max(int((self.runs - self.first_runs) / self.clip_runs + 1e-9), 0)


class Budget:
    """The minutes of a calibration, and how much of them is left.

    Args:
        minutes: > 0.
        seconds: time of each finished piece of work, by name; the caller adds to it.
    """

    def __init__(self, minutes: float, seconds: dict[str, float]) -> None:
        self.minutes, self.seconds = minutes, seconds

    @property
    def left(self) -> float:
        """The seconds that are left."""
        return 60 * self.minutes - sum(self.seconds.values())

    def fits(self, *pieces: str, times: float = 1.0) -> bool:
        """Whether there is time for one more piece of each of these kinds.

        A kind counts with the median of its earlier pieces, and with 0 if there are none.

        Args:
            pieces: kinds, as the beginnings of names.
            times: factor on the time of all of them.
        """
        wanted = 0.0
        for piece in pieces:
            known = [took for name, took in self.seconds.items() if name.startswith(piece)]
            wanted += statistics.median(known) if known else 0.0
        return times * wanted <= self.left


def next_gain_db(windows: Iterable[RidgeMoments], plans: Iterable[QualityDistribution]) -> float:
    """How much one more clip would raise the quality that plans guarantee, in dB.

    The gain has two parts. Better weights raise the PSNR of a clip: the mean over windows. One more
    counted clip makes the bound tighter: the mean over plans.
    """
    fitted = statistics.fmean(window_gain_db(window) for window in windows)
    return fitted + statistics.fmean(plan.next_gain_db for plan in plans)


def window_gain_db(window: RidgeMoments) -> float:
    """How much one more clip would lower the error of a new clip, in dB.

    A correction that is fitted to P clips leaves an error of about R (1 + c / P) on a new clip, and
    of R (1 - c / P) on a clip that it was fitted to. The second error is known. The first is known
    for P - 1 clips, by leaving out each clip in turn. From both, c follows. With fewer than two
    clips the gain is infinite.
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
    """`(..., F)`: the solution of a ridge regression with these moments."""
    diagonal = matrices.diagonal(dim1=-2, dim2=-1)
    penalised = matrices + torch.diag_embed(_RIDGE * diagonal + 1e-30)
    return torch.linalg.solve(penalised, vectors)


def _left(
    window: RidgeMoments, matrices: torch.Tensor, vectors: torch.Tensor, found: torch.Tensor
) -> float:
    """The sum of the clips' squared errors after corrections `(P, F)`, one for each clip."""
    squares = sum(window.squares.values())
    gained = 2 * (found * vectors).sum()
    lost = torch.einsum("pf,pfg,pg->", found, matrices, found)
    return max(squares - float(gained - lost), 1e-12 * squares)
