"""Whose profile it is: a pipeline told by its weights, and by what its scheduler does.

Weights are told by their names, shapes and some of their values as bfloat16 has them, so that a
pipeline is the same in every dtype; a scheduler by the timesteps and shares of a short run, so that
it is the same in every version of diffusers that does the same.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from dit_accel.families import family_of, transformers_of
from dit_accel.profile import Identity
from dit_accel.sampling import planned_schedule

_SAMPLED = 40  # every so many tensors of the weights are looked at, the first values of each
_STEPS = 10  # of the short run


def identify(
    pipe: Any, *, steps: int = 0, guidance: float = 0.0, height: int = 0, width: int = 0,
    frames: int = 0, dtype: str = "", parts: int = 1,
) -> Identity:  # fmt: skip
    """What a profile of this pipeline, and of such clips, is of."""
    family = family_of(pipe)
    modules = transformers_of(pipe, family)
    digest = hashlib.sha256()
    for name, module in modules.items():
        state = sorted(module.state_dict().items())
        digest.update(f"{name} {[(key, tuple(weight.shape)) for key, weight in state]}".encode())
        for _, weight in state[::_SAMPLED]:
            some = weight.flatten()[:16].to(torch.bfloat16).double().cpu().tolist()
            digest.update(str([f"{value:.2g}" for value in some]).encode())
    sampler = hashlib.sha256(_behaviour(pipe.scheduler).encode())
    return Identity(
        pipeline=family.pipelines[0],
        transformer=type(next(iter(modules.values()))).__name__,
        scheduler=type(pipe.scheduler).__name__,
        weights=digest.hexdigest()[:16],
        sampler=sampler.hexdigest()[:16],
        parts=parts, steps=steps, guidance=guidance, height=height, width=width, frames=frames,
        dtype=dtype,
    )  # fmt: skip


def _behaviour(scheduler: Any) -> str:
    """What a scheduler does in a short run; of one that must be told more, some of its settings."""
    try:
        short = planned_schedule(scheduler, _STEPS, (1.0,))
    except ValueError:
        names = ("shift", "use_dynamic_shifting", "num_train_timesteps", "prediction_type")
        return str([(name, scheduler.config.get(name)) for name in names])
    times, shares = short.times.tolist(), short.shares.tolist()
    return str([f"{value:.3g}" for value in (*times, *shares)])
