from types import SimpleNamespace

import pytest
import torch

from dit_accel.core import places
from dit_accel.core.places import Positions, positions

SCHEDULE = torch.tensor([1000.0, 960.0, 960.0, 500.0, 20.0])


@pytest.mark.parametrize("step", range(5))
def test_a_view_of_the_schedule_is_located_by_its_place_even_when_values_repeat(step):
    assert positions(SCHEDULE[step].expand(2), SCHEDULE) == [step]


@pytest.mark.parametrize(("value", "step"), [(1000.0, 0), (500.0, 3), (20.0, 4)])
def test_a_copy_is_located_by_its_value(value, step):
    assert positions(torch.tensor([value, value]), SCHEDULE) == [step]


def test_a_rounded_timestep_may_be_of_several_steps():
    schedule = torch.tensor([1000.0, 997.1, 994.1, 500.0])  # bfloat16 knows 996, then 1000
    assert positions(torch.tensor([996.0], dtype=torch.bfloat16), schedule) == [1, 2]


def test_frames_that_are_given_have_timestep_zero():
    assert positions(torch.tensor([[0.0, 500.0, 500.0]]), SCHEDULE) == [3]


def test_a_timestep_of_another_schedule_is_refused():
    with pytest.raises(ValueError, match=r"timestep 731 is not one of the scheduler's 5 timesteps"):
        positions(torch.tensor([731.0]), SCHEDULE)


def test_a_timestep_that_forwards_share_is_located_once(monkeypatch):
    """bfloat16 timesteps are copies: each is a host sync. Another tensor, one that was
    written to, and another schedule are read again."""
    asked = []
    monkeypatch.setattr(places, "positions", lambda t, ts: asked.append(t) or positions(t, ts))
    scheduler, here = SimpleNamespace(timesteps=SCHEDULE), Positions()
    shared = torch.tensor([500.0])
    assert [here.of(shared, scheduler) for _ in range(3)] == [[3]] * 3 and len(asked) == 1
    assert here.of(torch.tensor([20.0]), scheduler) == [4] and len(asked) == 2
    assert here.of(shared, scheduler) == [3] and len(asked) == 3
    shared.fill_(1000.0)
    assert here.of(shared, scheduler) == [0] and len(asked) == 4
    scheduler.timesteps = torch.tensor([1200.0, 1000.0])
    assert here.of(shared, scheduler) == [1] and len(asked) == 5
