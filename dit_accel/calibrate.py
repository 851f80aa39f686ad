"""Measure a pipeline uncached, so that plans can be made for it: predictions, sampler, gain.

Three things, from a handful of clips:

- the inner products of each clip's predictions after guidance (`gram`), from one uncached run;
- what one unit of each prediction adds to the final latents (`shares`): a twin of the scheduler is
  stepped along on unit vectors, one a step, so that any sampler that is linear in the predictions
  gives its shares, Euler and multistep alike; that they rebuild the final latents is checked;
- how errors fare (`gain`, `memory`): runs that reuse a single prediction at one step, and what
  became of the error that it made.

Memory: the predictions of the clips that are probed, in float32 on the CPU, one latent a step each.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from dit_accel.accelerate import accelerate
from dit_accel.patching import Patches
from dit_accel.planner import Field, Plan
from dit_accel.takes import Clip, call_arguments

LINEAR = 0.02  # relative error up to which the shares must rebuild the final latents
Told = Callable[[str, int, int], None]


class NotLinearError(ValueError):
    """The final latents are not the weighted sum of predictions that plans are made of."""


@dataclass(frozen=True)
class Recording:
    """One uncached run of n steps, latents of N numbers.

    Args:
        predictions: `(n, N)` float32, after guidance.
        shares: `(n,)` float64, what one unit of each adds to the final latents.
        times: `(n,)` float64, the scheduler's timesteps.
        final: `(N,)` float32, the final latents.
    """

    predictions: torch.Tensor
    shares: torch.Tensor
    times: torch.Tensor
    final: torch.Tensor


def calibrate(
    pipe: Any,
    clips: Sequence[Clip],
    *,
    probes: int = 8,
    probed: int = 3,
    overrides: dict[str, Any] | None = None,
    told: Told = lambda what, done, total: None,
) -> Field:
    """Measure what plans are made of.

    Args:
        pipe: a diffusers pipeline of a known family, not accelerated.
        clips: of equal size, steps and guidance; a dozen or more.
        probes: steps at which a single prediction is reused, >= 2.
        probed: clips that are probed, from the first on, 1 to all; each costs `probes` runs.
        overrides: arguments of the pipeline's call that replace the clips'.
        told: hears what is being done, how much of it is done, and of how much.

    Returns:
        the field of this pipeline at this size, number of steps and guidance.

    Raises:
        ValueError: there are no clips, they differ in what must be equal, or a number is out of
            range.
        NotLinearError: the sampler is not linear in the predictions.
    """
    alike = {(c.steps, c.guidance, c.height, c.width, c.frames) for c in clips}
    if len(alike) != 1:
        raise ValueError(
            f"clips have {len(alike)} kinds of steps, guidance and size; accepted: one for all"
        )
    if probes < 2 or not 1 <= probed <= len(clips):
        raise ValueError(
            f"probes is {probes}, probed is {probed}; accepted: at least 2, and 1 to {len(clips)}"
        )
    recordings, grams = [], []
    for index, clip in enumerate(clips):
        told("uncached", index, len(clips))
        recording = record(pipe, clip, overrides)
        grams.append(_gram(recording))
        if index < probed:
            recordings.append(recording)
    first = recordings[0]
    found = []
    for index, (clip, recording) in enumerate(zip(clips, recordings, strict=False)):
        for place, step in enumerate(probe_steps(clip.steps, probes)):
            told("probes", index * probes + place, probed * probes)
            found.append((step, *_probe(pipe, clip, overrides, recording, step)))
    gain, memory = summed_up(found, clips[0].steps)
    return Field(torch.stack(grams), first.shares, first.times, gain, memory)


def record(pipe: Any, clip: Clip, overrides: dict[str, Any] | None = None) -> Recording:
    """One uncached run, written down.

    Raises:
        NotLinearError: predictions and shares do not rebuild the final latents.
    """
    with _Sampler(pipe.scheduler) as sampler:
        _run(pipe, clip, overrides)
    times = pipe.scheduler.timesteps.double().cpu().flatten()
    predictions = torch.stack(sampler.predictions)
    rebuilt = sampler.shares[:-1].float() @ predictions + sampler.shares[-1] * sampler.start
    error = float((rebuilt - sampler.final).norm() / sampler.final.norm())
    if not error < LINEAR:
        raise NotLinearError(
            f"{type(pipe.scheduler).__name__} is not linear in the predictions: they rebuild the "
            f"final latents with an error of {error:.1%}; accepted: less than {LINEAR:.0%}"
        )
    return Recording(predictions, sampler.shares[:-1], times, sampler.final)


def _run(pipe: Any, clip: Clip, overrides: dict[str, Any] | None) -> None:
    pipe(**call_arguments(pipe, clip) | {"output_type": "latent"} | (overrides or {}))


class _Sampler:
    """Listens to a scheduler's steps, and steps a twin of it along on unit vectors.

    Lane s of the twin starts at 0 and is given a prediction of 1 at step s and 0 at all others; the
    last lane starts at 1 and is given 0 throughout. Where they end are the shares of the
    predictions, and of the noise that the run started from.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._patches = Patches()
        self._twin: Any = None
        self.predictions: list[torch.Tensor] = []
        self.start = self.final = self._lanes = torch.empty(0)

    @property
    def shares(self) -> torch.Tensor:
        """`(n + 1,)` float64: of every prediction, then of the start."""
        return self._lanes.flatten().double()

    def __enter__(self) -> Self:
        self._patches.wrap(self._scheduler, "step", self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.undo()

    def _listen(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        def step(output: torch.Tensor, timestep: Any, sample: torch.Tensor, **kwargs: Any) -> Any:
            if self._twin is None:
                self._begin(sample)
            self._follow(timestep, kwargs)
            self.predictions.append(output.detach().float().cpu().flatten())
            stepped = inner(output, timestep, sample, **kwargs)
            self.final = stepped[0].detach().float().cpu().flatten()
            return stepped

        return step

    def _begin(self, sample: torch.Tensor) -> None:
        self._twin = copy.deepcopy(self._scheduler)
        vars(self._twin).pop("step", None)  # ours, which listens
        self.start = sample.detach().float().cpu().flatten()
        self._lanes = torch.zeros(1, len(self._scheduler.timesteps) + 1, 1, 1, 1)
        self._lanes[0, -1] = 1

    def _follow(self, timestep: Any, kwargs: dict[str, Any]) -> None:
        unit = torch.zeros_like(self._lanes)
        unit[0, len(self.predictions)] = 1
        self._lanes = self._twin.step(unit, timestep, self._lanes, **kwargs)[0].float()


def _gram(recording: Recording) -> torch.Tensor:
    rows = recording.predictions.double()
    return rows @ rows.T / recording.final.double().square().sum()


def probe_steps(total: int, probes: int) -> list[int]:
    """Steps from 1 on, closer together at the start, where gain changes fastest."""
    places = (round((total - 2) * (i / (probes - 1)) ** 1.7) + 1 for i in range(probes))
    return sorted(set(places))


def _probe(
    pipe: Any, clip: Clip, overrides: dict[str, Any] | None, recording: Recording, step: int
) -> tuple[float, float]:
    """Of an error made at one step: how much larger it is at the end, and the cosine of both."""
    plan = Plan(clip.steps, {step: {step - 1: 1.0}})
    with accelerate(pipe, plan=plan), _Sampler(pipe.scheduler) as sampler:
        _run(pipe, clip, overrides)
    before, fresh = recording.predictions[step - 1], recording.predictions[step]
    made = float(recording.shares[step]) * (before - fresh)
    became = sampler.final - recording.final
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
