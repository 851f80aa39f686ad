"""Run a pipeline once and keep what there is to know of it: frames, seconds, memory.

The denoising loop is timed from the denoiser's first call to the end of the last step, by the same
clock with and without acceleration, so that the ratio of two runs compares like with like.
"""

from __future__ import annotations

import contextlib
import inspect
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from dit_accel.cli.errors import BadInput, RunFailed

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from dit_accel import Report
    from dit_accel.cli.progress import StepBar
    from dit_accel.cli.settings import Settings


@dataclass(frozen=True)
class Take:
    """One clip as it was made. `frames` is `(T, H, W, 3)` float in [0, 1]."""

    frames: npt.NDArray[np.floating[Any]]
    denoising_seconds: float
    whole_seconds: float
    peak_memory_bytes: int | None
    report: Report | None = None

    def costs(self) -> dict[str, float | int | None]:
        """Seconds and memory, JSON-able."""
        return {
            "denoising_seconds": self.denoising_seconds,
            "whole_seconds": self.whole_seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
        }


def warm_up(pipe: Any, settings: Settings) -> None:
    """One uncached step, thrown away: the first call also pays for allocation and kernels."""
    call = _call(pipe, settings) | {"num_inference_steps": 1}
    pipe(**call)


def take_uncached(pipe: Any, settings: Settings, bar: StepBar) -> Take:
    """The clip of the stock pipeline."""
    return _take(pipe, settings, bar)


def take_accelerated(pipe: Any, settings: Settings, bar: StepBar) -> Take:
    """The clip of the accelerated pipeline, with its report; the pipeline is left as it was."""
    with _accelerated(pipe, settings) as handle:
        return _take(pipe, settings, bar, handle)


def check_accepted(pipe: Any, settings: Settings) -> None:
    """Refuse before the work what `accelerate` refuses.

    Raises:
        BadInput: if site or threshold do not suit this pipeline.
    """
    try:
        with _accelerated(pipe, settings):
            pass
    except (TypeError, ValueError) as error:
        raise BadInput(str(error)) from error


def _accelerated(pipe: Any, settings: Settings) -> Any:
    from dit_accel import accelerate

    return accelerate(pipe, threshold=settings.threshold, site=settings.site)


def _take(pipe: Any, settings: Settings, bar: StepBar, handle: Any = None) -> Take:
    from dit_accel import bench

    with _LoopClock(pipe, settings, bar) as clock, bench.measure(settings.device) as measured:
        frames = pipe(**_call(pipe, settings), callback_on_step_end=clock.step_ended).frames[0]
    _refuse_broken(frames, settings)
    return Take(
        frames=frames,
        denoising_seconds=clock.seconds,
        whole_seconds=measured.seconds,
        peak_memory_bytes=measured.peak_memory_bytes,
        report=handle.report() if handle is not None else None,
    )


def _call(pipe: Any, settings: Settings) -> dict[str, Any]:
    """The arguments of the pipeline's call; the noise is drawn on the CPU, for every device."""
    import torch

    accepted = inspect.signature(pipe.__call__).parameters
    optional = {
        "negative_prompt": settings.negative,
        "max_sequence_length": settings.max_sequence_length,
        "frame_rate": settings.fps,
    }
    return {
        "prompt": settings.prompt,
        "height": settings.height,
        "width": settings.width,
        "num_frames": settings.frames,
        "num_inference_steps": settings.steps,
        "guidance_scale": settings.guidance,
        "generator": torch.Generator("cpu").manual_seed(settings.seed),
        "output_type": "np",
    } | {name: value for name, value in optional.items() if name in accepted and value is not None}


def _refuse_broken(frames: npt.NDArray[np.floating[Any]], settings: Settings) -> None:
    import numpy as np

    if not np.isfinite(frames).all():
        hint = "" if settings.dtype == "float32" else "; try --dtype float32"
        raise RunFailed(f"the model made frames that are not finite in {settings.dtype}{hint}")


class _LoopClock:
    """Times the denoising loop of one call, and moves the bar."""

    def __init__(self, pipe: Any, settings: Settings, bar: StepBar) -> None:
        parts = (getattr(pipe, name, None) for name in ("transformer", "transformer_2"))
        self._models = [part for part in parts if part is not None]
        self._device = settings.device
        self._steps = settings.steps
        self._bar = bar
        self._hooks = contextlib.ExitStack()
        self._start: float | None = None
        self.seconds = 0.0

    def __enter__(self) -> Self:
        for model in self._models:
            hook = model.register_forward_pre_hook(self._denoiser_called)
            self._hooks.callback(hook.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    def _denoiser_called(self, *_: object) -> None:
        if self._start is None:
            _synchronise(self._device)
            self._start = time.perf_counter()
            self._bar.begin()

    def step_ended(
        self, pipe: Any, step: int, timestep: Any, kept: dict[str, Any]
    ) -> dict[str, Any]:
        """The pipeline's callback after each step."""
        if step + 1 >= self._steps and self._start is not None:
            _synchronise(self._device)
            self.seconds = time.perf_counter() - self._start
        self._bar.reach(step + 1)
        return kept


def _synchronise(device: str) -> None:
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device == "mps":
        torch.mps.synchronize()
