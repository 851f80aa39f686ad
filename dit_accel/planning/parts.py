"""Tells whether the weights or the scheduler of a pipeline changed since the last run.

In: a pipeline. Out: its `Parts`, which are compared. A few numbers of every matrix are read, in one
host sync, and the settings of LoRA layers: some milliseconds for a model of true size. So fused and
scaled LoRAs are noticed, and weights that only moved to another device are the same.
Knows modules, peft's layers by their attributes, and schedulers; no profile.
Source: ours; research/LOG.md has what it takes.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch

from dit_accel.core.families import family_of, transformers_of
from dit_accel.core.patching import uncompiled, weights_of

_SAMPLED = 4  # numbers of each matrix
_LORA = ("scaling", "active_adapters", "disable_adapters", "merged_adapters")


@dataclass(frozen=True)
class Parts:
    """What plans depend on, in a form that can be compared.

    Args:
        weights: of the transformers, as they are stored, with their LoRAs.
        dtype: of the transformers.
        scheduler: its class and settings.
    """

    weights: str
    dtype: str
    scheduler: str

    def changed_since(self, before: Parts) -> tuple[str, ...]:
        """What is other than before, in words."""
        return tuple(
            name
            for name in ("weights", "dtype", "scheduler")
            if getattr(self, name) != getattr(before, name)
        )


def parts_of(pipe: Any) -> Parts:
    """The parts that a pipeline has now."""
    weights, dtypes = hashlib.blake2b(digest_size=8), []
    for name, module in transformers_of(pipe, family_of(pipe)).items():
        module = uncompiled(module)
        dtypes.append(str(module.dtype))
        weights.update(f"{name} {_loras(module)}".encode())
        _add_matrices(module, weights)
    scale = (getattr(pipe, "attention_kwargs", None) or {}).get("scale")  # of LoRAs, in this call
    weights.update(str(scale).encode())
    return Parts(weights.hexdigest(), ", ".join(dtypes), _scheduler(pipe.scheduler))


def _loras(module: torch.nn.Module) -> list[Any]:
    found = (sub for sub in module.modules() if isinstance(vars(sub).get("scaling"), dict))
    return [[str(getattr(sub, name, None)) for name in _LORA] for sub in found]


def _add_matrices(module: torch.nn.Module, weights: Any) -> None:
    """Enter the names of all matrices, and the first numbers of each."""
    groups: dict[Any, list[torch.Tensor]] = defaultdict(list)
    names = []
    for name, tensor in weights_of(module):
        if tensor.ndim < 2 or tensor.device.type == "meta":
            continue
        names.append(name)
        try:
            row = tensor.detach()[(0,) * (tensor.ndim - 1)][:_SAMPLED]
            groups[tensor.device, tensor.dtype].append(row)
        except (
            RuntimeError,
            NotImplementedError,
            TypeError,
        ):  # some quantized tensors have no rows
            names.append(f"{id(tensor)}")
    weights.update(" ".join(names).encode())
    for rows in groups.values():
        weights.update(torch.cat(rows).cpu().view(torch.uint8).numpy().tobytes())


def _scheduler(scheduler: Any) -> str:
    settings = sorted((name, str(value)) for name, value in scheduler.config.items())
    return f"{type(scheduler).__name__} {getattr(scheduler, 'shift', None)} {settings}"
