"""Measures how fast each method makes a denoiser of real size, without its weights.

In: a checkpoint's configuration, a clip and methods. Out: seconds, memory and overhead of each
method.
Knows: the pipeline is diffusers' own, with random weights and prompt embeddings, and without text
encoder and VAE. Time and memory are real, unless they depend on values. A threshold compares drifts
of random weights, so it computes other steps than on a real clip.
Overhead: the time beyond the ideal time, which is the uncached time of a step times the share of
FLOPs.
Source: ours.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from dit_accel.core import measure as stopwatch
from dit_accel.core.generation import ClipSpec, call_arguments, loop_timer
from dit_accel.evaluation.methods import METHODS, UNCACHED, MethodContext, Setting
from dit_accel.evaluation.probe import Probe
from dit_accel.models.checkpoints import Denoiser, Shape, TextShape
from dit_accel.models.setup import Setup, apply

COMPUTED_SHARE = 0.999  # a step with at least this share of the uncached FLOPs counts as computed


class DoesNotFitError(MemoryError):
    """The weights alone are larger than the device's free memory."""


@dataclass(frozen=True)
class BenchmarkCase:
    """What is built and run.

    Args:
        small: whether to build the reduced form of the row, for a machine without a GPU.
        rounds: how often every method runs; in each round, each method runs once.
        setup: how the pipeline is set up.
    """

    denoiser: Denoiser
    small: bool
    shape: Shape
    steps: int
    guidance: float
    device: str
    dtype: str
    rounds: int = 3
    setup: Setup = field(default_factory=Setup)

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
    """One run: its values by step."""

    seconds: tuple[float, ...]
    flops: tuple[int, ...]
    peak_memory_bytes: int | None


@dataclass(frozen=True)
class SpeedResult:
    """The speed of one method. Values are None if nothing was measured.

    Args:
        steps: number of steps in the denoising loop.
        steps_computed: number of steps with all of the uncached FLOPs.
        flops_kept: share of the uncached run's FLOPs.
        seconds: of the loop; the median of the rounds.
        seconds_per_computed_step, seconds_per_reused_step: medians; a reused step has fewer FLOPs
            than the uncached one.
        reused_flops: share of the uncached FLOPs in a reused step.
        overhead: seconds of the loop beyond the ideal of the same round, divided by the ideal;
            median.
        overhead_seconds_per_step: the same in seconds.
        speedup: seconds of the uncached loop divided by those of this one; median.
        error: why the method failed.
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


def measure(
    case: BenchmarkCase,
    settings: tuple[Setting, ...],
    on_progress: Callable[[str], None] = lambda _: None,
) -> list[SpeedResult]:
    """Measure the speed of the uncached pipeline, then of every method in the given order.

    Each method that changes classes gets a process of its own, with an uncached run in the same
    process.

    Args:
        on_progress: called with a text that says what runs next.

    Raises:
        DoesNotFitError: the weights do not fit.
    """
    alone = [setting for setting in settings if METHODS[setting.method].own_process]
    found = {
        s.method: s
        for s in compare(case, tuple(s for s in settings if s not in alone), on_progress)
    }
    for setting in alone:
        on_progress(f"{case.denoiser.name}: {setting.label}, in a process of its own")
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as child:
            found[setting.label] = child.submit(_compare_quietly, case, setting).result()[-1]
    order = (UNCACHED, *(setting.label for setting in settings))
    return [found[label] for label in dict.fromkeys(order)]


def compare(
    case: BenchmarkCase,
    settings: tuple[Setting, ...],
    on_progress: Callable[[str], None] = lambda _: None,
) -> list[SpeedResult]:
    """Run methods in turn on one pipeline, and compare them with the uncached run.

    Args:
        settings: methods that can share a process; the uncached run is added if it is missing.
        on_progress: called with a text that says what runs next.

    Raises:
        DoesNotFitError: the weights do not fit.
    """
    baseline = Setting(UNCACHED)
    settings = (baseline, *(setting for setting in settings if setting != baseline))
    on_progress(f"{case.denoiser.name}: building")
    pipe = build(case)
    runs: dict[Setting, list[TimedRun]] = {setting: [] for setting in settings}
    failed: dict[Setting, str] = {}
    remarks: dict[Setting, tuple[str, ...]] = {}
    context = _context(pipe, case)
    _call(pipe, case, {"num_inference_steps": 2})  # the first call also loads kernels
    for index in range(case.rounds):
        for setting in settings:
            if setting in failed:
                continue
            on_progress(
                f"{case.denoiser.name}: {setting.label}, round {index + 1} of {case.rounds}"
            )
            try:
                run, remarks[setting] = _run(pipe, case, setting, context)
                runs[setting].append(run)
            except Exception as error:  # any error of a method is its result
                if setting == baseline:
                    raise
                failed[setting] = f"{type(error).__name__}: {error}".strip().splitlines()[0]
                pipe = _renewed(pipe, case)
                context = _context(pipe, case)
    return [
        SpeedResult(setting.label, case.steps, error=failed[setting])
        if setting in failed
        else _speed(setting, runs[setting], runs[baseline], remarks[setting])
        for setting in settings
    ]


def _compare_quietly(case: BenchmarkCase, setting: Setting) -> list[SpeedResult]:
    """`compare` in a child process, where the libraries are not silenced yet."""
    logging.disable(logging.WARNING)
    return compare(case, (setting,))


def build(case: BenchmarkCase) -> Any:
    """Build a pipeline of diffusers with random weights, without text encoder and VAE.

    Raises:
        DoesNotFitError: the weights do not fit.
    """
    import diffusers

    row = case.denoiser
    device, dtype = torch.device(case.device), getattr(torch, case.dtype)
    with torch.device("meta"):
        count = sum(p.numel() for p in _transformer(case).parameters())
    _check_room(f"{row.name} in {case.dtype}", count * dtype.itemsize, device)
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), device, _default_dtype(dtype):
        torch.manual_seed(0)
        transformer = _transformer(case)
    transformer.eval().requires_grad_(False)
    scheduler = getattr(diffusers, row.scheduler)(**row.scheduling)
    pipe = getattr(diffusers, row.pipeline)(
        transformer=transformer, scheduler=scheduler, **row.components
    )
    pipe.set_progress_bar_config(disable=True)
    if case.setup != Setup():
        apply(pipe, case.setup, case.device)
    return pipe


def _transformer(case: BenchmarkCase) -> Any:
    import diffusers

    row = case.denoiser
    return getattr(diffusers, row.transformer)(**row.config | (row.small if case.small else {}))


def _renewed(pipe: Any, case: BenchmarkCase) -> Any:
    """A new pipeline, after a method failed."""
    pipe.transformer = None
    if case.device.startswith("cuda"):
        torch.cuda.empty_cache()
    return build(case)


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
    """Random embeddings, the same each time, by the argument names of the pipeline's call."""
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
    case: BenchmarkCase,
    overrides: dict[str, Any],
    listeners: tuple[stopwatch.StepListener, ...] = (),
) -> tuple[float, ...]:
    """Run the pipeline once. Returns the seconds of each step."""
    dtype = getattr(torch, case.dtype)
    arguments = {
        **call_arguments(pipe, case.clip),
        **embeddings(case.prompt, case.guidance, case.device, dtype),
        "output_type": "latent",
        **overrides,
    }
    clock = loop_timer(pipe, arguments, case.device, listeners, each_step=True)
    with clock:
        pipe(**arguments, callback_on_step_end=clock.step_ended)
    return clock.step_seconds


