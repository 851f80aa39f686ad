"""Rows of samplers trained by backpropagation through runs of the user's model: BNS, DyWeight.

In: a pipeline, and samplers with their k. Out: their weights; the pipeline with one of them, which
is restored afterwards.
Knows: training (Adam; the weights that are best on held-out clips are used), and its state in a
folder, from which it resumes. `unrolled.py` has the samplers and their runs.
Source: see `unrolled.py`. Our difference: training begins with the steps of GITS.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dit_accel.core.document import Field
from dit_accel.evaluation.methods import runs
from dit_accel.evaluation.methods.denoiser import GuidedDenoiser
from dit_accel.evaluation.methods.row import (
    MethodContext,
    MethodHandle,
    Number,
    calibrated,
    fewer,
    steps_row,
)
from dit_accel.evaluation.methods.samplers import WeightedSums, sampled
from dit_accel.evaluation.methods.training_state import TrainingState
from dit_accel.evaluation.methods.unrolled import VARIANTS, Trainable, errors_db, unrolled
from dit_accel.planning import paths
from dit_accel.planning.nodes import LinearSampler, Nodes

RECORDED_CLIPS = 8


@dataclass(frozen=True)
class Training:
    """Settings of a training.

    Args:
        clips, held_out: number of clips, and how many of them are only used to choose the best
            weights.
        batch: clips in an iteration.
        iterations, rate: of Adam; the rate falls to 0 like a cosine.
        every: iterations between evaluations on the held-out clips, after which the state is
            written.
    """

    clips: int = 64
    held_out: int = 16
    batch: int = 8
    iterations: int = 500
    rate: float = 4e-3
    every: int = 25


def name_of(variant: str, k: int) -> str:
    """The name of a sampler's files."""
    return f"{variant.replace('/', '-')}-{k}"


def train(
    pipe: Any, context: MethodContext, wanted: Sequence[tuple[str, int]], *,
    training: Training | None = None, seconds: float = math.inf,
) -> dict[tuple[str, int], dict[str, Any]]:  # fmt: skip
    """Train samplers together.

    Args:
        wanted: pairs of a name of `VARIANTS` and k.
        seconds: time after which training stops. Unfinished training resumes from
            `context.scratch`.

    Returns:
        For each finished sampler: labels, noise, weights and calibration runs, JSON-able.
    """
    training, begun = training or Training(), time.monotonic()
    clips = runs.clips_of(context, training.clips)
    final = runs.uncached_latents(pipe, context, training.clips).to(pipe.device)
    task = _Task(pipe, clips, final, training)
    try:
        states = {pair: _begin(pipe, context, task, *pair) for pair in wanted}
        for iteration in sorted({state.iteration for state in states.values()}):
            alike = {p: s for p, s in states.items() if s.iteration == iteration}
            task.run(alike, context.scratch, lambda: time.monotonic() - begun > seconds)
    finally:
        task.close()
    done = {p: s for p, s in states.items() if s.iteration >= training.iterations}
    return {pair: _described(state, *pair, context, training) for pair, state in done.items()}


