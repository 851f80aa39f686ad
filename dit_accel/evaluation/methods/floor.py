"""Rows of the noise floor: the uncached model again, with a change that users do not notice.

In: a pipeline. Out: the same pipeline, with another attention backend or dtype if the row has one.
Knows: a cache whose scores reach these is as close as a second run of the model.
Source: ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from dit_accel.core.families import family_of, transformers_of
from dit_accel.evaluation.methods.row import Method, MethodContext, MethodHandle, Number


@contextmanager
def _rerun(pipe: Any, number: Number, context: MethodContext) -> Iterator[MethodHandle]:
    yield MethodHandle()


@contextmanager
def _other_attention(pipe: Any, number: Number, context: MethodContext) -> Iterator[MethodHandle]:
    with sdpa_kernel(SDPBackend.MATH):
        yield MethodHandle(remarks=("attention by torch's unfused implementation",))


@contextmanager
def _other_dtype(pipe: Any, number: Number, context: MethodContext) -> Iterator[MethodHandle]:
    """Run float32 weights under bfloat16 autocast, and 16-bit weights as float32. Both are undone
    exactly."""
    modules = list(transformers_of(pipe, family_of(pipe)).values())
    dtype = modules[0].dtype
    if dtype == torch.float32:
        with torch.autocast(pipe.device.type, torch.bfloat16):
            yield MethodHandle(remarks=("float32 weights under bfloat16 autocast",))
        return
    for module in modules:
        module.to(torch.float32)
    try:
        yield MethodHandle(remarks=(f"{dtype} weights widened to float32".replace("torch.", ""),))
    finally:
        for module in modules:
            module.to(dtype)


FLOOR_METHODS = (
    Method("rerun", "uncached, the same settings again", _rerun, control=True),
    Method(
        "rerun/attention", "uncached, another attention backend", _other_attention, control=True
    ),
    Method("rerun/dtype", "uncached, the denoiser in another dtype", _other_dtype, control=True),
)
