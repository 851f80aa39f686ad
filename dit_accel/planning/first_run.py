"""Makes a profile of the first run of a pipeline that has none.

In: the components of one fully computed run, and the noise. Out: a `Profile` without candidates.
One run gives inner products and nothing else: no errors were probed, and no plan was carried
out. So error gain and memory are those of the embedded miniature, and intervals are wide.
Knows tensors of one run; no pipeline.
Source: ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dit_accel.planning.plan import SamplerCoefficients
from dit_accel.planning.profile import Profile
from dit_accel.planning.profile_key import ProfileKey
from dit_accel.planning.search import gram_of

_GAIN = (20.0, 8.0, 4.0, 2.0, 1.2, 0.9, 0.8, 0.7, 0.7, 1.0)  # of the miniature, over the run
_MEMORY = 0.6  # of the run
_DEPTH = 4


def first_profile(
    sampler: SamplerCoefficients, key: ProfileKey, components: Sequence[Sequence[torch.Tensor]],
    start: torch.Tensor | None,
) -> Profile:  # fmt: skip
    """The profile of one run.

    Args:
        components: by component and step, `(N,)` float32 on the CPU.
        start: `(N,)`, the noise that the run started from; None: it has another shape.
    """
    n = sampler.num_steps
    stacked = [torch.stack([*values]) for values in components]
    start = start if start is not None else torch.zeros_like(stacked[0][0])
    rows = torch.cat([*stacked, start[None]])
    weights = torch.cat([w * sampler.coefficients for w in sampler.branch_weights])
    final = weights.float() @ rows[:-1] + start
    gram = gram_of(rows, final)
    places = torch.linspace(0, len(_GAIN) - 1, n, dtype=torch.float64)
    low = places.floor().long().clamp_max(len(_GAIN) - 2)
    logs = torch.tensor(_GAIN, dtype=torch.float64).log()
    gain = (logs[low] + (places - low) * (logs[low + 1] - logs[low])).exp()
    return Profile(
        key, sampler, gram[None], gain, _MEMORY * n, _DEPTH, (),
        {"clips": 1, "probes": 0},
    )  # fmt: skip
