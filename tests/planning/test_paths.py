"""The cheapest path through the steps of a run, and what its edges cost."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from dit_accel.planning import paths
from dit_accel.planning.nodes import Nodes
from dit_accel.planning.paths import PathCost, Recorded, cheapest, first_order


def test_worked_example():
    """Four steps and the end; staying long on a step costs the square of its length, and step 2
    must not be left by more than one. With two computed steps: 0, 2 is forbidden to reach the end
    at 4 (length 2 from 2), so 0, 3 costs 9 + 1 = 10 and 0, 1 costs 1 + 9 = 10, and the largest edge
    is 9 for both; with three, 0, 1, 3 costs 1 + 4 + 1 = 6 and 0, 2, 3 as much: the first is taken.
    """
    edges = np.full((4, 5), np.inf)
    for here, following in itertools.combinations(range(5), 2):
        edges[here, following] = (following - here) ** 2
    edges[2, 4] = np.inf
    cost = PathCost(first_order(edges))
    assert cheapest(cost, 1) == (0,)
    assert total(cost, cheapest(cost, 2)) == 10
    assert total(cost, cheapest(cost, 3)) == 6
    assert cheapest(cost, 4) == (0, 1, 2, 3)


def total(cost: PathCost, path: tuple[int, ...]) -> float:
    """What a path costs, written out from the definition."""
    ends = (*path[1:], cost.edges.shape[1])
    value = cost.edges[0, 0, ends[0]]
    for before, here, following in zip(path, path[1:], ends[1:], strict=False):
        edge = cost.edges[before, here, following]
        value = max(cost.discount * value, edge) if cost.combine == "max" else (
            cost.discount * value + edge
        )  # fmt: skip
    return float(value)


@pytest.mark.parametrize("combine", ["sum", "max"])
@pytest.mark.parametrize("discount", [1.0, 1.15])
@pytest.mark.parametrize("seed", range(4))
def test_no_path_of_all_is_cheaper(combine, discount, seed):
    n = 7
    edges = np.random.default_rng(seed).random((n, n, n + 1))
    for before, here, following in np.ndindex(edges.shape):
        if not before <= here < following:
            edges[before, here, following] = np.inf
    cost = PathCost(edges, combine, discount)
    for count in range(1, n + 1):
        found = cheapest(cost, count)
        assert len(found) == count and found[0] == 0
        all_paths = ((0, *rest) for rest in itertools.combinations(range(1, n), count - 1))
        assert total(cost, found) == pytest.approx(min(total(cost, path) for path in all_paths))


def test_counts_out_of_range_are_refused():
    with pytest.raises(ValueError, match="count is 3; accepted: 1 to 2"):
        cheapest(PathCost(np.zeros((2, 2, 3))), 3)


def recorded(times: list[float], predictions: list[list[float]]) -> Recorded:
    """An Euler run with these predictions."""
    t, v = torch.tensor(times, dtype=torch.float64), torch.tensor(predictions)
    start = torch.full((1, v.shape[1]), 2.0)
    states = torch.cat([start, start + (t.diff()[:, None].float() * v).cumsum(0)])
    return Recorded(Nodes("flow", t, 1000 * t[:-1]), states, v)


EVEN = [1.0, 0.8, 0.6, 0.4, 0.2, 0.0]
BENT = recorded(EVEN, [[1.0, 0], [1.0, 0], [0, 1.0], [0, 1.0], [0, 1.0]])  # a bend before step 2
LINE = recorded(EVEN, [[1.0, s] for s in range(5)])  # predictions on a line


def test_two_steps_stand_at_the_bend():
    """Straight before and after: computing steps 0 and 2 makes no error under any reuse cost."""
    for cost in (paths.gits_cost([BENT]), paths.lemica_cost([BENT]), paths.cem_cost([BENT])):
        assert cheapest(cost, 2) == (0, 2)
        assert total(cost, (0, 2)) == pytest.approx(0.0, abs=1e-6)
        assert total(cost, (0, 3)) > 0.05


def test_lines_are_free_where_predictions_lie_on_one():
    """Two computed steps give the line; only the first window, which reuses, must be one step."""
    for cost in (paths.dpcache_cost([LINE]), paths.meancache_cost([LINE])):
        assert cheapest(cost, 2) == (0, 1)
        assert total(cost, (0, 1)) == pytest.approx(0.0, abs=1e-6)
    assert total(paths.cem_cost([LINE]), (0, 1)) > 0.1


def test_costs_are_those_of_the_definition():
    """Reuse of step 0 over steps 1 to 3, by hand: each step adds -0.2 v."""
    final = float(LINE.states[-1].norm())
    wrong = [-0.2 * s for s in range(5)]  # the second component of v_0 - v_s, times -0.2, is +0.2 s
    assert paths.lemica_cost([LINE]).edges[0, 0, 4] == pytest.approx(
        abs(sum(wrong[1:4])) / final, rel=1e-5
    )
    two = [recorded(EVEN, [[1.0, f * s * s] for s in range(5)]) for f in (1.0, 2.0)]
    both, apart = paths.cem_cost(two).edges, [paths.cem_cost([run]).edges for run in two]
    known = np.isfinite(both)
    assert both[known] == pytest.approx((apart[0] + apart[1])[known] / 2)


def test_mean_cache_forgives_errors_that_cancel_and_dp_cache_does_not():
    wave = recorded(EVEN, [[0.0], [0.0], [1.0], [-1.0], [0.0]])
    mean, single = paths.meancache_cost([wave]).edges, paths.dpcache_cost([wave]).edges
    assert mean[0, 1, 4] == pytest.approx(0.0, abs=1e-6) and single[0, 1, 4] > 0.1
