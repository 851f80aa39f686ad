"""Descent over sets of steps, with errors that can be worked out by hand."""

from __future__ import annotations

import torch

from dit_accel.planning.descent import descend


def distance_to(*wanted: int):
    """Sum over the wanted steps of how far the nearest step of a set is."""
    return lambda sets: (sets[:, :, None] - torch.tensor(wanted)).abs().amin(1).sum(1).double()


def test_worked_example():
    """Error 0 + 0 + 1 + 5. One step a round, by up to three: 3 goes to 6 (0 + 0 + 2 + 2), 6 to 8
    (2), 2 to 4 (0)."""
    assert descend(torch.tensor([[0, 1, 2, 3]]), 9, [0], distance_to(0, 1, 4, 8)) == [0, 1, 4, 8]


def test_the_best_start_is_taken_and_fixed_steps_stay():
    starts = torch.tensor([[0, 1, 5, 6], [0, 5, 8, 9]])
    assert descend(starts, 10, [0, 5], distance_to(0, 5, 8, 9)) == [0, 5, 8, 9]
    found = descend(starts, 10, [0, 5], distance_to(1, 4, 8, 9))
    assert {0, 5} <= {*found}


def test_a_step_that_small_moves_cannot_bring_there_is_put_elsewhere():
    """20 is worth much, and nothing between shows where it is."""

    def errors(sets):
        return 2.0 - (sets == 20).any(1).double() - (sets == 2).any(1) * 0.5

    assert {0, 2, 20} <= {*descend(torch.tensor([[0, 2, 3]]), 30, [0], errors)}


def test_in_a_long_run_moves_are_longer():
    rounds = []

    def errors(sets):
        rounds.append(sets)
        return distance_to(0, 900)(sets)

    found = descend(torch.tensor([[0, 400]]), 1000, [0], errors)
    assert abs(found[1] - 900) <= 10 and len(rounds) < 40
