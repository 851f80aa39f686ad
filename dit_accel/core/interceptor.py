"""What may stand around every forward of a transformer, and what it knows of run and call.

In: a run's size and a forward's arguments, as `core/session.py` finds them. Out: `RunInfo`,
`ForwardCall`, and `Interceptor`, which each technique makes its own of. It knows where a forward
has its latents, its timestep and its text, and nothing of where the run is. Source: ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, eq=False)
class RunInfo:
    """What is known of a run when its first forward is called: None is unknown or not there.

    Latents are `(B, C, F, h, w)` in most families, the text embedding `(B, L, C)`.
    """

    num_steps: int | None
    guidance: float | None = 1.0  # scale of classifier-free guidance; 1: none
    latents: torch.Tensor | None = None
    text: torch.Tensor | None = None
    begin: int = 0  # position of the first step in the scheduler's timesteps
    second: tuple[int, float | None] | None = None  # expert's first step, and guidance from there
    groups: tuple[Any, ...] = ()  # process groups whose ranks compute it together


@dataclass(frozen=True, eq=False)
class ForwardCall:
    """One call of a transformer's forward: the transformer's name, and the arguments.

    `names` are the forward's parameters, in order.
    """

    transformer: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    names: tuple[str, ...] = ("hidden_states", "timestep", "encoder_hidden_states")

    def _argument(self, name: str) -> Any:
        return dict(zip(self.names, self.args, strict=False)).get(name, self.kwargs.get(name))

    @property
    def latents(self) -> Any:
        """None: they are no argument of their own."""
        found = self._argument("hidden_states")
        return self.args[0] if found is None and self.args else found

    @property
    def timestep(self) -> Any:
        """None: it is not where most transformers have it."""
        return self._argument("timestep")

    @property
    def text(self) -> Any:
        return self._argument("encoder_hidden_states")


Forward = Callable[[ForwardCall], Any]


class Interceptor:
    """Stands around every forward of a session. Every method changes nothing by default."""

    def run_begins(self, num_steps: int | None) -> None:
        """A run begins: forget the last one."""

    def run_follows(self) -> None:
        """Another run is about to begin: the session still shows the last one."""

    def step_begins(self, step: int) -> None:
        """The first forward of a step is about to be called."""

    def around(self, call: ForwardCall, forward: Forward) -> Any:
        """The output of a call: of `forward(call)`, or instead of it."""
        return forward(call)

    def forward_ends(self, transformer: str) -> None:
        """A forward of the last step has returned; of any step where their number is unknown."""

    def run_ends(self, steps: int) -> None:
        """A run is over after so many steps; not one that was interrupted."""

    def changes_denoiser(self, step: int) -> bool:
        """Whether the denoiser acts otherwise from this step on, so that it has to be computed."""
        return False
