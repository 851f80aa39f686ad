"""The Gram matrix of a pipeline after some runs: what was observed, and the prior for the rest.

In: a prior's Gram matrix, or none, and the observations of runs, most of which computed some of the
rows. Out: the posterior's Gram matrix, and the weight of the prior.

A clip that computed the rows O gives G_OO. Rows M that it did not compute are predicted from these
by the present G, as by a linear regression:

    A = G_MO G_OO^-1,    G'_MO = A G'_OO,    G'_MM = A G'_OO A^T + G_MM - A G_OM

and the posterior is (κ · prior + Σ over clips of G') / (κ + clips), which is repeated until it
settles. A sum of such matrices has no negative eigenvalue. Mixed entry by entry instead, observed
entries do not fit those that come from the prior: rows differ from their neighbours by a hundredth,
and the mix looks as if no row could be extrapolated (research/LOG.md).

Clips alone that computed a part of the rows are not used: plans from them were as often worse than
the prior's as better (research/LOG.md). One whole run says what the others leave open.
Knows numbers and matrices; no file, no model. Source: expectation maximisation for a covariance
with missing entries (Dempster, Laird and Rubin, 1977); its use here is ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dit_accel.planning.learned import Observations

# Beside fewer whole runs than these the prior counts as one clip, so that no model does worse than
# by the prior alone; from these on it has no weight (research/LOG.md).
ENOUGH_WHOLE = 4
WEIGHT_BESIDE_WHOLE = 1.0
ITERATIONS = 4
_RIDGE = 1e-9  # of the regression, relative to the rows' squares


def posterior_gram(
    prior: torch.Tensor | None, observations: Sequence[Observations], weight: float
) -> torch.Tensor:
    """The Gram matrix after some runs.

    Args:
        prior: `(R, R)` float64; None: there has to be an observation of whole runs.
        observations: of one sampler, guidance and size.
        weight: κ, of the prior, in clips; without a prior it has none. With 0, whole runs stand
            in its place.

    Returns:
        `(R, R)` float64.

    Raises:
        ValueError: there is neither a prior nor a whole run.
    """
    clips = sum(one.clips for one in observations)
    unused = not weight and any(one.is_whole for one in observations)
    found = _start(observations) if prior is None or unused else prior
    given = 0.0 * found if prior is None else weight * prior
    for _ in range(ITERATIONS if clips else 0):
        completed = torch.stack([_completed(one, found) for one in observations]).sum(0)
        found = (given + completed) / (clips if prior is None else weight + clips)
    return found


def _start(observations: Sequence[Observations]) -> torch.Tensor:
    """The mean over whole runs."""
    whole = [one for one in observations if one.is_whole]
    if not whole:
        raise ValueError("there is no prior, and no run was computed whole")
    return torch.stack([one.products for one in whole]).sum(0) / sum(one.clips for one in whole)


def _completed(one: Observations, gram: torch.Tensor) -> torch.Tensor:
    """`(R, R)`: the sum over its clips, with the rows predicted that were not computed."""
    known = one.products.diagonal() > 0  # the noise may be missing
    rows, products = one.rows[known], one.products[known][:, known]
    among = gram[rows][:, rows]
    among = among + torch.diag(_RIDGE * among.diagonal() + 1e-30)
    predict = torch.linalg.solve(among, gram[rows]).T  # (R, Q); of the known rows themselves: 1
    predict[rows] = torch.eye(len(rows), dtype=torch.float64)
    rest = gram - predict @ gram[rows]
    rest[rows], rest[:, rows] = 0.0, 0.0
    found = predict @ products @ predict.T + one.clips * rest
    return (found + found.T) / 2


def weight_of(observations: Sequence[Observations]) -> float:
    """κ, beside so many whole runs: these have every row."""
    whole = sum(one.clips for one in observations if one.is_whole)
    return 0.0 if whole >= ENOUGH_WHOLE else WEIGHT_BESIDE_WHOLE
