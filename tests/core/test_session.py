from types import SimpleNamespace

import torch

from dit_accel.core.interceptor import Interceptor
from dit_accel.core.patching import Patches
from dit_accel.core.session import Session

SCHEDULE = torch.tensor([1000.0, 960.0, 960.0, 500.0, 20.0])


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
