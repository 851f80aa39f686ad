"""Corrections fitted to what runs really left: least squares that can be done by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dit_accel.calibration import fit
from dit_accel.calibration.fit import STRENGTHS, RidgeMoments

AXES = torch.eye(2)
WEAKEST = -torch.arange(len(STRENGTHS), dtype=torch.float64)  # gains that ask for hardly any hold


def moments_of(*centre: float, penalty: float = 1.0) -> RidgeMoments:
    """With prompts whose moments are expected to be `penalty` times the identity."""
    return RidgeMoments(torch.tensor(centre), penalty * torch.eye(len(centre)))


def add(moments: RidgeMoments, prompt: int, features: Any, residual: Any, size: float) -> None:
    """One prompt: features `(F, N)`, residual `(N,)`."""
    moments.add([prompt], features[:, None], residual[None], torch.tensor([size]))


def row(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def gains_at(strength: float) -> torch.Tensor:
    """Of which this strength is the best."""
    return (strength != STRENGTHS).double()


def random_moments(prompts: int, alike: float, features: int = 3) -> RidgeMoments:
    """Prompts that want the same correction, up to noise: the more, the less `alike`."""
    draw, moments = (
        torch.Generator().manual_seed(0),
        RidgeMoments(torch.zeros(features), torch.eye(features)),
    )
    rows = torch.randn(features, prompts, 40, generator=draw)
    wanted = torch.randn(features, generator=draw) + torch.randn(prompts, features, generator=draw)
    common = alike * torch.ones(prompts, features) + (1 - alike) * wanted
    residual = torch.einsum("pf,fpn->pn", common, rows)
    moments.add(range(prompts), rows, residual, torch.ones(prompts))
    return moments


def test_a_clip_off_its_path_counts_as_an_expected_one_and_a_diverged_one_does_not():
    """The centre should leave an error of 1. One of 4 counts as 1, and one above 4 as 0."""
    moments, expected = moments_of(0.0), torch.tensor([1.0])
    found = []
    for wanted in (0.5, 1.0, 2.0, 4.0, 4.1, 40.0):
        given = torch.ones(1, 1, 4), torch.full((1, 4), wanted), torch.ones(1)
        moments.add([0], *given, expected)
        found.append(float(moments.correction(WEAKEST)))
    assert found == pytest.approx([0.5, 1.0, 1.0, 1.0, 0.0, 0.0], abs=1e-3)
    # Beside another one, it counts as a clip with the expected error: (1 + 0) / (1 + 1).
    one = torch.ones(1, 1, 4), torch.full((1, 4), 1.0), torch.ones(1), expected
    moments.add([1], *one)
    assert float(moments.correction(WEAKEST)) == pytest.approx(0.5, abs=1e-3)
    # With a third one, cross-validation decides how far all are followed.
    moments.add([2], *one)
    assert float(moments.correction(WEAKEST)) == pytest.approx(1.0, abs=1e-3)


def test_worked_example():
    """Which sum of features makes up for what the line left? Least squares over the prompts."""
    moments = moments_of(0.0, 0.0)
    # Prompt 0: features (1, 0) and (1, 1); the line left (5, 2) = 3 x (1, 0) + 2 x (1, 1).
    add(moments, 0, torch.tensor([[1.0, 0.0], [1.0, 1.0]]), row(5.0, 2.0), 1.0)
    assert moments.correction(WEAKEST).tolist() == pytest.approx([3.0, 2.0], abs=1e-4)
    # One feature, two prompts that want 1 and 3 of it, weighed by the inverse of what they want:
    # (1 / 1 + 3 / 3) / (1 / 1 + 1 / 3) = 2 / (4 / 3) = 1.5.
    moments = moments_of(0.0)
    add(moments, 0, torch.tensor([[1.0]]), row(1.0), 0.0)
    add(moments, 1, torch.tensor([[1.0]]), row(3.0), 0.0)
    assert moments.correction(WEAKEST).tolist() == pytest.approx([1.5], abs=1e-4)
    # Shrunk towards 0 as if one more prompt wanted that, with the expected moments:
    # 2 / (4 / 3 + 1.001) = 0.857.
    assert moments.correction(gains_at(1.0)).tolist() == pytest.approx([2 / (4 / 3 + 1.001)])
    # Without prompt 0 only prompt 1 counts: 1 / (1 / 3 + 1.001).
    assert moments.correction(WEAKEST, without=0).tolist() == pytest.approx([3.0], abs=1e-4)
    one = moments.correction(gains_at(1.0), without=0)
    assert one.tolist() == pytest.approx([1 / (1 / 3 + 1.001)])


def test_expected_moments_are_those_of_a_prompt_that_is_as_expected():
    """Final latents of mean square 4, and a feature of a quarter of their squared norm. The centre
    should leave 1 % of it: a weight of 1 / 0.2 on a mean square of 1."""
    moments = moments_of(0.0)
    moments.add([0], torch.ones(1, 1, 8), torch.full((1, 8), 0.2), torch.tensor([4.0]))
    found = fit.expected_moments(torch.tensor([[0.25]]), 4.0, 0.01)
    assert found.item() == pytest.approx(moments.matrices[0].item(), rel=1e-4)
    assert found.item() == pytest.approx(1 / 0.2, rel=1e-4)


def test_worked_example_of_the_strength():
    """How strongly to hold is asked of prompts that the fit has not seen."""
    moments = moments_of(2.0)
    # What the centre leaves is 1 of prompts 0, 2 and 3, which want 3, and -1 of prompt 1. A fit to
    # three of them is 1/3, or 1 without prompt 1. It changes the error of each of three prompts by
    # (1 - 1/3)^2 - 1 = -5/9, and of prompt 1 by 2^2 - 1 = 3: the centre it is, exactly.
    for prompt, wanted in enumerate((3.0, 1.0, 3.0, 3.0)):
        add(moments, prompt, torch.tensor([[1.0]]), row(wanted), 0.0)
    gains = moments.gains()
    assert gains[0] == 0 and gains[-1] == pytest.approx(3 * -5 / 9 + 3, abs=1e-4)
    assert moments.correction(gains).tolist() == [2.0]
    # Six more of them, and it is better to follow.
    for prompt in range(4, 10):
        add(moments, prompt, torch.tensor([[1.0]]), row(3.0), 0.0)
    assert moments.gains().min() < 0
    assert 2.0 < moments.correction(moments.gains()).item() < 3.0


def test_one_or_two_prompts_are_followed_by_the_usual_strength():
    """They cannot say how far; without any it is the centre. One wants 1 more, and gets, as if
    another one wanted the centre, 1 / (1 + 1.001). Two get 2 / (2 + 1.001)."""
    moments = moments_of(0.5, -0.5, penalty=0.5)  # two numbers, each with half of the weight
    assert moments.correction(moments.gains()).tolist() == [0.5, -0.5]
    for number in (1, 2):
        add(moments, number, AXES, row(1.5, 0.5), 1.0)
        share = number / (number + 1.001)
        found = moments.correction(moments.gains())
        assert found.tolist() == pytest.approx([0.5 + share, -0.5 + share], abs=1e-6)
    add(moments, 5, AXES, row(1.5, 0.5), 1.0)
    assert moments.correction(moments.gains()).tolist() == pytest.approx([1.5, 0.5], abs=1e-4)


def test_what_would_change_without_a_prompt():
    """One feature; prompts want 1 and 3. By both the correction is 1.5, and without the second 1:
    its latents would have 0.5 less in each of two numbers, 2 x 0.25."""
    moments = moments_of(0.0)
    add(moments, 0, torch.tensor([[1.0, 1.0]]), row(1.0, 1.0), 0.0)
    add(moments, 1, torch.tensor([[1.0, 1.0]]), row(3.0, 3.0), 0.0)
    assert moments.changed(1, WEAKEST) == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("alike", [0.0, 0.5, 1.0])
def test_gains_are_those_of_fits_written_out(alike):
    moments = random_moments(5, alike)
    gains = moments.gains()
    for place, strength in enumerate(STRENGTHS.tolist()):
        total = 0.0
        for left_out in range(5):
            seen = [q for q in range(5) if q != left_out]
            matrix = sum(moments.matrices[q] for q in seen)
            penalty = 1.001 * torch.eye(3)
            added = torch.zeros(3, dtype=torch.float64)
            if math.isfinite(strength):
                vector = sum(moments.vectors[q] for q in seen)
                added = torch.linalg.solve(matrix + strength * penalty, vector)
            own, wanted = moments.matrices[left_out], moments.vectors[left_out]
            total += float(added @ own @ added - 2 * added @ wanted)
        assert gains[place].item() == pytest.approx(total, rel=1e-6, abs=1e-12)


def test_what_all_prompts_want_is_followed_and_what_none_shares_is_not():
    alike, unlike = random_moments(6, 1.0), random_moments(6, 0.0)
    assert torch.allclose(alike.correction(alike.gains()), torch.ones(3).double(), atol=1e-4)
    shrunk, free = unlike.correction(unlike.gains()), unlike.correction(WEAKEST)
    assert shrunk.norm() < 0.9 * free.norm()


def test_many_prompts_are_left_out_in_groups(monkeypatch):
    """Groups of one are all there is up to the limit; beyond it a group has several."""
    moments = random_moments(6, 0.5)
    one_by_one = moments.gains()
    monkeypatch.setattr(fit, "MAX_FOLDS", 3)
    grouped = moments.gains()
    assert not torch.equal(one_by_one, grouped)
    assert grouped[0] == 0 and grouped[-1] == pytest.approx(one_by_one[-1].item(), rel=0.5)


def test_what_the_features_do_not_reach_is_left():
    """One feature along (1, 1): of (4, 2) it makes (3, 3)."""
    moments = moments_of(0.0)
    add(moments, 0, torch.tensor([[1.0, 1.0]]), row(4.0, 2.0), 1.0)
    assert moments.correction(WEAKEST).tolist() == pytest.approx([3.0], abs=1e-4)


def test_prompts_are_weighed_by_the_inverse_of_what_the_centre_leaves():
    """From the centre 1 prompts want 1 and 3 more of the same feature. With weights 1 / 1 and 1 / 3
    the best is (1 + 3 / 3) / (1 + 1 / 3) = 1.5 more, neither their mean nor what relative errors
    would have."""
    moments = moments_of(1.0)
    for prompt, wanted in enumerate((2.0, 4.0)):
        add(moments, prompt, torch.tensor([[1.0]]), row(wanted), 0.0)
    assert moments.correction(WEAKEST).tolist() == pytest.approx([2.5], abs=1e-4)


def test_a_prompt_whose_line_is_all_but_exact_weighs_no_more_than_the_floor():
    """It leaves 0, over a floor of a millionth of the size; the other wants 1: 1 / (1 + 10^3)."""
    moments = moments_of(0.0)
    add(moments, 0, torch.tensor([[1.0]]), row(1.0), 0.0)
    add(moments, 1, torch.tensor([[1.0]]), row(0.0), 1.0)
    assert moments.correction(WEAKEST).tolist() == pytest.approx([1 / (1 + 1e3)], rel=1e-4)


def test_a_second_time_replaces_the_first():
    once, twice = moments_of(0.0, 0.0), moments_of(0.0, 0.0)
    add(twice, 0, AXES, row(7.0, -3.0), 1.0)
    for moments in (once, twice):
        add(moments, 0, AXES, row(1.0, 2.0), 1.0)
        add(moments, 1, AXES, row(2.0, 2.0), 1.0)
    assert torch.equal(once.correction(WEAKEST), twice.correction(WEAKEST))


def test_a_prompt_that_is_left_out_has_no_part():
    """Bit-equal to never having seen it: its score is held out."""
    all_four, three = moments_of(0.0, 0.0), moments_of(0.0, 0.0)
    draw = torch.Generator().manual_seed(0)
    for prompt in range(4):
        features, left = torch.randn(2, 5, generator=draw), torch.randn(5, generator=draw)
        add(all_four, prompt, features, left, 1.0)
        if prompt != 1:
            add(three, prompt, features, left, 1.0)
    assert torch.equal(all_four.correction(WEAKEST, without=1), three.correction(WEAKEST))
    assert not torch.equal(all_four.correction(WEAKEST), three.correction(WEAKEST))


def test_a_feature_that_is_nothing_changes_nothing():
    """The noise of a pipeline that does not show it is a row of zeros."""
    moments = moments_of(0.0, 0.0)
    add(moments, 0, torch.tensor([[1.0, 0.0], [0.0, 0.0]]), row(3.0, 1.0), 1.0)
    assert moments.correction(WEAKEST).tolist() == pytest.approx([3.0, 0.0], abs=1e-4)


def test_features_of_a_low_precision_are_summed_in_float64():
    moments = moments_of(0.0)
    add(moments, 0, torch.full((1, 4096), 1.0, dtype=torch.bfloat16), torch.ones(4096), 1.0)
    (square,) = moments.matrices[0].flatten().tolist()
    assert square == pytest.approx(1.0 / math.sqrt(1 + 1e-6), abs=1e-12)
    assert moments.correction(WEAKEST).dtype == torch.float64


def test_several_prompts_at_once_are_taken_in_as_one_after_the_other():
    draw = torch.Generator().manual_seed(1)
    features, left = torch.randn(2, 3, 5, generator=draw), torch.randn(3, 5, generator=draw)
    together, one_by_one = moments_of(0.0, 0.0), moments_of(0.0, 0.0)
    together.add([4, 5, 6], features, left, torch.ones(3))
    for place, prompt in enumerate((4, 5, 6)):
        add(one_by_one, prompt, features[:, place], left[place], 1.0)
    assert torch.allclose(together.gains(), one_by_one.gains())
    assert torch.allclose(together.correction(WEAKEST), one_by_one.correction(WEAKEST))
