"""Makes the runs that a method needs before its first clip, on calibration clips only.

In: a pipeline and the context of a run. Out: final latents, uncached or with a sampler, and their
distance; whole trajectories.
Knows the pipeline's call. The results of uncached runs are stored for the other methods of the
process. But each method states the number of runs that it would need alone.
Source: ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from dit_accel.core.generation import ClipSpec, batch_arguments
from dit_accel.core.patching import Patches
from dit_accel.planning.paths import Recorded
from dit_accel.planning.stock_nodes import stock_nodes


class Calibration(Protocol):
    """The part of `MethodContext` that calibration needs."""

    @property
    def calibration_clips(self) -> tuple[ClipSpec, ...]: ...
    @property
    def batch(self) -> int: ...
    @property
    def memory(self) -> dict[str, Any]: ...


def clips_of(context: Calibration, count: int) -> tuple[ClipSpec, ...]:
    """This number of calibration clips.

    Raises:
        ValueError: the context has none.
    """
    found = context.calibration_clips[:count]
    if not found:
        raise ValueError("calibration_clips is empty; accepted: clips that are not scored")
    return found


def final_latents(
    pipe: Any, clips: Sequence[ClipSpec], batch: int, overrides: dict[str, Any] | None = None
) -> torch.Tensor:
    """Final latents `(C, N)` float32 on the CPU, made by calls of up to `batch` clips."""
    rows = []
    for start in range(0, len(clips), batch):
        arguments = batch_arguments(pipe, clips[start : start + batch])
        made = pipe(**arguments | {"output_type": "latent"} | (overrides or {})).frames
        rows.append(_rows(made))
    return torch.cat(rows)


def uncached_latents(pipe: Any, context: Calibration, count: int) -> torch.Tensor:
    """The `final_latents` of the stock pipeline on the first calibration clips."""
    clips = clips_of(context, count)
    key = f"latents-{len(clips)}"
    if key not in context.memory:
        context.memory[key] = final_latents(pipe, clips, context.batch)
    found: torch.Tensor = context.memory[key]
    return found


def fidelity(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The similarity of latents `(C, N)` in dB, mean over clips; higher is more similar."""
    errors = (found - wanted).square().sum(1) / wanted.square().sum(1)
    if not bool(errors.isfinite().all()):
        return -math.inf
    return float((-10 * errors.clamp_min(1e-20).log10()).mean())


def trajectories(pipe: Any, context: Calibration, count: int) -> list[Recorded]:
    """Uncached runs of the first calibration clips, with the latents of all steps."""
    clips = clips_of(context, count)
    key = f"trajectories-{len(clips)}"
    if key not in context.memory:
        found: list[Recorded] = []
        for start in range(0, len(clips), context.batch):
            found += _recorded(pipe, clips[start : start + context.batch])
        context.memory[key] = found
    stored: list[Recorded] = context.memory[key]
    return stored


def _recorded(pipe: Any, clips: Sequence[ClipSpec]) -> list[Recorded]:
    recorder, patches = _Recorder(), Patches()
    patches.wrap(pipe.scheduler, "set_timesteps", recorder.around_timesteps)
    patches.wrap(pipe.scheduler, "step", recorder.around_step)
    try:
        pipe(**batch_arguments(pipe, clips) | {"output_type": "latent"})
    finally:
        patches.undo()
    nodes = stock_nodes(pipe.scheduler, **recorder.asked)
    states, predictions = torch.stack(recorder.states), torch.stack(recorder.predictions)
    return [
        Recorded(nodes, states[:, row].contiguous(), predictions[:, row].contiguous())
        for row in range(len(clips))
    ]


class _Recorder:
    """Records a scheduler's calls: how its timesteps were set, latents, and predictions."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}  # arguments of `stock_nodes`
        self.states: list[torch.Tensor] = []
        self.predictions: list[torch.Tensor] = []

    def around_timesteps(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        def set_timesteps(
            num_inference_steps: Any = None, device: Any = None, sigmas: Any = None,
            mu: float | None = None, timesteps: Any = None,
        ) -> Any:  # fmt: skip
            given = {"sigmas": sigmas, "mu": mu, "timesteps": timesteps}
            given = {name: value for name, value in given.items() if value is not None}
            self.asked = {"num_steps": num_inference_steps} | given
            count = {"num_inference_steps": num_inference_steps, "device": device}
            return inner(**{k: v for k, v in count.items() if v is not None}, **given)

        return set_timesteps

    def around_step(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        def step(output: torch.Tensor, timestep: Any, sample: torch.Tensor, **kwargs: Any) -> Any:
            if not self.states:
                self.states.append(_rows(sample))
            self.predictions.append(_rows(output))
            stepped = inner(output, timestep, sample, **kwargs)
            self.states.append(_rows(stepped[0]))
            return stepped

        return step


def _rows(value: torch.Tensor) -> torch.Tensor:
    return value.detach().float().cpu().flatten(1)
