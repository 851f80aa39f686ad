"""Measure seconds and peak memory of a run or of its denoising loop.

Devices, denoisers and step callbacks come in; seconds, bytes and the last latents go out. The
device is synchronised before and after timing, so that queued work counts. On CUDA the peak memory
is the allocator's. On a CPU it is the process's high-water mark, which only Linux can reset. The
module does not count FLOPs (`core/flops.py` does). Source: ours.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import torch

from dit_accel.core.interceptor import Forward, ForwardCall, Interceptor
from dit_accel.core.patching import before_calls


class Stopwatch:
    """A context manager that measures seconds and peak memory of a `with` block.

    Example:
        >>> with Stopwatch("cpu") as watch:
        ...     total = sum(range(10))
        >>> watch.seconds > 0
        True
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.seconds = 0.0
        self.peak_memory_bytes: int | None = None
        self.begun = 0.0  # by `time.perf_counter`

    def __enter__(self) -> Self:
        reset_peak_memory(self.device)
        synchronise(self.device)
        self.begun = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        synchronise(self.device)
        self.seconds = time.perf_counter() - self.begun
        self.peak_memory_bytes = peak_memory(self.device)


class StepListener(Protocol):
    """An object that is notified of the loop's progress."""

    def loop_begins(self) -> None:
        """The denoising loop starts."""

    def steps_done(self, done: int) -> None:
        """`done` steps are done."""


class LoopTimer(Interceptor):
    """Times the denoising loop: from a run's first forward to the end of its last step.

    Use it around one call of a pipeline (`with timer:`, and `timer.step_ended` as the call's
    callback), or as an interceptor of a `Session`.

    Args:
        models: the denoisers, at least one.
        device: the device to synchronise, or a function that returns it; None: that of the first
            denoiser.
        steps: the number of steps of the call. As an interceptor it gets them when the run begins.
        listeners: called at the loop's start and after each step.
        each_step: whether each step is timed, with a host sync after it.

    Results: `seconds` of the loop, `step_seconds` with `each_step`, `latents` of a call's last
    step. `peak_memory_bytes` is only set as an interceptor, because it resets the high-water mark.
    """

    def __init__(
        self, models: Sequence[torch.nn.Module], *,
        device: torch.device | str | Callable[[], torch.device] | None = None,
        steps: int | None = None, listeners: Sequence[StepListener] = (), each_step: bool = False,
    ) -> None:  # fmt: skip
        self._models, self._device, self._steps = models, device, steps
        self._listeners, self._each_step = listeners, each_step
        self._hooks = contextlib.ExitStack()
        self._times: list[float] = []
        self._clocks: list[Clock] = []  # as an interceptor: the start, and the last forward's end
        self._seconds = 0.0
        self._turns: list[tuple[int, float]] = []  # index of a denoiser, and when it took over
        self.peak_memory_bytes: int | None = None
        self.latents: Any = None

    @property
    def seconds(self) -> float:
        """Seconds of the loop. In an interrupted run of a session: up to the end of its last
        computed forward."""
        if self._seconds or len(self._clocks) < 2:
            return self._seconds
        start, end = self._clocks
        return end.since(start)

    @property
    def step_seconds(self) -> tuple[float, ...]:
        """Seconds of each step."""
        return tuple(b - a for a, b in itertools.pairwise(self._times))

    @property
    def begun(self) -> float:
        """When the loop of a call began, by `time.perf_counter`."""
        return self._turns[0][1] if self._turns else time.perf_counter()

    @property
    def seconds_by_model(self) -> tuple[float, ...]:
        """Seconds of a call's loop by denoiser, in the order of `models`."""
        found = [0.0] * len(self._models)
        ends = [*(moment for _, moment in self._turns[1:]), self.begun + self._seconds]
        for (index, moment), end in zip(self._turns, ends, strict=False):
            found[index] += max(end - moment, 0.0)
        return tuple(found)

    # --- around a call ---

    def __enter__(self) -> Self:
        for index, model in enumerate(self._models):
            called = functools.partial(self._denoiser_called, index)
            self._hooks.callback(before_calls(model, called))
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    def step_ended(
        self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        """The pipeline's callback after each step. Returns `tensors` unchanged."""
        # A call that starts from a given video runs fewer steps than `num_inference_steps`.
        steps = min(filter(None, (self._steps, getattr(pipe, "num_timesteps", None))), default=None)
        last = steps is not None and step + 1 >= steps
        if self._times and (last or self._each_step):
            self._mark()
        if self._times and last:
            self.latents = tensors["latents"]
        for listener in self._listeners:
            listener.steps_done(step + 1)
        return tensors

    def _denoiser_called(self, index: int) -> None:
        if not self._times:
            for listener in self._listeners:
                listener.loop_begins()
            self._start()
            self._turns = [(index, self._times[0])]
        elif index != self._turns[-1][0]:
            synchronise(self._where())
            self._turns.append((index, time.perf_counter()))

    # --- as an interceptor of a session ---

    def run_begins(self, num_steps: int | None) -> None:
        """Start the clock, and reset the high-water mark of memory."""
        self._steps, self._seconds, self.peak_memory_bytes = num_steps, 0.0, None
        reset_peak_memory(self._where())
        self._start()
        self._clocks = [Clock(self._where())]

    def around(self, call: ForwardCall, forward: Forward) -> Any:
        """Note when a computed forward ends, without waiting for the device."""
        output = forward(call)
        self._clocks[1:] = [Clock(self._where())]
        return output

    def forward_ends(self, transformer: str) -> None:
        """Stop the clock. If the last step has several forwards, the last one counts."""
        if self._times:
            del self._times[1:]
            self._mark()
            self.peak_memory_bytes = peak_memory(self._where())

    def _start(self) -> None:
        synchronise(self._where())
        self._times = [time.perf_counter()]

    def _mark(self) -> None:
        synchronise(self._where())
        self._times.append(time.perf_counter())
        self._seconds = self._times[-1] - self._times[0]

    def _where(self) -> torch.device:
        if callable(self._device):
            return self._device()
        if self._device is not None:
            return torch.device(self._device)
        return next(self._models[0].parameters()).device


class Clock:
    """A moment in a device's queue of work, noted without a host sync."""

    def __init__(self, device: torch.device) -> None:
        self._host, self._event = time.perf_counter(), None
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(device))

    def since(self, earlier: Clock) -> float:
        """Seconds since an earlier moment. Waits until the device has reached this one."""
        if self._event is None or earlier._event is None:
            return self._host - earlier._host
        self._event.synchronize()
        return float(earlier._event.elapsed_time(self._event)) / 1000


def synchronise(device: torch.device) -> None:
    """Wait for the device's queued work (a CPU has none)."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def reset_peak_memory(device: torch.device) -> None:
    """Reset the high-water mark, if the device or the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu" and sys.platform == "linux":
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return


def peak_memory(device: torch.device) -> int | None:
    """Bytes at the high-water mark; None: the system does not report it."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if device.type != "cpu":
        return None
    if sys.platform != "linux":
        scale = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, others KiB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    return _proc_bytes("self/status", "VmHWM")


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated on a device; None: the system does not report them."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return _proc_bytes("meminfo", "MemAvailable") if device.type == "cpu" else None


def _proc_bytes(file: str, field: str) -> int | None:
    """A field of a file in /proc in bytes; the file has it in KiB."""
    try:
        lines = Path("/proc", file).read_text().splitlines()
    except OSError:
        return None
    found = (int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
    return next(found, None)
