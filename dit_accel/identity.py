"""Whose profile it is: a pipeline told by its classes, configuration and some of its weights."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from dit_accel.families import family_of, transformers_of
from dit_accel.profile import Identity

_SAMPLED = 40  # every so many tensors of the weights are looked at, the first values of each


def identify(
    pipe: Any, *, steps: int = 0, guidance: float = 0.0, height: int = 0, width: int = 0,
    frames: int = 0, dtype: str = "", parts: int = 1,
) -> Identity:  # fmt: skip
    """What a profile of this pipeline, and of such clips, is of."""
    family = family_of(pipe)
    modules = transformers_of(pipe, family)
    digest = hashlib.sha256()
    for name, module in modules.items():
        digest.update(f"{name} {_text(module.config)}".encode())
        for key, weight in sorted(module.state_dict().items())[::_SAMPLED]:
            some = [float(f"{v:.2g}") for v in weight.flatten()[:16].double().cpu().tolist()]
            digest.update(f"{key} {some}".encode())
    sampler = hashlib.sha256(_text(pipe.scheduler.config).encode())
    return Identity(
        pipeline=family.pipelines[0],
        transformer=type(next(iter(modules.values()))).__name__,
        scheduler=type(pipe.scheduler).__name__,
        weights=digest.hexdigest()[:16],
        sampler=sampler.hexdigest()[:16],
        parts=parts, steps=steps, guidance=guidance, height=height, width=width, frames=frames,
        dtype=dtype,
    )  # fmt: skip


def _text(config: Any) -> str:
    """A configuration less what differs from version to version."""
    kept = {k: v for k, v in dict(config).items() if not k.startswith("_") and v is not None}
    return json.dumps(kept, sort_keys=True, default=str)
