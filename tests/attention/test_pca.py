"""PCAS's arithmetic: moments, bases and their bound, ranks, and values folded into projections."""

import pytest
import torch
import torch.nn.functional as F
from table_pcas import principal_basis

from dit_accel.attention import pca

B, N, H, D = 2, 40, 3, 8


def rows(seed, rank=D, tokens=N, mean=0.0):
    """`(B, N, H, D)` of correlated directions; of `rank` of them only."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(H, rank, D, generator=generator)
    content = torch.randn(B, tokens, H, rank, generator=generator)
    content = content * torch.logspace(0, -1.5, rank)
    return torch.einsum("bnhr,hrd->bnhd", content, mix) + mean


def pairs(query, key):
    """`(H, B N, B N)`: every query's product with every key, both pooled over the batch."""
    return torch.einsum("qhd,khd->hqk", query.flatten(0, 1), key.flatten(0, 1))


def test_worked_example():
    """Queries 2 and -2 along x and 1 and -1 along y; keys 1 and -1 along both. One head, D = 2."""
    axes = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    query, key = axes * torch.tensor([2.0, 1.0]), axes
    q, k = (pca.CovarianceAccumulator().add(rows[:, None]) for rows in (query, key))
    # mean squares: queries (4 + 4) / 4 = 2 along x and (1 + 1) / 4 = 0.5 along y; keys 0.5 and 0.5
    assert torch.allclose(q.second[0], torch.diag(torch.tensor([2.0, 0.5])))
    # their products, 1 along x and 0.25 along y, are the mean squared q . k of each direction
    basis = pca.bilinear_basis(q.second, k.covariance)
    assert torch.allclose(basis.energy, torch.tensor([[1.0, 0.25]]), atol=1e-3)
    # at rank 0 all of 1.25 is left out, at rank 1 the 0.25 of y, at rank 2 nothing
    assert torch.allclose(basis.left_out(), torch.tensor([[1.25, 0.25, 0.0]]), atol=1e-3)
    assert basis.rank_for(0.3).tolist() == [1]
    # and so it is over all 16 pairs: only the 4 along y, each off by 1, are lost at rank 1
    narrow = pca.slice_logits(query[None, :, None], key[None, :, None], basis, k.mean, 1)
    lost = pairs(*narrow)[0] - query @ key.T
    assert lost.square().mean().item() == pytest.approx(4 / 16, abs=1e-3)


def test_moments_by_hand():
    moments = pca.CovarianceAccumulator()
    moments.add(torch.tensor([[[1.0, 2.0]], [[3.0, 2.0]]]))
    moments.add(torch.tensor([[[5.0, 5.0]]]))  # x: 1 3 5, y: 2 2 5
    assert moments.count == 3
    assert torch.allclose(moments.mean, torch.tensor([[3.0, 3.0]]))
    assert torch.allclose(moments.covariance, torch.tensor([[[8 / 3, 2.0], [2.0, 2.0]]]))
    assert torch.allclose(moments.second, moments.covariance + 9)


