"""Searches for the plan that leaves the least error: its computed steps and its weights.

In: an `ErrorModel`, measured by calibration, and the number of steps to compute.
Out: a `Plan`, and its expected squared error relative to the final latents.
Knows numbers and matrices; no tensors of a model, no scheduler.

`error_model.py` has the recursion from window to window, and defines its letters. This module finds
the weights w of every window. They begin as the weights of a line through the last two computed
predictions. Then a correction z is added to the weights of the rows f that the window extrapolates
from (its features). It is the correction with the least E:

    (G_ff + ridge · diag G_ff) z = -(G (w + fade v))_f        v: weights of all windows before it
    w_f ← w_f + z

`fit` makes a plan of given steps in this way. `search` scores many sets of steps by their E, and
`descent.py` moves the steps. docs/how-it-works.md, sections 2 and 3, derives both.
Shapes: C plans, each of k computed steps and so of k windows; n, B, R, D, F as in `plan.py`.
Source: ours, not UniCP (arXiv 2502.04393). Section 1 of the same page names the published
relatives; BNS (arXiv 2403.01329) is the nearest. The closed form for the final error is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from dit_accel.planning.descent import descend
from dit_accel.planning.error_model import ErrorModel
from dit_accel.planning.plan import Plan, SamplerCoefficients, line_sums, used_steps
from dit_accel.planning.spacing import as_dense, by_density, evenly, of_count, with_fixed
from dit_accel.planning.threads import one_thread

PLAN_DEPTH = 4  # the most computed steps that an extrapolation uses
PLAN_RIDGE = 1e-2  # penalty on corrections that are fitted to uncached runs
LONG_RUN = 100  # steps; in a longer run the search moves only over some steps, its nodes
_QUICK = 60  # steps; in a longer run a search over nodes comes first and finds the start
# The least number of nodes (in a run of fewer than 100 steps half of the steps are enough), and the
# least number of computed steps among the nodes (research/LOG.md).
_NODES, _COMPUTED_NODES = 50, 10
# A search begins at spacings whose density is a power of how much predictions change. The last
# spacing is the most even one; a long run's plan by nodes is compared with it.
_POWERS = (0.67, 0.5, 0.4, 0.33, 0.25, 0.18)
_MOST_NUMBERS = 1 << 22  # in one tensor, when many plans are scored at once


@one_thread()
def fit(
    computed: Sequence[int], error_model: ErrorModel, *, depth: int = PLAN_DEPTH,
    ridge: float = PLAN_RIDGE,
) -> tuple[Plan, float]:  # fmt: skip
    """The plan that computes these steps, with the weights that leave the least error.

    Args:
        computed: steps, including those that every plan computes
            (`SamplerCoefficients.fixed_steps`).
        depth: the most computed steps that an extrapolation uses, >= 1; 1 is reuse.
        ridge: penalty on corrections, >= 0, relative to the squared norms of the predictions.

    Returns:
        The plan, and its expected squared error over the squared norm of the final latents.

    Raises:
        ValueError: a step that every plan computes is missing, or a step is out of range.
    """
    steps, sampler = sorted(set(computed)), error_model.sampler
    fixed = sampler.fixed_steps
    if not {*fixed} <= {*steps} or steps[0] < 0 or steps[-1] >= error_model.num_steps:
        needed = " and ".join(map(str, fixed))
        raise ValueError(
            f"computed is {steps}; accepted: steps below {error_model.num_steps}, with {needed}"
        )
    error, by_window = _evaluate(torch.tensor([steps]), error_model, depth, ridge)
    corrections = {}
    for opened, z in zip(steps, by_window, strict=True):
        # `_evaluate` pads every window to the same number of steps; a plan has only real ones.
        used = len(used_steps(steps, opened, depth, sampler.since(opened)))
        of_steps = z[0, :-1].view(len(sampler.branch_weights), -1)[:, :used].flatten()
        corrections[opened] = torch.cat([of_steps, z[0, -1:]])
    return Plan.of(steps, sampler, corrections, depth), float(error[0])


def _evaluate(
    computed: torch.Tensor, error_model: ErrorModel, depth: int, ridge: float
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The recursion of `error_model.py`, with the corrections, for many plans at once.

    A run may wait for the search. The search's time depends on the number of tensor operations, not
    on their size. So everything that does not depend on earlier windows is first calculated for all
    windows at once.

    Args:
        computed: `(C, k)`.

    Returns:
        E `(C,)`, and for each of the k windows its corrections z `(C, F)`. All windows have the
        same number of features; z is 0 for features that a window does not use.
    """
    gram, (count, k) = error_model.mean_gram, computed.shape
    end = torch.full((count, 1), error_model.num_steps)
    closed = torch.cat([computed[:, 1:], end], 1)
    growth, fade = error_model.growth(computed, closed), error_model.fade(computed, closed)
    w, features, corrected = _lines(computed, closed, error_model.sampler, min(depth, k))
    solve = _solver(features, corrected, gram, ridge)
    gram_w, feature_rows = w @ gram, gram[features]
    gram_v = torch.zeros_like(gram_w[:, :1])
    faded, corrections = [], []  # fade G v, and z, by window
    for place in range(k):  # only what depends on earlier windows
        gram_v = gram_v * fade[:, place, None, None]
        at, own = features[:, place, None], gram_w[:, place, None]
        target = (own + gram_v).gather(2, at)  # (G (w + fade v))_f
        correction = torch.bmm(target, solve[:, place]).neg_()  # `solve` is symmetric
        faded.append(gram_v)
        corrections.append(correction)
        gram_v = torch.baddbmm(own + gram_v, correction, feature_rows[:, place])
    z = torch.cat(corrections, 1)
    w = w.scatter_add(2, features, z)
    gram_w = gram_w + (z[:, :, None] @ feature_rows)[:, :, 0]
    added = (w * (gram_w + 2 * torch.cat(faded, 1))).sum(2)
    # E without a loop: what a window adds grows by the factors of all later windows.
    later = torch.cat([growth[:, 1:], torch.ones(count, 1, dtype=torch.float64)], 1)
    grown = later.flip(1).cumprod(1).flip(1) ** 2
    return (added * grown).sum(1).clamp_min(0.0), list(z.unbind(1))


