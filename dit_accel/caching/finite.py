"""Finds out after a run whether its latents were finite.

Goes in: the latents of each step, and the last prediction. Comes out: a note where a value was not
finite. One sum a step stays on the device, and all are read at once when the report is asked for:
while the run goes on there is no host sync. It knows no engine, and changes nothing. Ours; there is
no source.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from dit_accel.core.session import Forward, ForwardCall, Interceptor, Session


class FiniteCheck(Interceptor):
    """Watches the latents of a run. It stands outside of what caches: it sees what that gave."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._sums: list[torch.Tensor] = []  # of the latents, one a step, on the device
        self._last: torch.Tensor | None = None  # of the last step's predictions
        self._read: list[float] = []

    def run_begins(self, num_steps: int | None) -> None:
        self._sums, self._last, self._read = [], None, []

    def step_begins(self, step: int) -> None:
        self._sums.append(_sum(self.session.latents))

    def around(self, call: ForwardCall, forward: Forward) -> Any:
        output = forward(call)
        if self.session.step + 1 == self.session.num_steps:
            found = _sum(output[0])
            self._last = found if self._last is None else self._last + found
        return output

    def notes(self) -> tuple[str, ...]:
        """Where a value was not finite; read from the device once a run."""
        sums = [*self._sums, *([] if self._last is None else [self._last])]
        if len(sums) != len(self._read):
            self._read = torch.stack(sums).tolist()
        steps = self._read[: len(self._sums)]
        broken = next((step for step, total in enumerate(steps) if not math.isfinite(total)), None)
        if broken is not None:
            return (f"The latents were not finite from step {broken} on: the clip is broken.",)
        if not all(map(math.isfinite, self._read)):
            return ("The last step's prediction was not finite: the clip is broken.",)
        return ()


def _sum(value: torch.Tensor) -> torch.Tensor:
    """0-dimensional float32, finite where all of the value is."""
    return value.detach().sum(dtype=torch.float32)
