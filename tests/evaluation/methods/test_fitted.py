"""L2P's weights and BudCache's search, against what can be known, and their rows."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from tiny import tiny_clips

from dit_accel.evaluation.methods import METHODS, MethodContext, budcache, l2p, runs
from dit_accel.planning.nodes import Nodes
from dit_accel.planning.paths import Recorded

STEPS = 6
CLIPS = tiny_clips(STEPS, 2)


def recorded(seed: int) -> Recorded:
    """Predictions that lie on a parabola of the step."""
    parts = torch.randn(3, 20, generator=torch.Generator().manual_seed(seed))
    predictions = torch.stack([parts[0] + s * parts[1] + s * s * parts[2] for s in range(8)])
    times = torch.linspace(1, 0, 9, dtype=torch.float64)
    return Recorded(Nodes("flow", times, times[:-1]), torch.zeros(9, 20), predictions)


def test_worked_example_of_l2p():
    """Three steps fix a parabola: from steps 0, 1 and 2 the value at 3 is 1 -3 3, in every run."""
    found = l2p.fitted_weights([recorded(0), recorded(1)], [2, 1, 0], 3)
    assert found == pytest.approx({2: 3.0, 1: -3.0, 0: 1.0}, abs=0.05)


def test_l2p_weights_are_those_of_least_squares():
    runs_, used = [recorded(0), recorded(1)], [4, 2]
    rows, targets = [], []
    for run in runs_:
        size = run.predictions[5].norm()
        rows.append(run.predictions[used].T / size)
        targets.append(run.predictions[5] / size)
    exact = torch.linalg.lstsq(torch.cat(rows).double(), torch.cat(targets).double()).solution
    found = l2p.fitted_weights(runs_, used, 5)
    assert [found[s] for s in used] == pytest.approx(exact.tolist(), abs=1e-3)
    assert l2p.fitted_plan(runs_, 3).computed == (0, 3, 5)


@pytest.mark.parametrize("seed", range(3))
def test_bud_cache_finds_the_best_mask_of_a_small_problem(seed):
    """The error is a distance to a hidden mask; there are 35 masks with the first step fixed."""
    hidden, asked = (0, 3, 4, 7), []

    def score(mask: tuple[int, ...]) -> float:
        asked.append(mask)
        return 1e-3 + sum(abs(a - b) for a, b in zip(mask, hidden, strict=True))

    found = budcache.search(8, 4, score, seed=seed)
    masks = [(0, *rest) for rest in itertools.combinations(range(1, 8), 3)]
    assert found == min(masks, key=score) == hidden
    assert len(asked[: len(set(asked))]) <= len(masks)  # each was asked once by the search


def test_a_budget_of_all_steps_or_one_needs_no_search():
    def never(mask: tuple[int, ...]) -> float:
        raise AssertionError

    assert budcache.search(5, 5, never) == (0, 1, 2, 3, 4)
    assert budcache.search(5, 1, never) == (0,)


@pytest.mark.parametrize("name", ["l2p", "budcache"])
def test_rows_compute_k_steps_and_state_their_runs(tiny_wan: Any, name: str, monkeypatch: Any):
    monkeypatch.setattr(budcache, "PROPOSALS", 3)
    monkeypatch.setattr(budcache, "ROUNDS", 1)
    monkeypatch.setattr(budcache, "MOVES", 2)
    pipe = tiny_wan()
    context = MethodContext(CLIPS[0], lambda name, measure: measure(lambda: None),
                            calibration_clips=CLIPS, batch=2)  # fmt: skip
    with METHODS[name].apply(pipe, 3, context) as handle:
        assert runs.final_latents(pipe, CLIPS, 2).isfinite().all()
        assert handle.report is not None and handle.report().steps_computed == 3
    if name == "l2p":
        assert handle.calibration_runs == 2
    else:
        assert 1 + 2 * 0.5 <= (handle.calibration_runs or 0) <= 1 + 6 * 0.5
