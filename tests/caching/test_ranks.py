"""Ranks: what several processes measured or decided becomes one."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
from rank_runs import on_ranks

from dit_accel.caching.ranks import Ranks

CPU = torch.device("cpu")


def test_worked_example():
    """Rank 0 measured a change of 1 in 4, rank 1 one of 5 in 4: together 6 in 8, on both."""

    def work(rank):
        sums = torch.tensor([[1.0, 4.0], [5.0, 4.0]][rank])
        change, size = Ranks([dist.group.WORLD]).mean(sums).tolist()
        return change / size

    assert on_ranks(work) == [0.75, 0.75]


def test_one_process_gets_its_own_tensor_and_value():
    numbers, decided = torch.ones(2), object()
    assert Ranks().mean(numbers) is numbers
    assert Ranks().of_first(lambda: decided, CPU) is decided
    assert not Ranks()


def test_equal_numbers_stay_equal_to_the_last_bit():
    """Also of three ranks, whose sum in float32 would be rounded."""

    def work(rank):
        numbers = torch.rand(1000, generator=torch.Generator().manual_seed(0))
        return torch.equal(Ranks([dist.group.WORLD]).mean(numbers), numbers)

    assert on_ranks(work, 3) == [True] * 3


def test_what_is_not_finite_on_one_rank_is_so_on_all():
    def work(rank):
        return Ranks([dist.group.WORLD]).mean(torch.tensor([math.nan if rank else 1.0])).item()

    assert all(math.isnan(one) for one in on_ranks(work))


def test_the_first_rank_of_crossed_groups_decides():
    """Four ranks in rows (0, 1), (2, 3) and columns (0, 2), (1, 3): all get what rank 0 says."""

    def work(rank):
        rows = [dist.new_group([0, 1]), dist.new_group([2, 3])]
        columns = [dist.new_group([0, 2]), dist.new_group([1, 3])]
        ranks = Ranks([rows[rank // 2], columns[rank % 2]])
        decided = ranks.of_first(lambda: f"rank {rank} decided", CPU)
        return decided, ranks.mean(torch.tensor([float(rank)])).item()

    assert on_ranks(work, 4) == [("rank 0 decided", 1.5)] * 4


def test_an_error_of_the_first_rank_is_raised_on_all():
    def work(rank):
        def decide():
            raise ValueError(f"quality is {rank}")

        with pytest.raises(ValueError, match="quality is 0"):
            Ranks([dist.group.WORLD]).of_first(decide, CPU)

    on_ranks(work)
