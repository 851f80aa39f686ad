"""Makes a profile of the first run of a pipeline that has none.

In: the components of one fully computed run, and the noise. Out: a `Profile` without candidates.
One run gives inner products and nothing else: no errors were probed, and no plan was carried
out. So error gain and memory are those of the embedded miniature, and intervals are wide.
Knows tensors of one run; no pipeline.
Source: ours.
"""

from __future__ import annotations

import torch

from dit_accel.planning.plan import SamplerCoefficients
from dit_accel.planning.profile import Profile
from dit_accel.planning.profile_key import ProfileKey
from dit_accel.planning.search import gram_of

_GAIN = (20.0, 8.0, 4.0, 2.0, 1.2, 0.9, 0.8, 0.7, 0.7, 1.0)  # of the miniature, over the run
_MEMORY = 0.6  # of the run
_DEPTH = 4


class FirstRunRecorder:
    """Stores the components of one run, on the CPU in float32.

    Attributes:
        start: the noise that the run started from; None: it has another shape than predictions.
    """

    def __init__(self, sampler: SamplerCoefficients, key: ProfileKey) -> None:
        self.sampler, self.key = sampler, key
        self.components: list[list[torch.Tensor]] = [[] for _ in sampler.branch_weights]
        self.start: torch.Tensor | None = None

    def add(self, component: int, value: torch.Tensor) -> None:
        """A component of the guided prediction at the next step."""
        self.components[component].append(value.detach().float().cpu().flatten())

    @property
    def is_complete(self) -> bool:
        """Whether all steps of the run were recorded."""
        return all(len(values) == self.sampler.num_steps for values in self.components)

    def profile(self) -> Profile:
        """Of the run."""
        n = self.sampler.num_steps
        components = [torch.stack(values) for values in self.components]
        start = self.start if self.start is not None else torch.zeros_like(components[0][0])
        rows = torch.cat([*components, start[None]])
        weights = torch.cat([w * self.sampler.coefficients for w in self.sampler.branch_weights])
        final = weights.float() @ rows[:-1] + start
        gram = gram_of(rows, final)
        places = torch.linspace(0, len(_GAIN) - 1, n, dtype=torch.float64)
        low = places.floor().long().clamp_max(len(_GAIN) - 2)
        logs = torch.tensor(_GAIN, dtype=torch.float64).log()
        gain = (logs[low] + (places - low) * (logs[low + 1] - logs[low])).exp()
        return Profile(
            self.key, self.sampler, gram[None], gain, _MEMORY * n, _DEPTH, (),
            {"clips": 1, "probes": 0},
        )  # fmt: skip