class _Task:
    """A training task: pairs of noise and final latents, and the model."""

    def __init__(
        self, pipe: Any, clips: Sequence[Any], final: torch.Tensor, training: Training
    ) -> None:
        self.training = training
        self.predict = GuidedDenoiser(pipe, clips)
        self.noise = self.predict.noise
        self.final = final.view_as(self.noise)
        self.held_out = max(1, min(training.held_out, len(clips) // 4))
        self._frozen = [p for p in pipe.transformer.parameters() if p.requires_grad]
        for parameter in self._frozen:
            parameter.requires_grad_(False)

    def close(self) -> None:
        """Restore the model's parameters."""
        for parameter in self._frozen:
            parameter.requires_grad_(True)

    def level(self, trainable: Trainable) -> float:
        """The error on the held-out clips, in dB."""
        found = self._levels([trainable])[0]
        return found if math.isfinite(found) else math.inf

    @torch.no_grad()
    def _levels(self, trainables: list[Trainable]) -> list[float]:
        """The error of each sampler on the held-out clips, in dB."""
        rows = torch.arange(len(self.noise) - self.held_out, len(self.noise))
        rows = rows.to(self.noise.device)
        made = unrolled(trainables, self.predict, self.noise[rows], rows)
        levels = torch.stack([errors_db(one, self.final[rows]).mean() for one in made])
        return [float(level) for level in levels.tolist()]

    def run(
        self,
        states: dict[tuple[str, int], TrainingState[Trainable]],
        folder: Path | None,
        late: Callable[[], bool],
    ) -> None:
        """Train samplers with equal iterations until they are done, or time is up."""
        training, all_ = self.training, list(states.values())
        values = [v for s in all_ for v in s.trainable.parameters.values()]
        adam = torch.optim.Adam(values, lr=training.rate)
        for state in all_:
            state.give(adam)
        for iteration in range(all_[0].iteration, training.iterations):
            if iteration % training.every == 0:
                self._look(all_)
                _write(states, adam, iteration, folder)
                if late():
                    return
            for group in adam.param_groups:
                share = iteration / training.iterations
                group["lr"] = training.rate * (1 + math.cos(math.pi * share)) / 2
            self._iterate(all_, adam, iteration)
        self._look(all_)
        _write(states, adam, training.iterations, folder)

    def _iterate(
        self, states: list[TrainingState[Trainable]], adam: torch.optim.Adam, iteration: int
    ) -> None:
        count = max(1, len(self.noise) - self.held_out)
        generator = torch.Generator().manual_seed(iteration)
        rows = torch.randperm(count, generator=generator)[: self.training.batch]
        rows = rows.to(self.noise.device)
        adam.zero_grad()
        trainables = [state.trainable for state in states]
        with torch.enable_grad(), fast_matmuls(self.noise.device):
            made = unrolled(trainables, self.predict, self.noise[rows], rows)
            # The samplers share no parameter: the gradient of the sum is that of each.
            sum(errors_db(one, self.final[rows]).mean() for one in made).backward()  # type: ignore[union-attr]
        # One host sync for all of them.
        finite = torch.stack([_finite_gradients(state.trainable) for state in states]).tolist()
        for state, whole in zip(states, finite, strict=True):
            if not whole:
                for parameter in state.trainable.parameters.values():
                    parameter.grad = None
        adam.step()

    def _look(self, states: list[TrainingState[Trainable]]) -> None:
        """Store the parameters that are best on the held-out clips."""
        levels = self._levels([state.trainable for state in states])
        for state, level in zip(states, levels, strict=True):
            state.look(level)


def _finite_gradients(trainable: Trainable) -> torch.Tensor:
    """Whether all gradients are finite, as a tensor on the device. Untrained parameters have
    none."""
    found = [p.grad for p in trainable.parameters.values() if p.grad is not None]
    return torch.stack([gradient.isfinite().all() for gradient in found]).all()


@contextmanager
def fast_matmuls(device: torch.device) -> Iterator[None]:
    """Use TF32 on CUDA, for gradients only. Its rounding, 60 dB below a product, is in no score."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _write(
    states: dict[tuple[str, int], TrainingState[Trainable]], adam: torch.optim.Adam, iteration: int,
    folder: Path | None,
) -> None:  # fmt: skip
    """Store the iteration, and write the states if there is a folder."""
    for (variant, k), state in states.items():
        state.note(adam, iteration)
        path = _file(folder, variant, k)
        if path is not None:
            state.save(path)


def _begin(
    pipe: Any, context: MethodContext, task: _Task, variant: str, k: int
) -> TrainingState[Trainable]:
    """Begin with Euler or Adams-Bashforth 2, whichever is nearer; or resume."""
    nodes = _nodes(pipe, context, k)
    scale = float(pipe.scheduler.config.num_train_timesteps)
    bases = (Trainable(nodes, VARIANTS[variant], pipe.device, scale, order) for order in (1, 2))
    trainable = min(bases, key=task.level)
    state = TrainingState(trainable)
    path = _file(context.scratch, variant, k)
    if path is not None and path.exists():
        state.load(path)
    return state


def _file(folder: Path | None, variant: str, k: int) -> Path | None:
    return None if folder is None else folder / f"{name_of(variant, k)}.safetensors"


def _nodes(pipe: Any, context: MethodContext, k: int) -> Nodes:
    """The steps of GITS."""
    recorded = runs.trajectories(pipe, context, RECORDED_CLIPS)
    return recorded[0].nodes.at(paths.cheapest(paths.gits_cost(recorded), k))


def _described(
    state: TrainingState[Trainable],
    variant: str,
    k: int,
    context: MethodContext,
    training: Training,
) -> dict[str, Any]:
    for name, value in state.trainable.parameters.items():
        value.data.copy_(state.best[name])
    sampler, share = state.trainable.sampler(), k / context.clip.steps
    clips = len(context.calibration_clips[: training.clips])
    # A backward step costs three forwards: one that is repeated, and two for the gradient.
    trained = 4 * training.iterations * min(training.batch, clips) * share
    looked = (training.iterations // training.every + 3) * min(training.held_out, clips) * share
    return {
        "labels": sampler.labels.tolist(), "noise": sampler.noise.tolist(),
        "weights": sampler.weights.tolist(), "held_out_db": state.best_db,
        "runs": clips + trained + looked,
    }  # fmt: skip


# --- rows ---


@contextmanager
def _trained(
    variant: str, pipe: Any, number: Number, context: MethodContext
) -> Iterator[MethodHandle]:
    k = fewer(number, context, variant)

    def measure(_: Any) -> dict[str, Any]:
        return train(pipe, context, [(variant, k)])[variant, k]

    found = calibrated(context, name_of(variant, k), measure)
    labels, noise = (_numbers(found.at(name), k) for name in ("labels", "noise"))
    weights = [_numbers(row, k) for row in found.at("weights").entries(k, k)]
    tables = (torch.tensor(table, dtype=torch.float64) for table in (labels, noise, weights))
    sampler = LinearSampler(*tables)
    # The times only order the nodes; the model gets the labels.
    with sampled(
        pipe, partial(_labelled, sampler.labels), lambda stock, nodes: WeightedSums(sampler),
        context.clip.steps,
    ):  # fmt: skip
        yield MethodHandle({"num_inference_steps": k}, calibration_runs=found.at("runs").number())


def _numbers(field: Field, count: int) -> list[float]:
    return [entry.number() for entry in field.entries(count, count)]


def _labelled(labels: torch.Tensor, nodes: Nodes) -> Nodes:
    chosen = nodes.at(range(len(labels)))
    return Nodes(chosen.kind, chosen.times, labels)


TRAINED_SUMMARIES = {
    "bns": "BNS: all weights, the noise's and the times trained",
    "bns/grid": "the same, with times on the grid",
    "dyweight": "DyWeight: weights of the last three predictions and labels trained",
}
TRAINED_METHODS = tuple(
    steps_row(name, summary, partial(_trained, name)) for name, summary in TRAINED_SUMMARIES.items()
)
