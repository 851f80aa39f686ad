"""Denoisers of real checkpoints' classes, a few numbers wide, as cases of the benchmark."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from dit_accel.core.generation import call_arguments
from dit_accel.evaluation import speed
from dit_accel.models.checkpoints import DENOISERS, Shape

TINY: dict[str, dict[str, int]] = {
    "hunyuan-video": {"num_attention_heads": 1, "num_layers": 1, "num_single_layers": 2},
    "ltx-video": {"num_attention_heads": 1, "cross_attention_dim": 64, "num_layers": 3},
}

STEPS = 6


def trial(name: str, **changes: Any) -> speed.BenchmarkCase:
    row = DENOISERS[name]
    tiny = TINY.get(name, {"num_attention_heads": 1, "num_layers": 3})
    row = dataclasses.replace(row, small=row.small | tiny)
    side = 2 * row.strides.spatial
    given = {
        "denoiser": row, "small": True, "shape": Shape(side, side, 2 * row.strides.temporal + 1),
        "steps": STEPS, "guidance": row.guidance, "device": "cpu", "dtype": "float32", "rounds": 1,
    }  # fmt: skip
    return speed.BenchmarkCase(**given | changes)


def latents(pipe: Any, run: speed.BenchmarkCase) -> torch.Tensor:

    given = speed.embeddings(run.prompt, run.guidance, "cpu", getattr(torch, run.dtype))
    arguments = call_arguments(pipe, run.clip) | given | {"output_type": "latent"}
    return pipe(**arguments).frames
