"""The state of a training run of the miniature: its device, its log and its checkpoints."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether matrix products are faster in bfloat16 on a device: on every GPU, and on a CPU with
    the instruction."""
    if device.type != "cpu":
        return True
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.9 and later
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


class Float32Attention(TorchFunctionMode):
    """Attention in float32 within a bfloat16 autocast.

    On a CPU the backward pass of short sequences takes several times as long in bfloat16 as in
    float32 (torch 2.13: 36 instead of 7 ms for 32 x 8 heads of 80 tokens).
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        dtype = kwargs["query"].dtype if "query" in kwargs else args[0].dtype
        args = [_float32(value) for value in args]
        kwargs = {name: _float32(value) for name, value in kwargs.items()}
        with torch.autocast("cpu", enabled=False):
            return func(*args, **kwargs).to(dtype)


def _float32(value):
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


class Stopped(Exception):
    """The call's time is over; a checkpoint is written."""


@dataclass(frozen=True)
class Limits:
    """Limits of time, in minutes; None: no limit.

    Args:
        call: when this call stops, after a checkpoint; the same command continues from there.
        vae, denoiser: the longest duration of the stage, over all calls. Its schedule follows
            iterations or time, whichever is further.
        end: end the denoiser at its last checkpoint, with the present moving average.
        eager: neither CUDA graphs nor compilation.
    """

    call: float | None = None
    vae: float | None = None
    denoiser: float | None = None
    end: bool = False
    eager: bool = False


class Run:
    """A training run: its device, and its log and checkpoints in `work`, which are written
    atomically."""

    def __init__(
        self, work: Path, device: torch.device, save_every: float, limits: Limits | None = None
    ) -> None:
        self.work, self.device, self.save_every = work, device, save_every
        self.limits = limits or Limits()
        work.mkdir(parents=True, exist_ok=True)
        self.started = self.saved = time.time()
        self.begun, self.spent = self.started, 0.0  # of the stage; seconds of earlier calls
        self.curve: list[tuple[str, int, float]] = []
        if (work / "curve.json").exists():
            self.curve = [tuple(row) for row in json.loads((work / "curve.json").read_text())]
        self.sum: torch.Tensor | float = 0.0
        self.config: dict = {}  # of the stage that `finished` found

    def say(self, text: str) -> None:
        print(f"[{time.time() - self.started:7.1f} s] {text}", flush=True)

    def autocast(self) -> torch.autocast:
        """Autocast to bfloat16 on a GPU, for everything."""
        gpu = self.device.type == "cuda"  # no weight cache: it does not survive a graph capture
        return torch.autocast(self.device.type, torch.bfloat16, enabled=gpu, cache_enabled=False)

    @contextlib.contextmanager
    def autocast_matrices(self):
        """Autocast to bfloat16 for code that is mostly matrix products; on a CPU too, if that is
        faster."""
        if self.device.type == "cpu" and multiplies_bfloat16(self.device):
            with torch.autocast("cpu", torch.bfloat16), Float32Attention():
                yield
        else:
            with self.autocast():
                yield

    def begin(self, name: str) -> None:
        """Start the clock of the stage."""
        self.begun = time.time()

    def position(self, name: str, i: int, total: int) -> float:
        """The progress of the stage at iteration `i`, in iterations of `total`."""
        minutes = getattr(self.limits, name)
        taken = (self.spent + time.time() - self.begun) / 60
        return max(i, total * taken / minutes) if minutes else i

    def tick(self, name: str, i: int, loss: torch.Tensor, state) -> None:
        """Log the mean loss every 100 iterations; save every `save_every` seconds.

        Raises:
            Stopped: the call's time is over.
        """
        self.sum = self.sum + loss.detach()
        if (i + 1) % 100 == 0:
            mean, self.sum = float(self.sum) / 100, 0.0
            if not math.isfinite(mean):
                raise RuntimeError(f"{name}: the loss is {mean} at iteration {i + 1}")
            self.curve.append((name, i + 1, mean))
            note = f" ({10 * math.log10(4 / mean):.2f} dB)" if name == "vae" else ""
            self.say(f"{name} {i + 1}: loss {mean:.5f}{note}")
        now = time.time()
        over = bool(self.limits.call) and now - self.started > 60 * self.limits.call
        if over or now - self.saved > self.save_every:
            spent = self.spent + now - self.begun
            self._save(f"{name}.pt", {"iteration": i + 1, "spent": spent, **state()})
            (self.work / "curve.json").write_text(json.dumps(self.curve))
            self.saved = time.time()
        if over:
            self.say(f"{name}: stopped after iteration {i + 1}; the same command goes on")
            raise Stopped

    def resume(self, name: str, model, optimizer, ema: list[torch.Tensor] | None = None) -> int:
        path = self.work / f"{name}.pt"
        self.sum, self.spent = 0.0, 0.0
        if not path.exists():
            return 0
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.spent = state.get("spent", 0.0)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        for mine, saved in zip(ema or [], state.get("ema", []), strict=True):
            mine.copy_(saved)
        last = int(state["iteration"])
        self.curve = [row for row in self.curve if row[0] != name or row[1] <= last]
        self.say(f"{name}: goes on at iteration {last}")
        return last

    def finish(self, name: str, model: torch.nn.Module) -> None:
        config = dict(model.config) if name == "vae" else {}
        self._save(f"{name}-final.pt", {"model": model.state_dict(), "config": config})
        (self.work / "curve.json").write_text(json.dumps(self.curve))

    def is_finished(self, name: str) -> bool:
        return (self.work / f"{name}-final.pt").exists()

    def finished(self, name: str, model: torch.nn.Module) -> bool:
        """Whether the stage was finished before. Then its weights are loaded into the model."""
        if not self.is_finished(name):
            return False
        state = torch.load(
            self.work / f"{name}-final.pt", map_location=self.device, weights_only=True
        )
        model.load_state_dict(state["model"])
        self.config = state["config"]
        self.say(f"{name}: finished before")
        return True

    def _save(self, name: str, state: dict) -> None:
        temporary = self.work / (name + ".part")
        torch.save(state, temporary)
        temporary.replace(self.work / name)


def graphed(step: Callable[..., torch.Tensor], run: Run) -> Callable[..., torch.Tensor]:
    """`step` replayed as CUDA graphs, one per shapes of its tensors; on the CPU `step` itself.

    Small models have small kernels, and launching them costs more than running them. A graph
    launches once. The first call with new shapes runs the step three times as a warm-up.
    """
    if run.device.type != "cuda" or run.limits.eager:
        return step
    torch.backends.cudnn.benchmark = True
    graphs: dict[tuple, tuple] = {}

    def replay(*tensors: torch.Tensor) -> torch.Tensor:
        key = tuple(tensor.shape for tensor in tensors)
        if key not in graphs:
            static = [tensor.clone() for tensor in tensors]
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    step(*static)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                result = step(*static)
            graphs[key] = graph, static, result
        graph, static, result = graphs[key]
        for mine, given in zip(static, tensors, strict=True):
            mine.copy_(given)
        graph.replay()
        return result

    return replay
