import pytest
import torch

from dit_accel.session import position

SCHEDULE = torch.tensor([1000.0, 960.0, 960.0, 500.0, 20.0])


@pytest.mark.parametrize("step", range(5))
def test_a_view_of_the_schedule_is_located_by_its_place_even_when_values_repeat(step):
    assert position(SCHEDULE[step].expand(2), SCHEDULE) == step


@pytest.mark.parametrize(("value", "step"), [(1000.0, 0), (500.0, 3), (20.0, 4)])
def test_a_copy_is_located_by_its_value(value, step):
    assert position(torch.tensor([value, value]), SCHEDULE) == step


def test_frames_that_are_given_have_timestep_zero():
    assert position(torch.tensor([[0.0, 500.0, 500.0]]), SCHEDULE) == 3


def test_a_timestep_of_another_schedule_is_refused():
    with pytest.raises(
        ValueError, match=r"timestep 731.0 is not one of the scheduler's 5 timesteps"
    ):
        position(torch.tensor([731.0]), SCHEDULE)
