"""A plan of six steps carried out on `tiny_wan`, and policies that write down what they hear."""

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


class Asked(PlanPolicy):
    """A plan that wants to be told, and writes down what it was."""

    needs_error = True

    def __init__(self, plan: Plan, mix: tuple[float, ...] = (1.0,)) -> None:
        super().__init__(plan, mix)
        self.asked: list[int] = []
        self.learnt: dict[int, float | None] = {}
        self.trips: list[tuple[int, str]] = []
        self.leans: dict[int, float | None] = {}
        self.doubts: list[tuple[int, str]] = []
        self.mends: list[tuple[int, str]] = []

    def extrapolation_at(self, step: int) -> Extrapolation | None:
        self.asked.append(step)
        return super().extrapolation_at(step)

    def observe(
        self, step: int, extrapolation_error: float | None, lean: float | None = None
    ) -> None:
        self.learnt[step], self.leans[step] = extrapolation_error, lean

    def on_suspicious(self, step: int, why: str) -> None:
        self.doubts.append((step, why))

    def on_lost_value(self, step: int, why: str) -> None:
        self.mends.append((step, why))

    def on_invalid(self, step: int, why: str) -> None:
        self.trips.append((step, why))


def run(pipe: Any, **changes: Any) -> Any:
    arguments = tiny.CALL | {"num_inference_steps": STEPS} | changes
    return pipe(**arguments, generator=torch.Generator().manual_seed(0)).frames


def inject(step: int, change: Any) -> Any:
    """A callback that changes something after a step."""

    def callback(pipe: Any, at: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return change(tensors) if at == step else {}

    return callback
