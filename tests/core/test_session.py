from types import SimpleNamespace

import pytest
import torch

from dit_accel.core import session
from dit_accel.core.patching import Patches
from dit_accel.core.session import Interceptor, Session, positions

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
    monkeypatch.setattr(session, "positions", lambda t, ts: asked.append(t) or positions(t, ts))
    pipe = SimpleNamespace(scheduler=SimpleNamespace(timesteps=SCHEDULE))
    here = Session(pipe, {})
    shared = torch.tensor([500.0])
    assert [here._positions(shared) for _ in range(3)] == [[3]] * 3 and len(asked) == 1
    assert here._positions(torch.tensor([20.0])) == [4] and len(asked) == 2
    assert here._positions(shared) == [3] and len(asked) == 3
    shared.fill_(1000.0)
    assert here._positions(shared) == [0] and len(asked) == 4
    pipe.scheduler.timesteps = torch.tensor([1200.0, 1000.0])
    assert here._positions(shared) == [1] and len(asked) == 5


class Counts(Interceptor):
    """Notes the events of a run, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def run_begins(self, num_steps):
        self.events.append(f"run of {num_steps}")

    def step_begins(self, step):
        self.events.append(f"step {step}")

    def around(self, call, forward):
        self.events.append("forward")
        return forward(call)

    def forward_ends(self, transformer):
        self.events.append(f"{transformer} ends")


def test_interceptors_get_runs_steps_and_the_last_forwards():
    """Two steps of two forwards each; the timer needs the ends of the last step's only."""

    class Denoiser(torch.nn.Module):
        def forward(self, hidden_states, timestep, encoder_hidden_states):
            return hidden_states

    schedule = torch.tensor([900.0, 100.0])
    pipe = SimpleNamespace(scheduler=SimpleNamespace(timesteps=schedule))
    denoiser, counts, patches = Denoiser(), Counts(), Patches()
    here = Session(pipe, {"transformer": denoiser})
    here.interceptors = [counts]
    here.install(patches)
    texts = torch.zeros(1), torch.ones(1)
    for time in schedule:
        for text in texts:
            denoiser(hidden_states=torch.ones(1), timestep=time[None], encoder_hidden_states=text)
    patches.undo()
    assert counts.events == [
        "run of 2", "step 0", "forward", "forward",
        "step 1", "forward", "transformer ends", "forward", "transformer ends",
    ]  # fmt: skip
