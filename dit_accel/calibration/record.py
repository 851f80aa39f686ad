"""Uncached runs, written down: what plans are made of, and what accelerated runs are held against.

A recording has a run's predictions, part by part, the noise that it started from, and what one unit
of each guided prediction adds to the final latents (`shares`): a twin of the scheduler is stepped
along on unit vectors, so that any sampler that is linear in the predictions gives its shares, Euler
and multistep alike. That they rebuild the final latents is checked. A probe is a run that reuses a
single prediction at one step, and tells what became of the error that it made.

Clips of equal steps, guidance and size can be made in one call of the pipeline, as rows of a batch.

Shapes: P clips of a batch, B parts, n steps, N numbers of a clip's latents.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from dit_accel.caching.policy import PlanPolicy, Policy
from dit_accel.core.families import family_of
from dit_accel.core.generation import ClipSpec, batch_arguments
from dit_accel.core.guidance import conditional
from dit_accel.core.patching import Patches
from dit_accel.core.session import RunInfo
from dit_accel.handle import accelerate
from dit_accel.planning.difficulty import pooled
from dit_accel.planning.plan import Extrapolation, Plan, SamplerCoefficients
from dit_accel.planning.sampler import ImpulseResponse, NotLinearError, check_steps
from dit_accel.planning.search import gram_of

LINEAR = 0.02  # relative error up to which the shares must rebuild the final latents


@dataclass(frozen=True)
class UncachedRun:
    """One uncached run of n steps, latents of N numbers.

    Args:
        parts: `(B, n, N)` float32, the parts of the guided prediction.
        sampler: of this run.
        start: `(N,)` float32, the noise.
        final: `(N,)` float32, the final latents.
        frames: as the pipeline gave them.
        text: `(T,)` pooled embedding of the prompt; None where the denoiser has no such text.
    """

    parts: torch.Tensor
    sampler: SamplerCoefficients
    start: torch.Tensor
    final: torch.Tensor
    frames: Any
    text: torch.Tensor | None = None

    @property
    def gram(self) -> torch.Tensor:
        """`(R, R)` float64: inner products of all rows, over the squared norm of the final."""
        return gram_of(torch.cat([*self.parts, self.start[None]]), self.final)

    def guided(self, step: int) -> torch.Tensor:
        """`(N,)`: the guided prediction of a step."""
        return torch.einsum(
            "b,bn->n", torch.tensor(self.sampler.branch_weights), self.parts[:, step]
        )

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return self.parts.nbytes + self.start.nbytes + self.final.nbytes


def record(pipe: Any, clip: ClipSpec, overrides: dict[str, Any] | None = None) -> UncachedRun:
    """One uncached run, written down.

    Raises:
        NotLinearError: predictions and shares do not rebuild the final latents.
    """
    return record_all(pipe, [clip], overrides)[0]


def record_all(
    pipe: Any, clips: Sequence[ClipSpec], overrides: dict[str, Any] | None = None
) -> list[UncachedRun]:
    """The uncached runs of several clips, in one call of the pipeline.

    Args:
        clips: of equal steps, guidance and size.

    Raises:
        NotLinearError: predictions and shares do not rebuild the final latents.
    """
    family, guidance = family_of(pipe), clips[0].guidance
    two = family.branches == "separate" and guidance > 1
    mix = (1.0, 1.0 - guidance) if two else (1.0,)
    policy = _RecordingPolicy(Plan(clips[0].steps, {}), mix)
    with accelerate(pipe, plan=policy), SchedulerTap(pipe.scheduler) as sampler:
        frames = run(pipe, clips, overrides)
    predictions = torch.stack(sampler.predictions)  # (n, P, N)
    parts = torch.stack([torch.stack(part) for part in policy.outputs]) if two else None
    if parts is not None:
        mixed = torch.einsum("b,bspn->spn", torch.tensor(mix), parts)
        if float((mixed - predictions).norm() / predictions.norm()) > LINEAR:
            parts, mix = None, (1.0,)  # guidance that varies, say
    if parts is None:
        parts = predictions[None]
    rebuilt = torch.einsum("s,spn->pn", sampler.coefficients[:-1].float(), predictions)
    rebuilt += sampler.coefficients[-1] * sampler.start
    error = float((rebuilt - sampler.final).norm() / sampler.final.norm())
    if not error < LINEAR:
        raise NotLinearError(
            f"{type(pipe.scheduler).__name__} is not linear in the predictions: they rebuild the "
            f"final latents with an error of {error:.1%}; accepted: less than {LINEAR:.0%}"
        )
    times = pipe.scheduler.timesteps.double().cpu().flatten()
    schedule = SamplerCoefficients(sampler.coefficients[:-1], times, mix)
    spoken = conditional(policy.text, guidance, family.branches)
    texts = pooled(spoken) if spoken is not None else [None] * len(clips)
    return [
        UncachedRun(
            parts[:, :, row].contiguous(), schedule, sampler.start[row], sampler.final[row],
            frames[row], texts[row],
        )
        for row in range(len(clips))
    ]  # fmt: skip


class _RecordingPolicy(PlanPolicy):
    """Records the components of every prediction, `(P, N)` each, and the run's text."""

    def __init__(self, plan: Plan, branch_weights: tuple[float, ...]) -> None:
        super().__init__(plan, branch_weights)
        self.outputs: list[list[torch.Tensor]] = [[] for _ in branch_weights]
        self.text: torch.Tensor | None = None

    def start(self, run: RunInfo) -> Policy:
        self.text = run.text
        return super().start(run)

    def on_output(self, step: int, component: int, value: torch.Tensor) -> None:
        self.outputs[component].append(flat(value))


