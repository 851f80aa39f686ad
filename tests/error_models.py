"""Error models of predictions that are written out, and plans that reuse."""

from __future__ import annotations

import math

import torch

from dit_accel.planning.error_model import ErrorModel
from dit_accel.planning.plan import Extrapolation, Plan, SamplerCoefficients


def field_of(
    predictions: list[list[float]],
    *,
    second: list[list[float]] | None = None,
    noise: list[float] | None = None,
    mix: tuple[float, ...] = (1.0,),
    error_gain: list[float] | None = None,
    error_memory: float = math.inf,
    others: tuple[list[list[float]], ...] = (),
) -> ErrorModel:
    """Of predictions written out as vectors; every step adds one unit of its prediction."""
    n, width = len(predictions), len(predictions[0])
    end = [*(second or []), noise or [0.0] * width]
    rows = [torch.tensor([*p, *end], dtype=torch.float64) for p in (predictions, *others)]
    return ErrorModel(
        SamplerCoefficients(
            coefficients=torch.ones(n, dtype=torch.float64),
            timesteps=torch.arange(n, 0, -1, dtype=torch.float64),
            branch_weights=mix,
        ),
        gram=torch.stack([r @ r.T for r in rows]),
        error_gain=torch.tensor(error_gain or [1.0] * n, dtype=torch.float64),
        error_memory=error_memory,
    )


def reusing(total: int, reads: dict[int, int]) -> Plan:
    """Steps that reuse a computed one, as it was."""
    return Plan(total, {step: Extrapolation(({read: 1.0},)) for step, read in reads.items()})
