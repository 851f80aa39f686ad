"""Chooses which steps are computed, by the cheapest path through the steps of a run.

In: the cost from each computed step to the next, and the number of computed steps. Out: these
steps. One dynamic program finds them for five published methods, which differ only in the cost of
an edge. The module also calculates these costs from recorded runs.
Knows numbers; no model.

Nodes are the steps 0 to n - 1, and the end n. A path has k edges: 0 = p_1 < ... < p_k < n. The cost
of an edge from step i to j may depend on h, the computed step before i:

    V_1(0, j) = c(0, 0, j)
    V_{m+1}(i, j) = min over h of  discount V_m(h, i) + c(h, i, j)      (or max in place of +)

The costs use states x, predictions v and times t of uncached runs. e is the norm of an error,
relative to the final latents:

    GITS     e(x_i + (t_j - t_i) v_i - x_j), discounted by 1.15: later errors grow from earlier ones
    LeMiCa   e(sum of the steps' errors when v_i is reused); the largest edge counts
    CEM      sum of e(each step's error when v_i is reused)
    DPCache  sum of e(each step's error when the line through v_h and v_i is followed)
    MeanCache  e(error of the mean prediction of i to j, estimated from v_i and the line's slope)

Source: GITS (arXiv 2405.11326), LeMiCa (2511.00090), CEM (2512.23258), DPCache (2602.22654),
MeanCache (2601.19961). We depart: LeMiCa's cost is the first-order effect on the final latents, and
needs no run for each edge. All errors are relative and averaged over runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from dit_accel.planning.nodes import Nodes

Costs = npt.NDArray[np.float64]
GITS_DISCOUNT = 1.15


@dataclass(frozen=True)
class PathCost:
    """The costs of edges, and how they combine to the cost of a path.

    Args:
        edges: `(n, n, n + 1)`: cost by the computed step before (0 for the first edge), the edge's
            own computed step, and the next one; infinite where there is no edge.
        combine: whether a path costs the sum of its edges or the largest of them.
        discount: factor on the cost of all earlier edges, at each edge.
    """

    edges: Costs
    combine: Literal["sum", "max"] = "sum"
    discount: float = 1.0


def cheapest(cost: PathCost, count: int) -> tuple[int, ...]:
    """The cheapest path with `count` computed steps.

    Args:
        count: 1 to n.

    Raises:
        ValueError: `count` is out of range.

    Example:
        >>> edges = np.full((2, 2, 3), np.inf)
        >>> edges[:, 0, 1], edges[:, 0, 2], edges[:, 1, 2] = 1.0, 5.0, 1.0
        >>> cheapest(PathCost(edges), 2), cheapest(PathCost(edges), 1)
        ((0, 1), (0,))
    """
    n = cost.edges.shape[1]
    if not 1 <= count <= n:
        raise ValueError(f"count is {count}; accepted: 1 to {n}")
    reached = np.full((n, n + 1), np.inf)  # V_m, by the last edge (i, j)
    reached[0] = cost.edges[0, 0]
    cameby: list[npt.NDArray[np.int64]] = []
    for _ in range(count - 1):
        before = cost.discount * reached[:, :n, None]  # (h, i, 1)
        total = np.maximum(before, cost.edges) if cost.combine == "max" else before + cost.edges
        cameby.append(total.argmin(0))
        reached = total.min(0)
    here, following = int(reached[:, n].argmin()), n
    path = [here]
    for table in reversed(cameby):
        here, following = int(table[here, following]), here
        path.append(here)
    return tuple(reversed(path))


def first_order(edges: Costs) -> Costs:
    """Costs `(n, n + 1)` that do not depend on the step before, shaped as `PathCost.edges`."""
    return np.broadcast_to(edges, (len(edges), *edges.shape)).copy()


# --- costs of recorded runs ---


@dataclass(frozen=True)
class Recorded:
    """An uncached run: its nodes, states `(n + 1, N)` and guided predictions `(n, N)`."""

    nodes: Nodes
    states: torch.Tensor
    predictions: torch.Tensor


def gits_cost(runs: Sequence[Recorded]) -> PathCost:
    """The distance between a jump along one prediction and the state of the uncached run."""
    return PathCost(first_order(_mean([_jumps(run) for run in runs])), discount=GITS_DISCOUNT)


def lemica_cost(runs: Sequence[Recorded]) -> PathCost:
    """What reuse over an edge adds to the final latents; the largest edge counts."""
    return PathCost(first_order(_mean([_reuse(run, signed=True) for run in runs])), "max")


def cem_cost(runs: Sequence[Recorded]) -> PathCost:
    """The sum of the norms of the errors at the reused steps."""
    return PathCost(first_order(_mean([_reuse(run, signed=False) for run in runs])))


def dpcache_cost(runs: Sequence[Recorded]) -> PathCost:
    """The sum of the norms of the errors at the steps that a line extrapolates."""
    return PathCost(_mean([_lines(run, signed=False) for run in runs]))


def meancache_cost(runs: Sequence[Recorded]) -> PathCost:
    """The error of the mean prediction over an edge, if a line estimates it."""
    return PathCost(_mean([_lines(run, signed=True) for run in runs]))


def step_errors(run: Recorded) -> Costs:
    """`(n, n)`: the error of the latents if a step's prediction is reused at a later step.

    The error is what this adds to the latents at the later step, relative to the final latents. It
    is infinite where the second step is not later.
    """
    n = len(run.nodes)
    found = np.full((n, n), np.inf)
    for here in range(n - 1):
        later = run.predictions[here + 1 :]
        errors = _steps(run)[here + 1 :, None] * (run.predictions[here] - later)
        found[here, here + 1 :] = _sizes(errors, run)
    return found


def _mean(costs: list[Costs]) -> Costs:
    found: Costs = np.mean(costs, axis=0)
    return found


def _jumps(run: Recorded) -> Costs:
    times, n = run.nodes.times.to(run.states), len(run.nodes)
    found = np.full((n, n + 1), np.inf)
    for here in range(n):
        jumps = (times[here + 1 :] - times[here])[:, None] * run.predictions[here]
        error = run.states[here] + jumps - run.states[here + 1 :]
        found[here, here + 1 :] = _sizes(error, run)
    return found


def _reuse(run: Recorded, *, signed: bool) -> Costs:
    n = len(run.nodes)
    found = np.full((n, n + 1), np.inf)
    for here in range(n):
        errors = _steps(run)[here:, None] * (run.predictions[here] - run.predictions[here:])
        found[here, here + 1 :] = _added_up(errors, run, signed)
    return found


def _lines(run: Recorded, *, signed: bool) -> Costs:
    """Costs as in `PathCost.edges`. The first edge has no line yet, so it reuses the prediction."""
    n, times = len(run.nodes), run.nodes.times.to(run.predictions)
    found = np.full((n, n, n + 1), np.inf)
    found[0, 0, 1:] = _reuse(run, signed=signed)[0, 1:]
    for here in range(1, n):
        reused = _steps(run)[here:, None] * (run.predictions[here] - run.predictions[here:])
        for before in range(here):
            slope = (run.predictions[here] - run.predictions[before]) / (
                times[here] - times[before]
            )
            ahead = _steps(run)[here:] * (times[here:-1] - times[here])
            errors = reused + ahead[:, None] * slope
            found[before, here, here + 1 :] = _added_up(errors, run, signed)
    return found


def _steps(run: Recorded) -> torch.Tensor:
    """`(n,)`: what a unit of each prediction adds to the latents."""
    return run.nodes.times.diff().to(run.predictions)


def _added_up(errors: torch.Tensor, run: Recorded, signed: bool) -> Costs:
    """The costs `(m,)` of edges that end after each of m steps.

    Args:
        errors: `(m, N)`, the errors of the steps from the edge's start on.
        signed: whether to add the errors before the norm, or the norms.
    """
    if signed:
        return _sizes(errors.cumsum(0), run)
    return np.cumsum(_sizes(errors, run))


def _sizes(errors: torch.Tensor, run: Recorded) -> Costs:
    return (errors.norm(dim=1) / run.states[-1].norm()).double().numpy()
