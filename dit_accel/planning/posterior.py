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

The weight κ, in clips, is the one with which earlier clips would have predicted the later ones
best, of those that are not so small that a few clips outweigh the prior.
Knows numbers and matrices; no file, no model. Source: expectation maximisation for a covariance
with missing entries (Dempster, Laird and Rubin, 1977); its use here is ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dit_accel.planning.learned import WEIGHTS, Observations

LEAST_WEIGHT = 4.0  # of the prior, in clips; with less some models do worse (research/LOG.md)
MIN_COMPARED = 3  # clips, before they choose the weight
# Beside fewer whole runs than these the prior counts as one clip, so that no model does worse than
# by the prior alone; from these on it has no weight (research/LOG.md).
ENOUGH_WHOLE = 4
WEIGHT_BESIDE_WHOLE = 1.0
ITERATIONS = 4
_RIDGE = 1e-9  # of the regression, relative to the rows' squares
_USED = 4  # computed steps before a step that predict it, as in the search


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


def weight_of(losses: torch.Tensor, compared: int, observations: Sequence[Observations]) -> float:
    """κ: the weight that predicted the clips best; the least where too few were compared. Runs
    that were computed whole have every row: beside enough of them the prior has no weight."""
    whole = sum(one.clips for one in observations if one.is_whole)
    if whole:
        return 0.0 if whole >= ENOUGH_WHOLE else WEIGHT_BESIDE_WHOLE
    known = zip(losses.tolist(), WEIGHTS, strict=True)
    enough = [pair for pair in known if pair[1] >= LEAST_WEIGHT]
    return min(enough)[1] if compared >= MIN_COMPARED else LEAST_WEIGHT


def losses(
    clip: Observations, prior: torch.Tensor, before: Sequence[Observations]
) -> torch.Tensor | None:
    """How well each weight of the prior predicts a clip: `(len(WEIGHTS),)`, less is better.

    Each computed row is predicted from the computed steps before it, with the weights that are best
    under the posterior of earlier clips. The loss is the logarithm of the squared error.

    Args:
        clip: of one clip.
        prior: `(R, R)`.
        before: observations without this clip, of the same sampler, guidance and size.

    Returns:
        None where no earlier clip computed these rows: then all weights predict the same.
    """
    rows = clip.rows
    fitting = [one for one in before if {*clip.computed} <= {*one.computed}]
    clips = sum(one.clips for one in fitting)
    if not clips or len(clip.computed) < 3:
        return None
    observed = torch.stack([_among(one, clip) for one in fitting]).sum(0)
    own = prior[rows][:, rows]
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)[:, None, None]
    errors = _errors((weights * own + observed) / (weights + clips), clip)
    return errors.clamp_min(1e-30).log() if bool(errors.isfinite().all()) else None


def _among(one: Observations, clip: Observations) -> torch.Tensor:
    """Its products of the rows that a clip has."""
    place = {int(row): at for at, row in enumerate(one.rows)}
    at = torch.tensor([place[int(row)] for row in clip.rows])
    return one.products[at][:, at]


def _errors(grams: torch.Tensor, clip: Observations) -> torch.Tensor:
    """`(W,)`: squared error of a clip's guided predictions, each predicted from those before it, by
    each of the Gram matrices `(W, Q, Q)`."""
    k, total = len(clip.computed), torch.zeros(len(grams), dtype=torch.float64)
    branch_weights = torch.tensor(clip.kind.sampler.branch_weights, dtype=torch.float64)
    parts = range(len(branch_weights))
    own = torch.eye(len(parts), dtype=torch.float64).expand(len(grams), -1, -1)
    for place in range(2, k):
        rows = [part * k + place for part in parts]
        used = [part * k + p for part in parts for p in range(max(place - _USED, 0), place)]
        used.append(len(clip.products) - 1)
        among = grams[:, used][..., used]
        among = among + torch.diag_embed(1e-2 * among.diagonal(dim1=1, dim2=2) + 1e-30)
        weights = torch.linalg.solve(among, grams[:, used][..., rows])
        at = [*rows, *used]
        miss = torch.cat([own, -weights], 1)  # (W, rows and used, B)
        errors = (miss * (clip.products[at][:, at] @ miss)).sum(1)
        total = total + errors @ branch_weights.square()
    return total