def test_streaming_is_the_same_as_at_once_far_from_zero():
    data = rows(0, mean=300.0)
    once = pca.CovarianceAccumulator().add(data)
    streamed = pca.CovarianceAccumulator()
    for chunk in data.split(7, dim=1):
        streamed.add(chunk)
    exact = torch.stack(
        [torch.cov(data.flatten(0, 1)[:, h].double().T, correction=0) for h in range(H)]
    )
    assert torch.allclose(streamed.covariance, once.covariance, rtol=1e-4, atol=1e-4)
    assert torch.allclose(streamed.covariance.double(), exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", [pca.bilinear_basis, principal_basis])
def test_full_rank_leaves_nothing_out(make):
    query, key = rows(1), rows(2, mean=1.0)
    q, k = pca.CovarianceAccumulator().add(query), pca.CovarianceAccumulator().add(key)
    basis = make(q.second, k.covariance)
    assert torch.allclose(basis.left @ basis.right.mT, torch.eye(D).expand(H, D, D), atol=1e-4)
    narrow = pairs(*pca.slice_logits(query, key, basis, k.mean, D))
    assert torch.allclose(narrow, pairs(query, key - k.mean), rtol=1e-4, atol=1e-3)
    assert (basis.left_out()[:, D] == 0).all()


@pytest.mark.parametrize("lost", [float("nan"), float("inf")])
def test_a_head_that_is_not_finite_costs_the_others_nothing(lost):
    moments = [pca.CovarianceAccumulator().add(rows(seed)).second for seed in (1, 2)]
    whole = pca.bilinear_basis(*moments)
    moments[0][1, 0, 0] = lost
    basis = pca.bilinear_basis(*moments)
    for found, stock in ((basis.left, whole.left), (basis.energy, whole.energy)):
        assert found.isfinite().all() and torch.equal(found[0], stock[0])
        assert not torch.equal(found[1], stock[1])


@pytest.mark.parametrize("make", [pca.bilinear_basis, principal_basis])
@pytest.mark.parametrize("rank", [1, 3, 6, 8])
def test_the_bound_is_the_mean_squared_error_over_all_pairs(make, rank):
    query, key = rows(1, mean=0.5), rows(2, mean=1.0)
    q, k = pca.CovarianceAccumulator().add(query), pca.CovarianceAccumulator().add(key)
    basis = make(q.second, k.covariance)
    wrong = pairs(*pca.slice_logits(query, key, basis, k.mean, rank)) - pairs(query, key - k.mean)
    actual = wrong.square().mean((1, 2))
    bound = basis.left_out()[:, rank]
    size = pairs(query, key - k.mean).square().mean((1, 2))
    assert (actual <= bound + 1e-5 * size).all()
    assert torch.allclose(actual, bound, rtol=0.02, atol=float(1e-4 * size.max()))
    assert torch.allclose(pca.logit_rms(basis, rank), (bound / D).sqrt())


def test_with_queries_the_basis_is_never_worse_and_here_much_better():
    query, key = rows(1), rows(2)
    q, k = pca.CovarianceAccumulator().add(query), pca.CovarianceAccumulator().add(key)
    best = pca.bilinear_basis(q.second, k.covariance).left_out()
    plain = principal_basis(q.second, k.covariance).left_out()
    assert (best <= plain * (1 + 1e-3) + 1e-4 * plain[:, :1]).all()
    assert (best[:, 3] < 0.9 * plain[:, 3]).any()


def test_keys_of_low_rank_are_exact_at_it():
    query, key = rows(1), rows(2, rank=3, mean=2.0)
    q, k = pca.CovarianceAccumulator().add(query), pca.CovarianceAccumulator().add(key)
    basis = pca.logit_basis(q, k)
    assert (basis.left_out()[:, 3] < 1e-4 * basis.left_out()[:, 0]).all()
    narrow = pairs(*pca.slice_logits(query, key, basis, k.mean, 3))
    assert torch.allclose(narrow, pairs(query, key - k.mean), rtol=1e-2, atol=1e-2)


def test_rank_rule_by_hand():
    energy = torch.tensor([[4.0, 2.0, 1.0, 0.5], [9.0, 0.1, 0.1, 0.1]])
    basis = pca.Basis(torch.eye(4).expand(2, 4, 4), torch.eye(4).expand(2, 4, 4), energy)
    assert basis.left_out()[0].tolist() == [7.5, 3.5, 1.5, 0.5, 0.0]
    assert basis.rank_for(1.5).tolist() == [2, 1]
    assert basis.rank_for(0.0).tolist() == [4, 4]
    assert basis.rank_for(100.0).tolist() == [1, 1]


def test_the_mean_of_the_keys_does_not_move_softmax():
    query, key = rows(1), rows(2, mean=3.0)
    shifted = key - key.flatten(0, 1).mean(0)
    a, b = (torch.softmax(pairs(query, k) / D**0.5, -1) for k in (key, shifted))
    assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_values_fold_into_the_projections(bias):
    generator = torch.Generator().manual_seed(0)
    inside, out = 10, 6
    tokens = torch.randn(B, N, inside, generator=generator)

    def linear(rows, columns):
        weight = torch.randn(rows, columns, generator=generator)
        return pca.Linear(weight, torch.randn(rows, generator=generator) if bias else None)

    value, output = linear(H * D, inside), linear(out, H * D)
    weights = torch.randn(B, H, N, N, generator=generator).softmax(-1)

    def attend(value, output):
        v = F.linear(tokens, value.weight, value.bias).unflatten(-1, (H, -1))
        mixed = torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2)
        return F.linear(mixed, output.weight, output.bias)

    values = F.linear(tokens, value.weight, value.bias).unflatten(-1, (H, D))
    moments = pca.CovarianceAccumulator().add(values)
    basis = pca.value_basis(output.weight, moments)
    exact = attend(value, output)
    full = attend(*pca.fold_values(value, output, basis, moments.mean, D))
    assert torch.allclose(full, exact, atol=1e-3)
    errors = []
    for rank in (2, 5):
        narrow, wide = pca.fold_values(value, output, basis, moments.mean, rank)
        assert narrow.weight.shape == (H * rank, inside) and wide.weight.shape == (out, H * rank)
        errors.append((attend(narrow, wide) - exact).square().sum(-1).mean())
        # averaging over tokens only shrinks a head's error; heads may add up, at most H-fold
        assert errors[-1] <= H * basis.left_out()[:, rank].sum()
    assert errors[1] < errors[0]


def test_projections_keep_the_dtype_of_the_rows():
    key = rows(2).bfloat16()
    moments = pca.CovarianceAccumulator().add(key)
    assert moments.covariance.dtype == torch.float32
    basis = pca.logit_basis(moments, moments)
    narrow = pca.slice_logits(key, key, basis, moments.mean, 4)
    assert [x.dtype for x in narrow] == [torch.bfloat16] * 2
    assert narrow[0].shape == (B, N, H, 4)


@pytest.mark.parametrize("rank", [0, D + 1])
def test_a_rank_out_of_range_is_refused(rank):
    basis = pca.bilinear_basis(torch.eye(D)[None], torch.eye(D)[None])
    with pytest.raises(ValueError, match=rf"rank is {rank}; accepted: an integer from 1 to {D}"):
        basis.cut(rank)


def test_allowed_error_of_the_form():
    assert pca.allowed_for(0.1, 64) == pytest.approx(0.64)
    with pytest.raises(ValueError, match="rms is -1; accepted: a finite number >= 0"):
        pca.allowed_for(-1, 64)
