"""Corrects the error gain of other models by what was measured at the start of a run.

In: an error gain γ, the places of its steps in a run, and the gains of m clips at one step a.
Out: the corrected error gain.

    γ_s ← γ_s r^(v_s m / (m + 2.5)),    r = min(1, (geometric mean of the m gains) / γ_a)
    v_s = (2 u_s - 1) / (2 u_a - 1), within 0 to 1

u_s is the place of step s: 1 for pure noise, 0 for the clean clip. Models differ most at the start
of a run, and little in its second half. Clips of one model differ, too, some by a factor of 100. So
the geometric mean is taken, and the other models count as 2.5 clips: the variance of log γ_a
between clips is 2.5 times that between models. A gain is never raised: where clips had a higher one
than other models, plans of a raised gain were worse (research/LOG.md).

Whether the gains are worth measuring, one recorded clip says at no cost. If few clips are still
possible after a step, an error cannot lead far. So errors grow less than in other models if the
denoised clips of the first steps are nearer to the final clip (`Trajectory.denoised_errors`).
Knows numbers; no pipeline.
Source: ours (docs/how-it-works.md, section 4).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import torch

OTHERS = 2.5  # clips that the other models count as
START_PLACE = 0.75  # where the start of a run ends; 1 is pure noise, 0 the clean clip


def may_grow_less(own: torch.Tensor, others: torch.Tensor, places: torch.Tensor) -> bool:
    """Whether errors at the start of a run may grow less than in other models.

    Args:
        own: `(n,)` or `(m, n)`, > 0: squared errors of the denoised clips of the steps, of one run
            or of m runs (`Trajectory.denoised_errors`).
        others: `(n,)`, > 0, the same of other models.
        places: `(n,)`, of the steps (`prior.places_of`).

    Example:
        >>> own, others = torch.tensor([1.0, 0.2, 0.9]), torch.tensor([1.0, 0.5, 0.1])
        >>> may_grow_less(own, others, torch.tensor([1.0, 0.8, 0.4]))
        True
    """
    start = places >= START_PLACE
    start[0] = False  # the first prediction is made from noise alone, and points at the mean clip
    return bool(start.any() and (own.log() - others.log())[..., start].mean() < 0)


def corrected_gain(
    gain: torch.Tensor, places: torch.Tensor, step: int, measured: Sequence[float]
) -> torch.Tensor:
    """The error gain, corrected by the gains of some clips at one step.

    Args:
        gain: `(n,)`, > 0.
        places: `(n,)`, of the steps (`prior.places_of`).
        step: where the gains were measured; in the first half of the run.
        measured: > 0, one for each clip.

    Example:
        >>> gain, places = torch.tensor([8.0, 8.0, 8.0]), torch.tensor([1.0, 0.75, 0.5])
        >>> corrected_gain(gain, places, 0, [0.5] * 10)
        tensor([0.8706, 2.6390, 8.0000])
    """
    log_ratio = statistics.fmean(map(math.log, measured)) - math.log(float(gain[step]))
    log_ratio = min(log_ratio, 0.0)
    weights = ((2 * places - 1) / (2 * places[step] - 1)).clamp(0, 1)
    share = len(measured) / (len(measured) + OTHERS)
    return gain * (share * log_ratio * weights).exp()
