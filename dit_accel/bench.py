"""Seconds, peak memory and FLOPs, measured properly: the device is synchronised around the clock.

Peak memory is the allocator's on CUDA; on a CPU it is the process's high-water mark, which Linux
lets us reset; elsewhere None. FLOPs are of matrix products, convolutions and attention, a
multiplication with its addition being two. `count_flops` foretells them, by dispatching a module on
tensors without storage; `FlopMeter` counts what is called while a run goes on.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def device_name(device: torch.device | str) -> str:
    """What seconds are of: the name of a CUDA device, else the kind of device."""
    device = torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


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
