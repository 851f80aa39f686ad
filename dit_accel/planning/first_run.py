"""The first run of a pipeline that has no profile: computed whole, and made into one.

From one run there are inner products and nothing else: no errors were grown, and no plan was tried.
How errors grow is taken from the embedded miniature, and what its plans promise has a margin.
"""

from __future__ import annotations

import torch

from dit_accel.planning.plan import SamplerCoefficients
from dit_accel.planning.profile import Profile, ProfileKey
from dit_accel.planning.search import gram_of

# Where nothing was measured: gain and memory as the miniature's (docs/planning.md), over the run.
_GAIN = (20.0, 8.0, 4.0, 2.0, 1.2, 0.9, 0.8, 0.7, 0.7, 1.0)
_MEMORY = 0.6  # of the run


class FirstRunRecorder:
    """Keeps the parts of one run, and makes of them what a profile can be made of."""

    def __init__(self, schedule: SamplerCoefficients, identity: ProfileKey) -> None:
        self.schedule, self.key = schedule, identity
        self.parts: list[list[torch.Tensor]] = [[] for _ in schedule.branch_weights]
        self.start: torch.Tensor | None = None

    def hear(self, part: int, value: torch.Tensor) -> None:
        """A part of the guided prediction at the next step."""
        self.parts[part].append(value.detach().float().cpu().flatten())

    @property
    def whole(self) -> bool:
        """Whether the run got to its end."""
        return all(len(part) == self.schedule.num_steps for part in self.parts)

    def profile(self) -> Profile:
        """Without rungs: plans of it rest on the inner products of this run alone."""
        total = self.schedule.num_steps
        parts = [torch.stack(part) for part in self.parts]
        start = self.start if self.start is not None else torch.zeros_like(parts[0][0])
        rows = torch.cat([*parts, start[None]])
        weights = torch.cat(
            [mix * self.schedule.coefficients for mix in self.schedule.branch_weights]
        )
        final = weights.float() @ rows[:-1] + start
        gram = gram_of(rows, final)
        places = torch.linspace(0, len(_GAIN) - 1, total, dtype=torch.float64)
        low = places.floor().long().clamp_max(len(_GAIN) - 2)
        logs = torch.tensor(_GAIN, dtype=torch.float64).log()
        gain = (logs[low] + (places - low) * (logs[low + 1] - logs[low])).exp()
        return Profile(
            self.key, self.schedule, gram[None], gain, _MEMORY * total, 4, (),
            {"clips": 1, "probes": 0},
        )  # fmt: skip
