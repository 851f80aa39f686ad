"""How fast each method makes a denoiser of real size: that needs no weights, but their shapes.

The pipeline is diffusers' own, with random weights, random embeddings of a prompt, and no text
encoder or VAE. So everything about time and memory is as it would be, except what depends on the
values: a threshold meets the drift of random weights, and computes other steps than on a clip. What
a computed and a reused step cost is not changed by that.

The ideal is a machinery that costs nothing: the uncached run's seconds per step, times the share of
its FLOPs that was dispatched. What a method takes beyond it is its overhead.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import torch

from dit_accel.core import measure as stopwatch
from dit_accel.core.generation import ClipSpec, call_arguments, loop_timer
from dit_accel.evaluation.methods import METHODS, UNCACHED, MethodContext, Setting
from dit_accel.evaluation.probe import Probe
from dit_accel.models.checkpoints import Denoiser, Shape, TextShape

COMPUTED = 0.999  # a step with at least this share of the uncached FLOPs counts as computed


class DoesNotFitError(MemoryError):
    """The weights alone are larger than the device's free memory."""


@dataclass(frozen=True)
class BenchmarkCase:
    """What is built and run.

    Args:
        small: the row's reduced form, for a machine without a GPU.
        rounds: how often every method runs, by turns.
    """

    denoiser: Denoiser
    small: bool
    shape: Shape
    steps: int
    guidance: float
    device: str
    dtype: str
    rounds: int = 3

    @property
    def clip(self) -> ClipSpec:
        return ClipSpec(
            prompt="", negative=None, seed=0, steps=self.steps, guidance=self.guidance,
            height=self.shape.height, width=self.shape.width, frames=self.shape.frames,
        )  # fmt: skip

    @property
    def prompt(self) -> TextShape:
        return self.denoiser.small_prompt if self.small else self.denoiser.prompt


@dataclass(frozen=True)
class TimedRun:
    """One run, by step."""

    seconds: tuple[float, ...]
    flops: tuple[int, ...]
    peak_memory_bytes: int | None


