"""Moves computed steps to where they leave the least error.

In: sets of computed steps, and a function that scores many sets at once. Out: the best set found.
Each round scores all sets in which one step is moved a little, and continues with the best of them.
If none is better, one step is replaced by another one anywhere in the run. The descent ends where
this does not help, either.
Knows whole numbers; nothing of errors. Source: ours. Simulated annealing scored more plans and left
more error in runs of 50 steps (research/LOG.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

# The most starts that are tried, and the most steps in all of them together. One start is always
# tried.
_TRIED, _TRIED_STEPS = 3, 60
_REACH = 3  # units of a small move; a unit is a hundredth of the run, rounded up to whole steps
_DROPPED = 3  # steps that may be replaced: those whose removal adds least error
_LEAST_GAIN = 1e-6  # relative; a smaller gain may be rounding

Errors = Callable[[torch.Tensor], torch.Tensor]  # sets (C, k) -> (C,)


def descend(
    starts: torch.Tensor, num_steps: int, fixed: Sequence[int], errors: Errors
) -> list[int]:
    """The best set that descent finds from the best of the given starts.

    Args:
        starts: `(C, k)` steps in rising order, including all of `fixed`.
        num_steps: steps of the run; all steps are below it.
        fixed: steps that are not moved.
        errors: scores sets of k steps, and of k - 1 steps; the least error is best.

    Example:
        >>> def errors(sets):  # how far the nearest step is from 4, and from 8
        ...     return (sets[:, :, None] - torch.tensor([4, 8])).abs().amin(1).sum(1)
        >>> descend(torch.tensor([[0, 1, 2]]), 9, [0], errors)
        [0, 4, 8]
    """
    tried = max(1, min(_TRIED, _TRIED_STEPS // starts.shape[1]))
    order = errors(starts).argsort(stable=True)
    begun = dict.fromkeys(tuple(starts[place].tolist()) for place in order.tolist())
    ends = [_descent(torch.tensor(start), num_steps, fixed, errors) for start in [*begun][:tried]]
    return min(ends, key=lambda end: end[1])[0].tolist()


def _descent(
    now: torch.Tensor, num_steps: int, fixed: Sequence[int], errors: Errors
) -> tuple[torch.Tensor, float]:
    """Descend from one set until no neighbour is better; return that set and its error."""
    unit = -(-num_steps // 100)
    least = float(errors(now[None])[0])
    while True:
        for neighbours in (_moved, _replaced):
            found, error = _best(neighbours(now, num_steps, fixed, unit, errors), errors)
            if error < (1 - _LEAST_GAIN) * least:
                now, least = found, error
                break
        else:
            return now, least


def _best(sets: torch.Tensor, errors: Errors) -> tuple[torch.Tensor, float]:
    if not len(sets):
        return sets, math.inf
    found = errors(sets)
    return sets[found.argmin()], float(found.min())


def _moved(
    now: torch.Tensor, num_steps: int, fixed: Sequence[int], unit: int, _: Errors
) -> torch.Tensor:
    """`(C, k)`: the sets in which one step of `now` `(k,)` is up to `_REACH` units off."""
    by = unit * torch.tensor([d for d in range(-_REACH, _REACH + 1) if d])
    free = _free(now, fixed)
    moved = now.repeat(len(free), len(by), 1)
    moved[torch.arange(len(free)), :, free] += by
    return _sets(moved.flatten(0, 1), num_steps)


def _replaced(
    now: torch.Tensor, num_steps: int, fixed: Sequence[int], unit: int, errors: Errors
) -> torch.Tensor:
    """`(C, k)`: the sets in which one step of `now` is replaced by another one."""
    free = _free(now, fixed)
    fewer = torch.stack([torch.cat([now[:at], now[at + 1 :]]) for at in free.tolist()])
    fewer = fewer[errors(fewer).argsort()[:_DROPPED]]
    added = torch.arange(unit, num_steps, unit)
    return _sets(
        torch.cat([fewer.repeat_interleave(len(added), 0), added.repeat(len(fewer))[:, None]], 1),
        num_steps,
    )


def _free(now: torch.Tensor, fixed: Sequence[int]) -> torch.Tensor:
    """Indices of the steps in `now` that are not fixed."""
    return (~torch.isin(now, torch.tensor(fixed))).nonzero()[:, 0]


def _sets(steps: torch.Tensor, num_steps: int) -> torch.Tensor:
    """The rows in rising order, without rows that have a step twice or out of range."""
    steps = steps.sort(1).values
    within = (steps[:, 0] >= 0) & (steps[:, -1] < num_steps) & (steps.diff(dim=1) > 0).all(1)
    return steps[within]
