"""Records uncached runs.

In: a pipeline and clips of equal steps, guidance and size, which are rows of one batch. Out: an
`UncachedRun` for each clip.
Knows the pipeline, and listens to its scheduler; refuses a scheduler that is not linear.
Source: ours.
Shapes: P clips of a batch, B components, n steps, N numbers of a clip's latents.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from dit_accel.caching.policy import PlanPolicy, Policy
from dit_accel.core.families import family_of
from dit_accel.core.generation import ClipSpec, batch_arguments
from dit_accel.core.guidance import conditional
from dit_accel.core.interceptor import RunInfo
from dit_accel.core.patching import Patches
from dit_accel.handle import accelerate
from dit_accel.planning.difficulty import pooled
from dit_accel.planning.error_model import gram_of
from dit_accel.planning.plan import Plan, SamplerCoefficients, SecondExpert
from dit_accel.planning.sampler import ImpulseResponse, NotLinearError, check_steps
from dit_accel.planning.selection import second_of

LINEAR = 0.02  # largest relative error when the final latents are rebuilt from predictions


@dataclass(frozen=True)
class UncachedRun:
    """One uncached run of n steps.

    Args:
        components: `(B, n, N)` float32, the components of the guided prediction at every step.
        sampler: sampler coefficients of this run.
        noise: `(N,)` float32, the noise that the run started from; 0 if the denoiser gets it
            together with something else.
        final: `(N,)` float32, the final latents.
        frames: as the pipeline returned them.
        text: `(T,)` pooled embedding of the prompt; None if the denoiser has no such text.
    """

    components: torch.Tensor
    sampler: SamplerCoefficients
    noise: torch.Tensor
    final: torch.Tensor
    frames: Any
    text: torch.Tensor | None = None

    @property
    def gram(self) -> torch.Tensor:
        """`(R, R)` float64: inner products of all rows, over the final latents' squared norm."""
        return gram_of(torch.cat([*self.components, self.noise[None]]), self.final)

    def guided(self, step: int) -> torch.Tensor:
        """`(N,)`: the guided prediction of a step."""
        weights = torch.tensor(self.sampler.weights_at(step))
        return torch.einsum("b,bn->n", weights, self.components[:, step])

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that a recording stores."""
        return self.components.nbytes + self.noise.nbytes + self.final.nbytes


def record(
    pipe: Any, clips: Sequence[ClipSpec], overrides: dict[str, Any] | None = None,
    on_pace: Callable[[float], None] | None = None,
) -> list[UncachedRun]:  # fmt: skip
    """Record the uncached runs of several clips, in one call of the pipeline.

    Args:
        clips: of equal steps, guidance and size.
        overrides: arguments of the call that replace those of the clips.
        on_pace: is called after the third step with the seconds of a step, the mean of the second
            and the third.

    Raises:
        NotLinearError: predictions and coefficients do not rebuild the final latents.
    """
    family, guidance = family_of(pipe), clips[0].guidance
    two = family.branches == "separate" and guidance > 1
    weights = (1.0, 1.0 - guidance) if two else (1.0,)
    policy = _UncachedPolicy(Plan(clips[0].steps, {}), weights)
    with accelerate(pipe, plan=policy), SchedulerTap(pipe.scheduler, on_pace) as tap:
        frames = run(pipe, clips, overrides)
    predictions = torch.stack(tap.predictions)  # (n, P, N)
    components = predictions[None]
    sampler = SamplerCoefficients(
        tap.coefficients[:-1], pipe.scheduler.timesteps.double().cpu().flatten(), weights,
        policy.expert,
    )  # fmt: skip
    if two:
        parts = torch.stack([torch.stack(part) for part in policy.outputs])
        guided = torch.einsum("bs,bspn->spn", sampler.step_weights.float(), parts)
        if float((guided - predictions).norm() / predictions.norm()) <= LINEAR:
            components = parts
        else:  # the guidance varies, so the guided prediction is recorded as one component
            sampler = dataclasses.replace(sampler, branch_weights=(1.0,))
    _check_linear(tap, predictions, type(pipe.scheduler).__name__)
    text = conditional(policy.text, guidance, family.branches)
    texts = pooled(text) if text is not None else [None] * len(clips)
    noise = tap.noise if policy.keeps_noise else torch.zeros_like(tap.noise)
    return [
        UncachedRun(
            components[:, :, row].contiguous(), sampler, noise[row], tap.final[row],
            frames[row], texts[row],
        )
        for row in range(len(clips))
    ]  # fmt: skip


def _check_linear(tap: SchedulerTap, predictions: torch.Tensor, scheduler: str) -> None:
    """Refuse a sampler whose coefficients do not rebuild the final latents."""
    rebuilt = torch.einsum("s,spn->pn", tap.coefficients[:-1].float(), predictions)
    rebuilt += tap.coefficients[-1] * tap.noise
    error = float((rebuilt - tap.final).norm() / tap.final.norm())
    if not error < LINEAR:
        raise NotLinearError(
            f"{scheduler} is not linear in the predictions: their weighted sum differs from the "
            f"final latents by {error:.1%}; accepted: less than {LINEAR:.0%}"
        )


class _UncachedPolicy(PlanPolicy):
    """Computes every step, and records the text and the components `(P, N)` of each prediction."""

    records = True

    def __init__(self, plan: Plan, branch_weights: tuple[float, ...]) -> None:
        super().__init__(plan, branch_weights)
        self.outputs: list[list[torch.Tensor]] = [[] for _ in branch_weights]
        self.text: torch.Tensor | None = None
        self.expert: SecondExpert | None = None
        self.keeps_noise = False  # whether the run stores its noise, so that plans may weigh it

    def start(self, run: RunInfo) -> Policy:
        self.text, self.expert = run.text, second_of(run)
        return super().start(run)

    def on_noise(self, noise: torch.Tensor) -> None:
        self.keeps_noise = True

    def on_output(self, step: int, component: int, value: torch.Tensor) -> None:
        self.outputs[component].append(rows_of(value))


def run(pipe: Any, clips: Sequence[ClipSpec], overrides: dict[str, Any] | None) -> Any:
    """The frames of several clips, made in one call of the pipeline."""
    return pipe(**batch_arguments(pipe, clips) | (overrides or {})).frames


def rows_of(value: torch.Tensor) -> torch.Tensor:
    """Flatten `(P, ...)` to `(P, N)`, in float32 on the CPU."""
    return value.detach().float().cpu().flatten(1)


class SchedulerTap:
    """Records predictions, noise, final latents and coefficients at a scheduler's steps.

    Args:
        on_pace: as in `record`.
        errors: `(P, N)` errors that are added to the predictions, by step; they are recorded too.
    """

    def __init__(
        self, scheduler: Any, on_pace: Callable[[float], None] | None = None,
        errors: Mapping[int, torch.Tensor] | None = None,
    ) -> None:  # fmt: skip
        self._scheduler, self._on_pace, self._errors = scheduler, on_pace, errors or {}
        self._began = 0.0  # the end of the first step, which is not timed: it may load and compile
        self._patches = Patches()
        self._response: ImpulseResponse | None = None
        self.predictions: list[torch.Tensor] = []
        self.noise = self.final = torch.empty(0)

    @property
    def coefficients(self) -> torch.Tensor:
        """`(n + 1,)` float64: the coefficients of the predictions, then of the noise."""
        assert self._response is not None
        return self._response.coefficients

    def __enter__(self) -> Self:
        check_steps(self._scheduler)
        self._patches.wrap(self._scheduler, "step", self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.undo()

    def _listen(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        def step(output: torch.Tensor, timestep: Any, sample: torch.Tensor, **kwargs: Any) -> Any:
            if self._response is None:
                self._response = ImpulseResponse(self._scheduler)
                self.noise = rows_of(sample)
            self._response.step(timestep, **kwargs)
            error = self._errors.get(len(self.predictions))
            if error is not None:
                output = output + error.to(output).view_as(output)
            self.predictions.append(rows_of(output))
            stepped = inner(output, timestep, sample, **kwargs)
            self.final = rows_of(stepped[0])  # waits for the device, so that `_time` is right
            self._time()
            return stepped

        return step

    def _time(self) -> None:
        if len(self.predictions) == 1:
            self._began = time.perf_counter()
        if len(self.predictions) == 3 and self._on_pace is not None:
            self._on_pace((time.perf_counter() - self._began) / 2)
