"""Seconds, peak memory and FLOPs, measured properly: the device is synchronised around the clock.

Peak memory is the allocator's on CUDA; on a CPU it is the process's high-water mark, which Linux
lets us reset; elsewhere None. FLOPs are counted by dispatching the module on tensors without
storage, so that counting costs no device time: matrix products, convolutions and attention, a
multiplication with its addition being two.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
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