def _lines(
    computed: torch.Tensor, closed: torch.Tensor, sampler: SamplerCoefficients, depth: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The weights and features of windows before their corrections.

    Args:
        computed, closed: `(C, k)`, the steps at which windows open and close.

    Returns:
        w `(C, k, R)`; features `(C, k, F)`, indices of rows of the Gram matrix; and a mask of the
        same shape: whether a feature may have a correction.
    """
    count, k = computed.shape
    # A window extrapolates from computed steps of its own expert, latest first.
    places = torch.arange(k)[:, None] - torch.arange(depth)
    used = computed[:, places.clamp_min(0)]  # (C, k, D)
    since = torch.tensor([sampler.since(step) for step in range(sampler.num_steps)])
    exists = (places >= 0) & (used >= since[computed][:, :, None])
    # Where a step does not exist, `line_sums` expects the step that opens the window.
    used = torch.where(exists, used, computed[:, :, None]).flatten(0, 1)
    # A feature has no correction if its step does not exist or its component has weight 0.
    weighs = sampler.step_weights.T[computed] != 0  # (C, k, B)
    corrected = (weighs[..., None] & exists[:, :, None]).flatten(2)
    corrected = torch.cat([corrected, torch.ones(count, k, 1, dtype=torch.bool)], 2)  # the noise
    corrected = corrected & (closed - computed > 1)[:, :, None]  # only where a step is extrapolated
    ends = computed.flatten(), closed.flatten()
    features = sampler.feature_rows(used)
    w = sampler.omitted(*ends)  # as if the extrapolated steps added nothing
    w = w.scatter_add(1, features, line_sums(used, *ends, sampler))
    return w.view(count, k, -1), features.view(count, k, -1), corrected


def _solver(
    features: torch.Tensor, corrected: torch.Tensor, gram: torch.Tensor, ridge: float
) -> torch.Tensor:
    """`(C, k, F, F)`: the inverse of G_ff + ridge · diag G_ff, for every window.

    Args:
        features: `(C, k, F)`, indices of rows of the Gram matrix.
        corrected: the same shape; where it is false, a feature has no correction. Its row and
            column of the inverse are then 0.
    """
    among = gram[features[..., :, None], features[..., None, :]]
    penalty = ridge * torch.diagonal(among, dim1=-2, dim2=-1) + 1e-30  # a row may be all zeros
    both = corrected[..., :, None] & corrected[..., None, :]
    # Features without a correction get a 1 on the diagonal, so that the matrix has an inverse.
    among = torch.where(both, among, 0.0) + torch.diag_embed(torch.where(corrected, penalty, 1.0))
    return torch.where(both, torch.linalg.inv(among), 0.0)


@one_thread()
def search(
    error_model: ErrorModel, count: int, *, start: Sequence[int] | None = None,
    beside: ErrorModel | None = None, usual: Sequence[int] | None = None,
) -> tuple[Plan, float]:  # fmt: skip
    """The best plan found that computes `count` steps, by descent over the computed steps.

    The search begins at several spacings that follow how fast the predictions change. For a run of
    more than `LONG_RUN` steps, a shorter run is searched, whose steps are the *nodes* of the long
    one. The long run then computes as densely as the plan that was found.

    Args:
        count: number of steps to compute: at least that of `fixed_steps`, at most all.
        start: computed steps to begin with, in place of these spacings.
        beside: a second error model of the same sampler. A set of computed steps is then scored by
            the geometric mean of both errors. Each error is that of its own best weights.
        usual: the best computed steps by `beside` alone, if known; None: they are searched.

    Returns:
        As `fit` returns it, with weights fitted to `error_model`. Equal arguments give equal plans.

    Raises:
        ValueError: `count` is out of range.
    """
    n, fixed = error_model.num_steps, error_model.sampler.fixed_steps
    if not len(fixed) <= count <= n:
        raise ValueError(f"count is {count}; accepted: {len(fixed)} to {n}")
    models = [error_model] if beside is None else [error_model, beside]
    if start is None:
        starts = [steps for model in models for steps in _spaced(model, count)]
    else:
        starts = [of_count(start, n, count)]
    starts = [with_fixed(steps, fixed) for steps in starts]
    if count in (len(fixed), n):  # there is no other plan
        return fit(starts[0], error_model)

    def errors(plans: torch.Tensor) -> torch.Tensor:  # what descent minimises
        found = [_errors(plans, model) for model in models]
        return found[0] if beside is None else torch.stack(found).log().mean(0).exp()

    def best(plans: list[list[int]]) -> tuple[Plan, float]:
        return fit(plans[int(errors(torch.tensor(plans)).argmin())], error_model)

    nodes = max(min(_NODES, n // 2), math.ceil(n * _COMPUTED_NODES / count))
    if nodes <= n // 2 and (n > LONG_RUN or (n > _QUICK and start is None)):
        by_nodes = with_fixed(_by_nodes(models, count, nodes), fixed)
        if n > LONG_RUN:
            return best([starts[-1], by_nodes])
        starts = [by_nodes]
    ends = [descend(torch.tensor(starts), n, fixed, errors)]
    # Begin also at the best steps of each model alone, so that the result is no worse than either.
    if beside is not None:
        if usual is None:
            usual = search(beside, count, start=start)[0].computed
        alone = [search(error_model, count, start=start)[0].computed, usual]
        ends.append(descend(torch.tensor(alone), n, fixed, errors))
    return best(ends)


def _errors(plans: torch.Tensor, error_model: ErrorModel) -> torch.Tensor:
    """E `(C,)` of plans that are given as computed steps `(C, k)`."""
    size = max(1, _MOST_NUMBERS // (plans.shape[1] * error_model.sampler.num_rows))
    pieces = torch.split(plans, size)
    return torch.cat([_evaluate(p, error_model, PLAN_DEPTH, PLAN_RIDGE)[0] for p in pieces])


def _spaced(error_model: ErrorModel, count: int) -> list[list[int]]:
    """Sets of `count` steps, one for each power in `_POWERS`.

    The density of steps is that power of a change in the final latents: the change when a step's
    guided prediction replaces the one of the step before.
    """
    sampler = error_model.sampler
    guided = sampler.guide[:-1, :-1]  # (n, B n)
    among = guided @ error_model.mean_gram[:-1, :-1] @ guided.T
    squares = among.diagonal()
    changes = squares[1:] + squares[:-1] - 2 * among.diagonal(1)
    changes = torch.cat([changes[:1], changes]).clamp_min(0).sqrt()
    changes = changes * (sampler.coefficients * error_model.error_gain).abs()
    changes = changes.clamp_min(1e-9 * float(changes.max()) + 1e-30)
    return [by_density((changes**power).tolist(), count) for power in _POWERS]


def _by_nodes(models: Sequence[ErrorModel], count: int, nodes: int) -> list[int]:
    """`count` computed steps of a long run, found in a run of its nodes alone."""
    n, at = models[0].num_steps, _nodes(models[0].sampler, nodes)
    short, *beside = (_shortened(model, at) for model in models)
    plan, _ = search(short, round(count * nodes / n), beside=beside[0] if beside else None)
    return of_count(as_dense([*at[list(plan.computed)].tolist(), n], count), n, count)


def _nodes(sampler: SamplerCoefficients, nodes: int) -> torch.Tensor:
    """`nodes` evenly spaced steps of the run, and the steps that every plan computes."""
    return torch.tensor(with_fixed(evenly(sampler.num_steps, nodes), sampler.fixed_steps))


def _shortened(error_model: ErrorModel, at: torch.Tensor) -> ErrorModel:
    """The error model of a run that makes only the steps `at`.

    Each of these steps has its own prediction. Its coefficient is the sum of the coefficients of
    all steps from it up to the next one in `at`.
    """
    sampler, n, nodes = error_model.sampler, error_model.num_steps, len(at)
    node = torch.bucketize(torch.arange(n), at, right=True) - 1
    added = torch.zeros(nodes, dtype=torch.float64).index_add_(0, node, sampler.coefficients)
    second = sampler.second
    if second is not None:
        second = replace(second, begin=int(node[second.begin]))
    short = SamplerCoefficients(added, sampler.timesteps[at], sampler.branch_weights, second)
    rows = sampler.feature_rows(at[None])[0]
    gram, gain = error_model.mean_gram[rows][:, rows], error_model.error_gain[at]
    return ErrorModel(short, gram[None], gain, error_model.error_memory * nodes / n)
