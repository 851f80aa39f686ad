"""The record of a first run: inner products of its predictions."""

from __future__ import annotations

import math
import weakref

import numpy as np
import torch

from dit_accel.planning.error_model import gram_of
from dit_accel.planning.first_run import RunRecord
from dit_accel.planning.plan import SamplerCoefficients

STEPS = 8


def sampler_of(weights: tuple[float, ...]) -> SamplerCoefficients:
    return SamplerCoefficients(
        torch.linspace(-0.2, -0.05, STEPS, dtype=torch.float64),
        torch.linspace(1000, 100, STEPS, dtype=torch.float64), weights,
    )  # fmt: skip


def test_worked_example() -> None:
    """One component, two numbers a row: predictions (1, 0) and (0, 2), noise (3, 3).

    The final latents are 3 - 1 and 3 - 2, with the coefficients -1: (2, 1), of squared norm 5.
    """
    sampler = SamplerCoefficients(
        torch.tensor([-1.0, -1.0], dtype=torch.float64), torch.tensor([1000.0, 500.0]).double(),
        (1.0,),
    )  # fmt: skip
    record = RunRecord(2 * STEPS + 1)
    record.add_noise(torch.tensor([3.0, 3.0]))
    for row in ([1.0, 0.0], [0.0, 2.0]):
        record.add(0, torch.tensor(row))
    gram = torch.tensor([[1.0, 0.0, 3.0], [0.0, 4.0, 6.0], [3.0, 6.0, 18.0]]).double() / 5
    torch.testing.assert_close(record.gram(sampler), gram)


def test_equals_the_gram_of_stacked_rows() -> None:
    sampler, draw = sampler_of((1.0, -3.0)), torch.Generator().manual_seed(0)
    rows = torch.randn(2 * STEPS + 1, 3, 50_001, generator=draw)
    record = RunRecord(2 * STEPS + 1)
    record.add_noise(rows[-1])
    for step in range(STEPS):
        assert record.count(1) == step
        record.add(0, rows[step])
        record.add(1, rows[STEPS + step])
    assert record.count(0) == STEPS and record.is_uniform
    flat = rows.flatten(1)
    weights = torch.cat([w * sampler.coefficients for w in sampler.branch_weights])
    final = (weights.float() @ flat[:-1]) + flat[-1]
    torch.testing.assert_close(record.gram(sampler), gram_of(flat, final), rtol=1e-5, atol=1e-7)


def test_bfloat16_is_added_up_in_float64() -> None:
    sampler, draw = sampler_of((1.0,)), torch.Generator().manual_seed(0)
    rows = torch.randn(STEPS, 400_000, generator=draw).bfloat16()
    record = RunRecord(2 * STEPS + 1)
    for row in rows:
        record.add(0, row)
    gram, exact = record.gram(sampler)[:STEPS, :STEPS], rows.double() @ rows.double().T
    torch.testing.assert_close(gram / gram[0, 0], exact / exact[0, 0], rtol=1e-12, atol=1e-12)


def test_without_noise_its_row_is_zero() -> None:
    record = RunRecord(STEPS + 1)
    for step in range(STEPS):
        record.add(0, torch.full((4,), 1.0 + step))
    gram = record.gram(sampler_of((1.0,)))
    assert not gram[-1].any() and gram[:-1, :-1].all()


def test_a_row_of_another_size_is_left_out_and_said() -> None:
    record = RunRecord(STEPS + 1)
    for step in range(STEPS):
        record.add(0, torch.ones(4 if step < 5 else 6))
    assert record.count(0) == 5 and not record.is_uniform


def test_components_that_the_sampler_has_not_are_left_out() -> None:
    sampler, record = sampler_of((1.0,)), RunRecord(2 * STEPS + 1)
    for step in range(STEPS):
        record.add(0, torch.full((4,), 1.0 + step))
        record.add(1, torch.full((4,), -5.0))
    alone = RunRecord(STEPS + 1)
    for step in range(STEPS):
        alone.add(0, torch.full((4,), 1.0 + step))
    torch.testing.assert_close(record.gram(sampler), alone.gram(sampler))


def test_more_rows_than_expected_are_left_out_and_said() -> None:
    record = RunRecord(STEPS + 1)
    for step in range(STEPS):
        for _ in range(2):
            record.add(0, torch.full((4,), 1.0 + step))
    assert record.count(0) == STEPS + 1 and not record.is_uniform


def test_a_row_that_is_not_finite_is_said() -> None:
    record = RunRecord(STEPS + 1)
    record.add(0, torch.ones(4))
    assert record.is_finite
    record.add(0, torch.tensor([1.0, math.nan, 0.0, 0.0]))
    assert not record.is_finite


def test_closed_it_holds_no_row_and_has_the_same_gram() -> None:
    sampler, record = sampler_of((1.0,)), RunRecord(STEPS + 1)
    rows = [np.full(4, 1.0 + step, np.float32) for step in range(STEPS)]
    alive = [weakref.ref(row) for row in rows]  # a tensor's memory holds its array
    for row in rows:
        record.add(0, torch.from_numpy(row))
    before = record.gram(sampler)
    del rows, row
    assert all(one() is not None for one in alive)
    record.close()
    assert all(one() is None for one in alive)
    assert torch.equal(record.gram(sampler), before) and record.count(0) == STEPS
    record.add(0, torch.ones(4))
    assert not record.is_uniform and record.count(0) == STEPS
