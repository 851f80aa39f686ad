"""Seconds, peak memory and FLOPs, measured properly: the device is synchronised around the clock.

Peak memory is the allocator's on CUDA; on a CPU it is the process's high-water mark, which Linux
lets us reset; elsewhere None. FLOPs are of matrix products, convolutions and attention, a
multiplication with its addition being two. `count_flops` foretells them, by dispatching a module on
tensors without storage; `FlopMeter` counts what is called while a run goes on.
"""

from __future__ import annotations

import contextlib
import itertools
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode


class Stopwatch:
    """Seconds and peak memory between `start` and `stop`; also a context manager."""

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.seconds = 0.0
        self.peak_memory_bytes: int | None = None

    def start(self) -> None:
        reset_peak_memory(self.device)
        synchronise(self.device)
        self._started = time.perf_counter()

    def stop(self) -> None:
        synchronise(self.device)
        self.seconds = time.perf_counter() - self._started
        self.peak_memory_bytes = peak_memory(self.device)

    def __enter__(self) -> Stopwatch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Watcher(Protocol):
    """What wants to know how far the loop is."""

    def begin(self) -> None:
        """The denoising loop starts."""

    def reach(self, done: int) -> None:
        """So many steps are done."""


class LoopTimer:
    """Times the denoising loop: from a run's first forward to the end of its last step.

    It is driven in one of two ways: around one call of a pipeline (`with timer:`, and
    `timer.step_ended` as the callback of the call), or as an observer of a `Session`.

    Args:
        models: the denoisers, at least one.
        device: what is synchronised around the clock; None: where the first denoiser is when the
            run begins.
        steps: of the call; an observer is given them when the run begins.
        watchers: are called at the loop's start and after each step.
        each_step: whether steps are timed one by one. It synchronises the device after each.

    `seconds` are of the whole loop, `step_seconds` of each step where `each_step` is on, and
    `latents` those of the last step, of a call. `peak_memory_bytes` is that of the loop; only an
    observer measures it, as it starts a new high-water mark.
    """

    def __init__(
        self,
        models: Sequence[torch.nn.Module],
        *,
        device: torch.device | str | None = None,
        steps: int | None = None,
        watchers: Sequence[Watcher] = (),
        each_step: bool = False,
    ) -> None:
        self._models, self._device, self._steps = models, device, steps
        self._watchers, self._each_step = watchers, each_step
        self._hooks = contextlib.ExitStack()
        self._step = -1
        self._times: list[float] = []
        self.seconds = 0.0
        self.peak_memory_bytes: int | None = None
        self.latents: Any = None

    @property
    def step_seconds(self) -> tuple[float, ...]:
        """Seconds of each step."""
        return tuple(b - a for a, b in itertools.pairwise(self._times))

    # --- around a call ---

    def __enter__(self) -> Self:
        for model in self._models:
            hook = model.register_forward_pre_hook(self._denoiser_called)
            self._hooks.callback(hook.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    def step_ended(
        self, pipe: Any, step: int, timestep: Any, kept: dict[str, Any]
    ) -> dict[str, Any]:
        """The pipeline's callback after each step."""
        last = self._steps is not None and step + 1 >= self._steps
        if self._times and (last or self._each_step):
            self._mark()
        if self._times and last:
            self.latents = kept["latents"]
        for watcher in self._watchers:
            watcher.reach(step + 1)
        return kept

    def _denoiser_called(self, *_: object) -> None:
        if not self._times:
            for watcher in self._watchers:
                watcher.begin()
            self._start()

    # --- as an observer of a session ---

    def run_begins(self, total: int | None) -> None:
        """Start the clock, and a new high-water mark of memory."""
        self._steps, self.seconds, self.peak_memory_bytes = total, 0.0, None
        reset_peak_memory(self._where())
        self._start()

    def step_begins(self, step: int) -> None:
        """Note the step; the device is not synchronised for it."""
        self._step = step

    def forward_ends(self, transformer: str) -> None:
        """Stop the clock after each forward of the last step; of an unknown number, after each."""
        if self._times and (self._steps is None or self._step == self._steps - 1):
            del self._times[1:]  # the last step's forwards: the later one counts
            self._mark()
            self.peak_memory_bytes = peak_memory(self._where())

    def _start(self) -> None:
        synchronise(self._where())
        self._times = [time.perf_counter()]

    def _mark(self) -> None:
        synchronise(self._where())
        self._times.append(time.perf_counter())
        self.seconds = self._times[-1] - self._times[0]

    def _where(self) -> torch.device:
        if self._device is not None:
            return torch.device(self._device)
        return next(self._models[0].parameters()).device


def measure(device: torch.device | str) -> Stopwatch:
    """`with measure(device) as m: ...`, then `m.seconds` and `m.peak_memory_bytes`."""
    return Stopwatch(device)


def synchronise(device: torch.device) -> None:
    """Wait for the device's queued work; a CPU has none."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def reset_peak_memory(device: torch.device) -> None:
    """Start a new high-water mark where the device or the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu" and sys.platform == "linux":
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return


def peak_memory(device: torch.device) -> int | None:
    """Bytes at the high-water mark; None where it cannot be told."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if device.type != "cpu":
        return None
    if sys.platform != "linux":
        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    lines = Path("/proc/self/status").read_text().splitlines()
    marks = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")]
    return marks[0] if marks else None


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated on a device; None where it cannot be told."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    marks = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    return marks[0] if device.type == "cpu" and marks else None


def count_flops(
    module: torch.nn.Module, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
) -> dict[str, int]:
    """FLOPs of one forward, by module path; "" is the whole.

    Args:
        module: any module; it is not changed and nothing is computed.
        args, kwargs: what its forward takes; of tensors only shape and dtype matter (meta tensors
            will do).
    """
    device = next(module.parameters()).device
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():

        def fake(tensor: torch.Tensor) -> torch.Tensor:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)

        fake_args, fake_kwargs = tree_map_only(torch.Tensor, fake, (args, kwargs or {}))
        # The counter does not know every fused attention (the CPU's, for one), but all products.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            module(*fake_args, **fake_kwargs)
    root = type(module).__name__
    counts: dict[str, int] = {"": counter.get_total_flops()}
    for path, operations in counter.get_flop_counts().items():
        if path.startswith(root + "."):
            counts[path.removeprefix(root + ".")] = sum(operations.values())
    return counts


class FlopMeter(TorchFunctionMode):
    """Counts the FLOPs of what torch is asked to compute while it is entered: `meter.flops`.

    It looks at calls, not at kernels, so that it costs a microsecond a call and the clock of the
    same run stays true (`torch.utils.flop_counter` slows a small model by half). It sees through
    modules and functions; not into compiled graphs, nor into other packages' own kernels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        cost = _COSTS.get(func)
        if cost is not None:
            self.flops += cost(output, *args, **(kwargs or {}))
        return output


def _product(output: torch.Tensor, a: torch.Tensor, *_: Any, **__: Any) -> int:
    """Linear layers and matrix products `a @ b`: the inner width is the last of `a`."""
    return 2 * output.numel() * a.shape[-1]


def _sum_product(output: torch.Tensor, _: Any, a: torch.Tensor, *__: Any, **___: Any) -> int:
    """`input + a @ b`."""
    return 2 * output.numel() * a.shape[-1]


def _convolution(output: torch.Tensor, _: Any, weight: torch.Tensor, *__: Any, **___: Any) -> int:
    return 2 * output.numel() * weight[0].numel()


def _attention(
    output: torch.Tensor, query: torch.Tensor, key: torch.Tensor, *_: Any, **__: Any
) -> int:
    """`(..., N, D)`: two products, of queries with keys and of weights with values."""
    return 2 * query[..., 0].numel() * key.shape[-2] * (query.shape[-1] + output.shape[-1])


_COSTS: dict[Any, Callable[..., int]] = {
    **dict.fromkeys(
        (F.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__), _product
    ),
    **dict.fromkeys((torch.mm, torch.bmm, torch.Tensor.mm, torch.Tensor.bmm), _product),
    **dict.fromkeys((torch.addmm, torch.baddbmm, torch.Tensor.addmm), _sum_product),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _convolution),
    F.scaled_dot_product_attention: _attention,
}
