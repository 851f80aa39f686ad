"""Calls of a tiny pipeline, and what is compared before and after them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import CALL
from torch.utils._python_dispatch import TorchDispatchMode

from dit_accel import EDCW

STEPS = 12

LOOSE = EDCW(threshold=1e9, first=2)


def call(pipe, seed=0, **changes):
    settings = {**CALL, "num_inference_steps": STEPS, **changes}
    return pipe(generator=torch.Generator().manual_seed(seed), **settings).frames


def state_of(pipe):
    """Every instance attribute of every module of the transformers, and their hooks."""
    modules = [m for name in ("transformer", "transformer_2") for m in _modules(pipe, name)]
    return [(sorted(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules]


def _modules(pipe, name):
    part = getattr(pipe, name, None)
    return [] if part is None else list(part.modules())


def offload(pipe: Any, name: str = "transformer") -> None:
    cpu = torch.device("cpu")
    try:
        getattr(pipe, name).enable_group_offload(
            onload_device=cpu,
            offload_device=cpu,
            offload_type="block_level",
            num_blocks_per_group=1,
        )
    except AttributeError as error:  # diffusers 0.35 asks for the accelerator's type
        if torch.accelerator.current_accelerator() is not None:
            raise
        pytest.skip(f"this diffusers offloads groups with an accelerator only: {error}")


class LargestTensor(TorchDispatchMode):
    """While it is active, `largest` is the number of elements of the largest tensor made."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(one, torch.Tensor):
                self.largest = max(self.largest, one.numel())
        return out