def _context(pipe: Any, case: BenchmarkCase) -> MethodContext:
    """A context whose `calibrate` measures each name once."""
    known: dict[str, Any] = {}

    def run() -> None:
        _call(pipe, case, {})

    def calibrate(name: str, measure: Callable[[Callable[[], None]], Any]) -> Any:
        if name not in known:
            known[name] = measure(run)
        return known[name]

    return MethodContext(case.clip, calibrate)


def _run(
    pipe: Any, case: BenchmarkCase, setting: Setting, context: MethodContext
) -> tuple[TimedRun, tuple[str, ...]]:
    probe = Probe(pipe)
    method = METHODS[setting.method]
    with (
        probe,
        method.apply(pipe, setting.number, context) as handle,
        stopwatch.Stopwatch(case.device) as measured,
    ):
        seconds = _call(pipe, case, handle.overrides, (probe,))
    return TimedRun(seconds, tuple(probe.flops or ()), measured.peak_memory_bytes), handle.remarks


def _speed(
    setting: Setting, runs: list[TimedRun], uncached: list[TimedRun], remarks: tuple[str, ...]
) -> SpeedResult:
    """The speed of a method, from its rounds and the uncached rounds beside them."""
    full = uncached[0].flops[0]
    shares = [flops / full for flops in runs[0].flops]
    by_step = [statistics.median(step) for step in zip(*(r.seconds for r in runs), strict=True)]
    steps = list(zip(by_step, shares, strict=True))
    computed = [seconds for seconds, share in steps if share >= COMPUTED_SHARE]
    reused = [seconds for seconds, share in steps if share < COMPUTED_SHARE]
    reused_shares = [share for share in shares if share < COMPUTED_SHARE]
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
        reused_flops=sum(reused_shares) / len(reused_shares) if reused else None,
        overhead=statistics.median(b / i for b, i in zip(beyond, ideals, strict=True)),
        overhead_seconds_per_step=statistics.median(beyond) / len(by_step),
        speedup=statistics.median(base / spent for base, spent in rounds),
        peak_memory_bytes=max(peaks, default=None),
        remarks=remarks,
    )