@dataclass(frozen=True)
class SpeedResult:
    """What one method took; None where there is nothing to tell.

    Args:
        steps: of the denoising loop.
        steps_computed: those with all of the uncached FLOPs.
        flops_kept: share of the uncached run's FLOPs.
        seconds: of the loop, the median of the rounds.
        seconds_per_computed_step, seconds_per_reused_step: medians; a reused step is one with fewer
            FLOPs than the uncached.
        reused_flops: share of the uncached FLOPs in a reused step.
        overhead: of the loop's seconds beyond the ideal of the same round, as a share of the
            ideal; the median of the rounds.
        overhead_seconds_per_step: the same in seconds.
        speedup: the uncached loop's seconds by these, the median of the rounds.
        error: why it failed.
    """

    method: str
    steps: int
    steps_computed: int | None = None
    flops_kept: float | None = None
    seconds: float | None = None
    seconds_per_computed_step: float | None = None
    seconds_per_reused_step: float | None = None
    reused_flops: float | None = None
    overhead: float | None = None
    overhead_seconds_per_step: float | None = None
    speedup: float | None = None
    peak_memory_bytes: int | None = None
    remarks: tuple[str, ...] = ()
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Every field, JSON-able."""
        return asdict(self)


def measure(
    trial: BenchmarkCase,
    settings: tuple[Setting, ...],
    told: Callable[[str], None] = lambda _: None,
) -> list[SpeedResult]:
    """Every method's speed, in the order given, after the uncached pipeline's.

    Methods that change classes get a process of their own each, with an uncached run beside.

    Args:
        told: hears what runs next.

    Raises:
        DoesNotFitError: the weights do not fit.
    """
    alone = [setting for setting in settings if METHODS[setting.method].own_process]
    found = {
        s.method: s for s in compare(trial, tuple(s for s in settings if s not in alone), told)
    }
    for setting in alone:
        told(f"{trial.denoiser.name}: {setting.label}, in a process of its own")
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as child:
            found[setting.label] = child.submit(_compare_quietly, trial, setting).result()[-1]
    order = (UNCACHED, *(setting.label for setting in settings))
    return [found[label] for label in dict.fromkeys(order)]


def compare(
    trial: BenchmarkCase,
    settings: tuple[Setting, ...],
    told: Callable[[str], None] = lambda _: None,
) -> list[SpeedResult]:
    """Run methods by turns on one pipeline, against the uncached one.

    Args:
        settings: methods that can share a process; the uncached run is added where it is missing.
        told: hears what runs next.

    Raises:
        DoesNotFitError: the weights do not fit.
    """
    baseline = Setting(UNCACHED)
    settings = (baseline, *(setting for setting in settings if setting != baseline))
    told(f"{trial.denoiser.name}: building")
    pipe = build(trial)
    runs: dict[Setting, list[TimedRun]] = {setting: [] for setting in settings}
    failed: dict[Setting, str] = {}
    remarks: dict[Setting, tuple[str, ...]] = {}
    context = MethodContext(trial.clip, _SpeedCalibration(pipe, trial))
    _call(pipe, trial, {"num_inference_steps": 2})  # the first call also pays for kernels
    for index in range(trial.rounds):
        for setting in settings:
            if setting in failed:
                continue
            told(f"{trial.denoiser.name}: {setting.label}, round {index + 1} of {trial.rounds}")
            try:
                run, remarks[setting] = _run(pipe, trial, setting, context)
                runs[setting].append(run)
            except Exception as error:  # whatever a peer raises is its result
                if setting == baseline:
                    raise
                failed[setting] = f"{type(error).__name__}: {error}".strip().splitlines()[0]
                pipe = _renewed(pipe, trial)
                context = MethodContext(trial.clip, _SpeedCalibration(pipe, trial))
    return [
        SpeedResult(setting.label, trial.steps, error=failed[setting])
        if setting in failed
        else _speed(setting, runs[setting], runs[baseline], remarks[setting])
        for setting in settings
    ]


def _compare_quietly(trial: BenchmarkCase, setting: Setting) -> list[SpeedResult]:
    """In a process of its own, where nobody has told the libraries to be quiet."""
    logging.disable(logging.WARNING)
    return compare(trial, (setting,))


def build(trial: BenchmarkCase) -> Any:
    """A pipeline of diffusers with random weights, and neither text encoder nor VAE.

    Raises:
        DoesNotFitError: the weights do not fit.
    """
    import diffusers

    row = trial.denoiser
    device, dtype = torch.device(trial.device), getattr(torch, trial.dtype)
    with torch.device("meta"):
        count = sum(p.numel() for p in _transformer(trial).parameters())
    _check_room(f"{row.name} in {trial.dtype}", count * dtype.itemsize, device)
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), device, _default_dtype(dtype):
        torch.manual_seed(0)
        transformer = _transformer(trial)
    transformer.eval().requires_grad_(False)
    scheduler = getattr(diffusers, row.scheduler)(**row.scheduling)
    pipe = getattr(diffusers, row.pipeline)(
        transformer=transformer, scheduler=scheduler, **row.components
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _transformer(trial: BenchmarkCase) -> Any:
    import diffusers

    row = trial.denoiser
    return getattr(diffusers, row.transformer)(**row.config | (row.small if trial.small else {}))


def _renewed(pipe: Any, trial: BenchmarkCase) -> Any:
    """A pipeline that no failed method has touched."""
    pipe.transformer = None
    if trial.device.startswith("cuda"):
        torch.cuda.empty_cache()
    return build(trial)


def _check_room(what: str, needed: int, device: torch.device) -> None:
    free = stopwatch.free_memory(device)
    if free is not None and needed > free:
        raise DoesNotFitError(
            f"{what} has {needed / 2**30:.1f} GiB of weights; {device} has {free / 2**30:.1f} GiB"
        )


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def embeddings(
    prompt: TextShape, guidance: float, device: str, dtype: torch.dtype
) -> dict[str, Any]:
    """Random embeddings under the names of the pipelines' calls, the same each time."""
    draw = torch.Generator("cpu").manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw).to(device, dtype)

    found: dict[str, Any] = {"prompt": None}
    for prefix in ("", "negative_") if prompt.negative and guidance > 1 else ("",):
        found[f"{prefix}prompt_embeds"] = random(1, prompt.tokens, prompt.width)
        if prompt.pooled is not None:
            pooled = "pooled_prompt_embeds" if not prefix else "negative_pooled_prompt_embeds"
            found[pooled] = random(1, prompt.pooled)
        if prompt.masked:
            found[f"{prefix}prompt_attention_mask"] = torch.ones(
                1, prompt.tokens, dtype=torch.long, device=device
            )
    return found