def run(pipe: Any, clips: Sequence[ClipSpec], overrides: dict[str, Any] | None) -> Any:
    """Frames of several clips, made by one call of the pipeline."""
    return pipe(**batch_arguments(pipe, clips) | (overrides or {})).frames


def flat(value: torch.Tensor) -> torch.Tensor:
    """`(P, ...)` -> `(P, N)` float32 on the CPU."""
    return value.detach().float().cpu().flatten(1)


class SchedulerTap:
    """Listens to a scheduler's steps."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._patches = Patches()
        self._lanes: ImpulseResponse | None = None
        self.predictions: list[torch.Tensor] = []
        self.start = self.final = torch.empty(0)

    @property
    def coefficients(self) -> torch.Tensor:
        """`(n + 1,)` float64: of every prediction, then of the start."""
        assert self._lanes is not None
        return self._lanes.coefficients

    def __enter__(self) -> Self:
        check_steps(self._scheduler)
        self._patches.wrap(self._scheduler, "step", self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.undo()

    def _listen(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        def step(output: torch.Tensor, timestep: Any, sample: torch.Tensor, **kwargs: Any) -> Any:
            if self._lanes is None:
                self._lanes = ImpulseResponse(self._scheduler)
                self.start = flat(sample)
            self._lanes.step(timestep, **kwargs)
            self.predictions.append(flat(output))
            stepped = inner(output, timestep, sample, **kwargs)
            self.final = flat(stepped[0])
            return stepped

        return step


# --- gain and memory --------------------------------------------------------------


def probe_steps(total: int, probes: int) -> list[int]:
    """Steps from 1 on, closer together at the start, where gain changes fastest."""
    places = (round((total - 2) * (i / (probes - 1)) ** 1.7) + 1 for i in range(probes))
    return sorted(set(places))


def probe(
    pipe: Any, clips: Sequence[ClipSpec], overrides: dict[str, Any] | None,
    recordings: Sequence[UncachedRun], step: int,
) -> list[tuple[float, float]]:  # fmt: skip
    """Of an error made at one step, by clip: how much larger it is at the end, and the cosine of
    both."""
    mix = recordings[0].sampler.branch_weights
    reused = Extrapolation(tuple({step - 1: 1.0} for _ in mix))
    with (
        accelerate(pipe, plan=Plan(clips[0].steps, {step: reused}), mix=mix),
        SchedulerTap(pipe.scheduler) as sampler,
    ):
        run(pipe, clips, {"output_type": "latent"} | (overrides or {}))
    return [_grown(recording, step, sampler.final[row]) for row, recording in enumerate(recordings)]


def _grown(recording: UncachedRun, step: int, final: torch.Tensor) -> tuple[float, float]:
    change = recording.guided(step - 1) - recording.guided(step)
    made = float(recording.sampler.coefficients[step]) * change
    became = final - recording.final
    sizes = float(made.norm()), float(became.norm())
    if 0.0 in sizes:
        return 1.0, 1.0  # nothing was made, or nothing is left: no news
    return sizes[1] / sizes[0], float(made @ became) / (sizes[0] * sizes[1])


def summed_up(found: Sequence[tuple[int, float, float]], total: int) -> tuple[torch.Tensor, float]:
    """Probes (step, gain, cosine) -> the gain at every step, and the memory.

    Gain is the root mean square over clips, and lies on straight lines in its logarithm between the
    steps that were probed. Memory is the median of what the cosines say: e^(-steps left / memory).
    """
    steps = sorted({step for step, _, _ in found})
    logs = [
        math.log(math.sqrt(statistics.fmean(g * g for s, g, _ in found if s == step)))
        for step in steps
    ]
    gain = [math.exp(_between(steps, logs, step)) for step in range(total)]
    memory = statistics.median(
        (total - step) / -math.log(min(max(cosine, 0.02), 0.99)) for step, _, cosine in found
    )
    return torch.tensor(gain, dtype=torch.float64), memory


def _between(places: Sequence[int], values: Sequence[float], at: int) -> float:
    """On the line between the two neighbours; level beyond the ends."""
    if at <= places[0]:
        return values[0]
    for i in range(1, len(places)):
        if at <= places[i]:
            share = (at - places[i - 1]) / (places[i] - places[i - 1])
            return values[i - 1] + share * (values[i] - values[i - 1])
    return values[-1]
