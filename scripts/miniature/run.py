"""Where a training run of the miniature lives: its device, its log and its checkpoints."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether matrices multiply faster in bfloat16 there: every GPU, a CPU with the instruction."""
    if device.type != "cpu":
        return True
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.9 and later
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


class Float32Attention(TorchFunctionMode):
    """Attention in float32 within a bfloat16 autocast.

    On a CPU the backward pass of short bfloat16 sequences takes several times as long as theirs in
    float32 (torch 2.13: 36 against 7 ms for 32 x 8 heads of 80 tokens).
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


class Run:
    """Where a training run lives: device, log and checkpoints in `work`, written atomically."""

    def __init__(self, work: Path, device: torch.device, save_every: float) -> None:
        self.work, self.device, self.save_every = work, device, save_every
        work.mkdir(parents=True, exist_ok=True)
        self.started = self.saved = time.time()
        self.curve: list[tuple[str, int, float]] = []
        if (work / "curve.json").exists():
            self.curve = [tuple(row) for row in json.loads((work / "curve.json").read_text())]
        self.sum: torch.Tensor | float = 0.0

    def say(self, text: str) -> None:
        print(f"[{time.time() - self.started:7.1f} s] {text}", flush=True)

    def autocast(self) -> torch.autocast:
        """Bfloat16 on a GPU, for everything."""
        gpu = self.device.type == "cuda"  # no weight cache: it does not survive a graph capture
        return torch.autocast(self.device.type, torch.bfloat16, enabled=gpu, cache_enabled=False)

    @contextlib.contextmanager
    def autocast_matrices(self):
        """Bfloat16 for what is mostly products of matrices: on a CPU too, if that is faster."""
        if self.device.type == "cpu" and multiplies_bfloat16(self.device):
            with torch.autocast("cpu", torch.bfloat16), Float32Attention():
                yield
        else:
            with self.autocast():
                yield

    def tick(self, name: str, i: int, loss: torch.Tensor, state) -> None:
        """Log the mean loss every 100 iterations; save every `save_every` seconds."""
        self.sum = self.sum + loss.detach()
        if (i + 1) % 100 == 0:
            mean, self.sum = float(self.sum) / 100, 0.0
            if not math.isfinite(mean):
                raise RuntimeError(f"{name}: the loss is {mean} at iteration {i + 1}")
            self.curve.append((name, i + 1, mean))
            note = f" ({10 * math.log10(4 / mean):.2f} dB)" if name == "vae" else ""
            self.say(f"{name} {i + 1}: loss {mean:.5f}{note}")
        if time.time() - self.saved > self.save_every:
            self._save(f"{name}.pt", {"iteration": i + 1, **state()})
            (self.work / "curve.json").write_text(json.dumps(self.curve))
            self.saved = time.time()

    def resume(self, name: str, model, optimizer, ema: list[torch.Tensor] | None = None) -> int:
        path = self.work / f"{name}.pt"
        if not path.exists():
            return 0
        state = torch.load(path, map_location=self.device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        for mine, saved in zip(ema or [], state.get("ema", []), strict=True):
            mine.copy_(saved)
        last = state["iteration"]
        self.curve = [row for row in self.curve if row[0] != name or row[1] <= last]
        self.say(f"{name}: goes on at iteration {last}")
        return last

    def finish(self, name: str, model: torch.nn.Module) -> None:
        config = dict(model.config) if name == "vae" else {}
        self._save(f"{name}-final.pt", {"model": model.state_dict(), "config": config})
        (self.work / "curve.json").write_text(json.dumps(self.curve))

    def finished(self, name: str, model: torch.nn.Module) -> bool:
        path = self.work / f"{name}-final.pt"
        if not path.exists():
            return False
        state = torch.load(path, map_location=self.device, weights_only=True)
        model.load_state_dict(state["model"])
        if name == "vae":
            names = ("latents_mean", "latents_std")
            model.register_to_config(**{key: state["config"][key] for key in names})
        self.say(f"{name}: finished before")
        return True

    def _save(self, name: str, state: dict) -> None:
        temporary = self.work / (name + ".part")
        torch.save(state, temporary)
        temporary.replace(self.work / name)


def graphed(step: Callable[..., torch.Tensor], device: torch.device) -> Callable[..., torch.Tensor]:
    """`step` replayed as CUDA graphs, one per shapes of its tensors; on the CPU `step` itself.

    Small models run through small kernels, and launching them costs more than running them; a
    graph launches once. The first call with new shapes runs the step three times to warm up.
    """
    if device.type != "cuda":
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
