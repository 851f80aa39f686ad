"""The interface of objects that wrap every forward of a transformer, and the data they get.

In: what `core/session.py` finds out about a run, and a forward's arguments. Out: `RunInfo`,
`ForwardCall`, and `Interceptor`, the base class for each technique. It knows where a forward has
its latents, its timestep and its text. It does not know the current step. Source: ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, eq=False)
class RunInfo:
    """What is known about a run when its first forward is called. None: unknown, or absent.

    The latents are `(B, C, F, h, w)` in most families, the text embedding is `(B, L, C)`.
    """

    num_steps: int | None
    guidance: float | None = 1.0  # scale of classifier-free guidance; 1: no guidance
    latents: torch.Tensor | None = None
    text: torch.Tensor | None = None
    begin: int = 0  # position of the first step in the scheduler's timesteps
    second: tuple[int, float | None] | None = None  # second expert: its first step and guidance
    groups: tuple[Any, ...] = ()  # process groups whose ranks compute the run together


@dataclass(frozen=True, eq=False)
class ForwardCall:
    """One call of a transformer's forward: the transformer's name and the arguments.

    `names` has the names of the forward's parameters, in order.
    """

    transformer: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    names: tuple[str, ...] = ("hidden_states", "timestep", "encoder_hidden_states")

    def _argument(self, name: str) -> Any:
        return dict(zip(self.names, self.args, strict=False)).get(name, self.kwargs.get(name))

    @property
    def latents(self) -> Any:
        """The latents: `hidden_states`, else the first positional argument; None: neither."""
        found = self._argument("hidden_states")
        return self.args[0] if found is None and self.args else found

    @property
    def timestep(self) -> Any:
        """The timestep; None: the forward has no argument of that name."""
        return self._argument("timestep")

    @property
    def text(self) -> Any:
        return self._argument("encoder_hidden_states")


Forward = Callable[[ForwardCall], Any]


class Interceptor:
    """Wraps every forward of a session. By default no method changes anything."""

    def run_begins(self, num_steps: int | None) -> None:
        """A run begins: forget the last one."""

    def run_follows(self) -> None:
        """Another run is about to begin. The session still has the state of the last one."""

    def step_begins(self, step: int) -> None:
        """The first forward of a step is about to be called."""

    def around(self, call: ForwardCall, forward: Forward) -> Any:
        """The output of a call: that of `forward(call)`, or another one in its place."""
        return forward(call)

    def forward_ends(self, transformer: str) -> None:
        """A forward of the last step has returned. If the number of steps is unknown, this is
        called at every step."""

    def run_ends(self, steps: int) -> None:
        """A run is over after `steps` steps. Not called for a run that was interrupted."""

    def changes_denoiser(self, step: int) -> bool:
        """Whether this object changes what the denoiser computes from this step on. The step has to
        be computed then."""
        return False
