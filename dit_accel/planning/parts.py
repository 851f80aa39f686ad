"""Compares the weights and the scheduler of a pipeline with those of the last run.

In: a pipeline. Out: its `Parts`, which can be compared. They come from a few numbers of every
matrix, read in one host sync, and from the settings of LoRA layers. This needs some milliseconds
for a full-size model. It notices fused and scaled LoRAs. Weights that only moved to another device
count as equal.
Knows modules, peft's layers by their attributes, and schedulers; no profile.
Source: ours; research/LOG.md has the measured times.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch

from dit_accel.core.compiling import uncompiled
from dit_accel.core.families import family_of, transformers_of
from dit_accel.core.private_names import stored

_SAMPLED = 4  # numbers that are read of each matrix
_LORA = ("scaling", "active_adapters", "disable_adapters", "merged_adapters")


@dataclass(frozen=True)
class Parts:
    """The parts of a pipeline that plans depend on, in a form that can be compared.

    Args:
        weights: digest of the transformers' weights as they are stored, with their LoRAs.
        dtype: dtypes of the transformers' matrices as they are stored.
        scheduler: class and settings of the scheduler.
        lasting: digest of the weights that is the same in another process: it leaves out matrices
            that cannot be read.
    """

    weights: str
    dtype: str
    scheduler: str
    lasting: str = ""

    def changed_since(self, before: Parts) -> tuple[str, ...]:
        """The names of the parts that changed: weights, dtype or scheduler."""
        return tuple(
            name
            for name in ("weights", "dtype", "scheduler")
            if getattr(self, name) != getattr(before, name)
        )


def parts_of(pipe: Any) -> Parts:
    """The present parts of a pipeline."""
    weights, dtypes = hashlib.blake2b(digest_size=8), set[str]()
    unread: list[int] = []
    scale = (getattr(pipe, "attention_kwargs", None) or {}).get("scale", 1.0)  # of this call's LoRA
    for name, module in transformers_of(pipe, family_of(pipe)).items():
        rows, loras, of_module = _read(uncompiled(module))
        unread += of_module
        weights.update(f"{name} {[len(some) for some in rows.values()]}".encode())
        weights.update(f"{loras} {scale if loras else 1.0}".encode())
        for (_, dtype), some in rows.items():
            dtypes.add(str(dtype))
            weights.update(torch.cat(some).cpu().view(torch.uint8).numpy().tobytes())
    lasting = weights.hexdigest()
    weights.update(str(unread).encode())
    types = ", ".join(sorted(dtypes))
    return Parts(weights.hexdigest(), types, _scheduler(pipe.scheduler), lasting)


Rows = dict[tuple[torch.device, torch.dtype], list[torch.Tensor]]


@torch.no_grad()
def _read(module: torch.nn.Module) -> tuple[Rows, list[Any], list[int]]:
    """The first numbers of every matrix, the settings of all LoRAs, and ids of unreadable matrices.

    An id identifies a matrix that cannot be read, but in this process only. The walk does not build
    the paths of modules, because `named_parameters` is ten times slower. It visits modules in the
    order of their names: a library that replaces a module for a moment (cache-dit does so in each
    forward) moves it to the end of its parent's modules.
    """
    rows: Rows = {}
    loras: list[Any] = []
    unread: list[int] = []
    waiting = [module]
    while waiting:
        owner = waiting.pop()
        waiting.extend(one for _, one in sorted(owner._modules.items()) if one is not None)
        if isinstance(vars(owner).get("scaling"), dict):
            loras.append([str(getattr(owner, name, None)) for name in _LORA])
        for name, tensor in owner._parameters.items():
            if tensor is None or tensor.ndim < 2:
                continue
            row = _row(stored(owner, name, tensor))
            if row is None:
                unread.append(id(tensor))
            else:
                rows.setdefault((row.device, row.dtype), []).append(row)
    return rows, loras, unread


def _row(matrix: torch.Tensor) -> torch.Tensor | None:
    """The first numbers of a matrix; None if they cannot be read, as in some quantized matrices."""
    if matrix.device.type == "meta":
        return None
    try:
        return matrix.as_strided((min(_SAMPLED, matrix.shape[-1]),), (matrix.stride(-1),))
    except (RuntimeError, NotImplementedError, TypeError):
        return None


def _scheduler(scheduler: Any) -> str:
    settings = sorted((name, str(value)) for name, value in scheduler.config.items())
    return f"{type(scheduler).__name__} {getattr(scheduler, 'shift', None)} {settings}"
