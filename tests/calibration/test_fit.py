"""Changes fitted to what runs really left: least squares that can be done by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dit_accel.calibration.fit import RidgeMoments

AXES = torch.eye(2)


def add(moments: RidgeMoments, prompt: int, features: Any, residual: Any, size: float) -> None:
    """One prompt: features `(F, N)`, residual `(N,)`."""
    moments.add([prompt], features[:, None], residual[None], torch.tensor([size]))


def row(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def test_worked_example():
    """Which sum of features makes up for what the line left? Least squares over the prompts."""
    moments = RidgeMoments()
    # Prompt 0: features (1, 0) and (1, 1); the line left (5, 2) = 3 x (1, 0) + 2 x (1, 1).
    add(moments, 0, torch.tensor([[1.0, 0.0], [1.0, 1.0]]), row(5.0, 2.0), 1.0)
    assert moments.correction(ridge=0.0).tolist() == pytest.approx([3.0, 2.0])
    # One feature, two prompts that want 1 and 3 of it, weighed by the inverse of what they want:
    # (1 / 1 + 3 / 3) / (1 / 1 + 1 / 3) = 2 / (4 / 3) = 1.5.
    moments = RidgeMoments()
    add(moments, 0, torch.tensor([[1.0]]), row(1.0), 0.0)
    add(moments, 1, torch.tensor([[1.0]]), row(3.0), 0.0)
    assert moments.correction(ridge=0.0).tolist() == pytest.approx([1.5])
    # Prompt 0 is scored by a fit without itself: then only prompt 1 counts.
    assert moments.correction(without=0, ridge=0.0).tolist() == pytest.approx([3.0])
    # A ridge of half the feature's square holds it back: 3 / (1 + 0.5) = 2.
    assert moments.correction(without=0, ridge=0.5).tolist() == pytest.approx([2.0])


def test_nothing_is_known_before_the_first_prompt():
    moments = RidgeMoments()
    assert moments.correction() is None
    add(moments, 3, AXES, row(1.0, 1.0), 1.0)
    assert moments.correction(without=3) is None
    assert moments.correction() is not None


def test_what_the_features_do_not_reach_is_left():
    """One feature along (1, 1): of (4, 2) it makes (3, 3)."""
    moments = RidgeMoments()
    add(moments, 0, torch.tensor([[1.0, 1.0]]), row(4.0, 2.0), 1.0)
    assert moments.correction(ridge=0.0).tolist() == pytest.approx([3.0])


def test_prompts_are_weighed_by_the_inverse_of_what_their_line_leaves():
    """Prompts want 1 and 3 of the same feature. With weights 1 / 1 and 1 / 3 the best is
    (1 + 3 / 3) / (1 + 1 / 3) = 1.5, neither their mean nor what relative errors would have."""
    moments = RidgeMoments()
    for prompt, wanted in enumerate((1.0, 3.0)):
        add(moments, prompt, torch.tensor([[1.0]]), row(wanted), 0.0)
    assert moments.correction(ridge=0.0).tolist() == pytest.approx([1.5])


def test_a_prompt_whose_line_is_all_but_exact_weighs_no_more_than_the_floor():
    """It leaves 0, over a floor of a millionth of the size; the other wants 1: 1 / (1 + 10^3)."""
    moments = RidgeMoments()
    add(moments, 0, torch.tensor([[1.0]]), row(1.0), 0.0)
    add(moments, 1, torch.tensor([[1.0]]), row(0.0), 1.0)
    assert moments.correction(ridge=0.0).tolist() == pytest.approx([1 / (1 + 1e3)])


def test_a_second_time_replaces_the_first():
    once, twice = RidgeMoments(), RidgeMoments()
    add(twice, 0, AXES, row(7.0, -3.0), 1.0)
    for moments in (once, twice):
        add(moments, 0, AXES, row(1.0, 2.0), 1.0)
        add(moments, 1, AXES, row(2.0, 2.0), 1.0)
    assert torch.equal(once.correction(), twice.correction())


def test_a_prompt_that_is_left_out_has_no_part():
    """Bit-equal to never having seen it: its score is held-out."""
    all_three, two = RidgeMoments(), RidgeMoments()
    draw = torch.Generator().manual_seed(0)
    for prompt in range(3):
        features, left = torch.randn(2, 5, generator=draw), torch.randn(5, generator=draw)
        add(all_three, prompt, features, left, 1.0)
        if prompt != 1:
            add(two, prompt, features, left, 1.0)
    assert torch.equal(all_three.correction(without=1), two.correction())
    assert not torch.equal(all_three.correction(), two.correction())


def test_a_ridge_holds_back():
    """Half again the feature's own square: 3 / (1 + 0.5) = 2."""
    moments = RidgeMoments()
    add(moments, 0, torch.tensor([[1.0]]), row(3.0), 1.0)
    assert moments.correction(ridge=0.5).tolist() == pytest.approx([2.0])


def test_a_feature_that_is_nothing_changes_nothing():
    """The noise of a pipeline that does not show it is a row of zeros."""
    moments = RidgeMoments()
    add(moments, 0, torch.tensor([[1.0, 0.0], [0.0, 0.0]]), row(3.0, 1.0), 1.0)
    assert moments.correction(ridge=0.0).tolist() == pytest.approx([3.0, 0.0])


def test_features_of_a_low_precision_are_summed_in_float64():
    moments = RidgeMoments()
    add(moments, 0, torch.full((1, 4096), 1.0, dtype=torch.bfloat16), torch.ones(4096), 1.0)
    (change,) = moments.correction(ridge=0.0).tolist()
    assert change == pytest.approx(1.0, abs=1e-12)
    assert moments.correction().dtype == torch.float64


def test_a_change_wants_as_many_prompts_as_required():
    """Those that are left out do not count."""
    moments = RidgeMoments()
    for prompt in range(3):
        add(moments, prompt, AXES, row(1.0, float(prompt)), 1.0)
    assert moments.correction(least=3) is not None
    assert moments.correction(least=4) is None
    assert moments.correction(without=1, least=3) is None
    assert moments.correction(without=7, least=3) is not None


def test_changes_without_each_are_those_of_all_others():
    """And several prompts at once are taken in as one after the other."""
    draw = torch.Generator().manual_seed(1)
    features, left = torch.randn(2, 3, 5, generator=draw), torch.randn(3, 5, generator=draw)
    together, one_by_one = RidgeMoments(), RidgeMoments()
    together.add([4, 5, 6], features, left, torch.ones(3))
    for row, prompt in enumerate((4, 5, 6)):
        add(one_by_one, prompt, features[:, row], left[row], 1.0)
    changes = together.held_out([6, 4])
    assert torch.allclose(changes[0], one_by_one.correction(without=6))
    assert torch.allclose(changes[1], one_by_one.correction(without=4))
    assert together.held_out([4], least=3) is None
