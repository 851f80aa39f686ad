"""A plan of six steps carried out on `tiny_wan`, and policies that note what they are given."""

from __future__ import annotations

from typing import Any

import tiny
import torch

from dit_accel.caching.policy import PlanPolicy
from dit_accel.planning.plan import Extrapolation, Plan

STEPS = 6

LINE, REUSE = {1: 2.0, 0: -1.0}, {3: 1.0}
PLAN = Plan(STEPS, {2: Extrapolation((LINE,)), 4: Extrapolation((REUSE,))})

TWO_PARTS = Plan(
    STEPS,
    {
        2: Extrapolation(({1: 2.0, 0: -1.0}, {1: 0.75, 0: 0.5}), noise_weight=0.125),
        4: Extrapolation(({3: 1.0, 0: 0.25}, {3: 1.5}), noise_weight=-0.25),
    },
)


class NotingPolicy(PlanPolicy):
    """A plan that notes every call of the executor."""

    records = True

    needs_error = True

    def __init__(self, plan: Plan, mix: tuple[float, ...] = (1.0,)) -> None:
        super().__init__(plan, mix)
        self.steps: list[int] = []
        self.errors: dict[int, float | None] = {}
        self.trusts: dict[int, float | None] = {}
        self.suspicious: list[tuple[int, str]] = []
        self.lost: list[tuple[int, str]] = []
        self.invalid: list[tuple[int, str]] = []
        self.noise: list[torch.Tensor] = []
        self.outputs: list[list[torch.Tensor]] = [[] for _ in mix]

    def extrapolation_at(self, step: int) -> Extrapolation | None:
        self.steps.append(step)
        return super().extrapolation_at(step)

    def on_noise(self, noise: torch.Tensor) -> None:
        self.noise.append(noise.clone())

    def on_output(self, step: int, component: int, value: torch.Tensor) -> None:
        self.outputs[component].append(value)

    def observe(self, step: int, error: float | None, trust: float | None = None) -> None:
        self.errors[step], self.trusts[step] = error, trust

    def on_suspicious(self, step: int, reason: str) -> None:
        self.suspicious.append((step, reason))

    def on_lost_value(self, step: int, reason: str) -> None:
        self.lost.append((step, reason))

    def on_invalid(self, step: int, reason: str) -> None:
        self.invalid.append((step, reason))


def run(pipe: Any, **changes: Any) -> Any:
    arguments = tiny.CALL | {"num_inference_steps": STEPS} | changes
    return pipe(**arguments, generator=torch.Generator().manual_seed(0)).frames


def inject(step: int, change: Any) -> Any:
    """A callback that changes something after a step."""

    def callback(pipe: Any, at: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return change(tensors) if at == step else {}

    return callback