def _call(
    pipe: Any,
    trial: BenchmarkCase,
    overrides: dict[str, Any],
    listeners: tuple[stopwatch.StepListener, ...] = (),
) -> tuple[float, ...]:
    """Run once; returns the seconds of each step."""
    dtype = getattr(torch, trial.dtype)
    arguments = {
        **call_arguments(pipe, trial.clip),
        **embeddings(trial.prompt, trial.guidance, trial.device, dtype),
        "output_type": "latent",
        **overrides,
    }
    clock = loop_timer(pipe, arguments, trial.device, listeners, each_step=True)
    with clock:
        pipe(**arguments, callback_on_step_end=clock.step_ended)
    return clock.step_seconds


class _SpeedCalibration:
    """What methods measure beforehand, each once."""

    def __init__(self, pipe: Any, trial: BenchmarkCase) -> None:
        self._pipe, self._trial = pipe, trial
        self._known: dict[str, Any] = {}

    def __call__(self, name: str, measure: Callable[[Callable[[], None]], Any]) -> Any:
        if name not in self._known:
            self._known[name] = measure(self._run)
        return self._known[name]

    def _run(self) -> None:
        _call(self._pipe, self._trial, {})


def _run(
    pipe: Any, trial: BenchmarkCase, setting: Setting, context: MethodContext
) -> tuple[TimedRun, tuple[str, ...]]:
    probe = Probe(pipe)
    method = METHODS[setting.method]
    with (
        probe,
        method.apply(pipe, setting.number, context) as effect,
        stopwatch.measure(trial.device) as measured,
    ):
        seconds = _call(pipe, trial, effect.overrides, (probe,))
    return TimedRun(seconds, tuple(probe.flops or ()), measured.peak_memory_bytes), effect.remarks


def _speed(
    setting: Setting, runs: list[TimedRun], uncached: list[TimedRun], remarks: tuple[str, ...]
) -> SpeedResult:
    """The figures of a method from its rounds and those of the uncached pipeline beside them."""
    full = uncached[0].flops[0]
    shares = [flops / full for flops in runs[0].flops]
    by_step = [statistics.median(step) for step in zip(*(r.seconds for r in runs), strict=True)]
    computed = [s for s, share in zip(by_step, shares, strict=True) if share >= COMPUTED]
    reused = [s for s, share in zip(by_step, shares, strict=True) if share < COMPUTED]
    kept = [share for share in shares if share < COMPUTED]
    rounds = [(sum(b.seconds), sum(r.seconds)) for b, r in zip(uncached, runs, strict=True)]
    ideals = [statistics.median(b.seconds) * sum(shares) for b in uncached]
    beyond = [spent - ideal for (_, spent), ideal in zip(rounds, ideals, strict=True)]
    peaks = [run.peak_memory_bytes for run in runs if run.peak_memory_bytes is not None]
    return SpeedResult(
        method=setting.label,
        steps=len(by_step),
        steps_computed=len(computed),
        flops_kept=sum(shares) / len(uncached[0].flops),
        seconds=statistics.median(spent for _, spent in rounds),
        seconds_per_computed_step=statistics.median(computed) if computed else None,
        seconds_per_reused_step=statistics.median(reused) if reused else None,
        reused_flops=sum(kept) / len(kept) if kept else None,
        overhead=statistics.median(b / i for b, i in zip(beyond, ideals, strict=True)),
        overhead_seconds_per_step=statistics.median(beyond) / len(by_step),
        speedup=statistics.median(base / spent for base, spent in rounds),
        peak_memory_bytes=max(peaks, default=None),
        remarks=remarks,
    )
