"""Estimates how much memory a run needs, by stage, before any weights are loaded.

In: a model's folder, a setup and the arguments of the pipeline's call. Out: bytes of each part's
weights, and peak activations of each stage.
Knows: weights are counted from the headers of the safetensors files, in the dtype that they are
loaded in. Activations are traced: every part is built without weights on PyTorch's meta device and
runs once with the shapes of this call, while the bytes of all live tensors are added up. Attention
counts as a fused kernel, and a convolution with copies of its tensors in channels-last layout.
Not counted: the workspace of matrix products, fragmentation, cached values.
Source: ours; the accounting is that of PyTorch's memory tracker, by live storages. The copies are
cuDNN's layout conversion for tensor cores (its developer guide, "Tensor Transformations").
"""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import struct
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from dit_accel.models import quantizing
from dit_accel.models.families import EXPERTS
from dit_accel.models.folder import LoadableModel
from dit_accel.models.setup import Setup, fit_vae

LARGEST_HEADER = 100_000_000
_BITS = {"F64": 64, "F32": 32, "BF16": 16, "F16": 16, "I64": 64, "I32": 32}  # others have 8


@dataclass(frozen=True)
class Part:
    """One component's weights.

    Args:
        bytes: all weights, as they are loaded.
        block: the largest of its blocks (tensors whose names have the same first number).
        layer: the largest layer.
    """

    bytes: int
    block: int
    layer: int


@dataclass(frozen=True)
class MemoryEstimate:
    """Weights by component, and activations by running component.

    Args:
        why: the reason why activations are not known, in one line; they then count as 0.
    """

    parts: dict[str, Part]
    activations: dict[str, int]
    why: str | None = None

    def stages(self, offload: str) -> dict[str, int]:
        """Bytes on the device by stage: "text", "denoise" and "decode", as far as the pipeline has
        them."""
        found: dict[str, int] = {}
        for name in self.activations.keys() | {n for n in self.parts if stage_of(n)}:
            stage = stage_of(name)
            if stage is not None and name in self.parts:
                needed = self.resident(name, offload) + self.activations.get(name, 0)
                found[stage] = max(found.get(stage, 0), needed)
        return {stage: found[stage] for stage in ("text", "denoise", "decode") if stage in found}

    def resident(self, running: str, offload: str) -> int:
        """Bytes of weights on the device while a component runs."""
        part = self.parts[running]
        if offload == "none":
            return sum(one.bytes for one in self.parts.values())
        if offload == "model":
            return part.bytes
        if offload == "sequential":
            return part.layer
        vae = self.parts["vae"].bytes if "vae" in self.parts else 0  # it stays on the device
        if running == "vae":
            return vae
        return vae + (part.block if running in EXPERTS else part.layer)


def stage_of(part: str) -> str | None:
    """The stage in which a component runs."""
    if part in EXPERTS:
        return "denoise"
    if part == "vae":
        return "decode"
    return "text" if "encoder" in part else None


def forecast(
    model: LoadableModel, setup: Setup, dtype: str, arguments: Callable[[Any], dict[str, Any]]
) -> MemoryEstimate:
    """Estimate the memory of a run.

    Args:
        arguments: returns the arguments of the pipeline's call for a pipeline.
    """
    kind = getattr(torch, dtype)
    try:
        parts = _parts(model, setup, float(kind.itemsize))
    except (ValueError, OSError, KeyError, TypeError) as error:  # loading will report the problem
        return MemoryEstimate({}, {}, f"weights could not be read: {error}")
    try:
        return MemoryEstimate(parts, activations_of(model, setup, kind, arguments))
    except Exception as error:  # pipelines may raise any error; the weights are known anyway
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return MemoryEstimate(parts, {}, f"activations could not be traced: {first}")


# --- weights -----------------------------------------------------------------------------------


def _parts(model: LoadableModel, setup: Setup, size: float) -> dict[str, Part]:
    parts = {}
    for name in model.index:
        files = _files(model, name)
        if not files:
            continue
        per = float(torch.float32.itemsize) if name == "vae" else size
        if setup.quantize is not None and name in EXPERTS:
            per = quantizing.BYTES[setup.quantize]
        parts[name] = part_of(files, per)
    return parts


def _files(model: LoadableModel, part: str) -> list[Path]:
    """The safetensors files that a component is loaded from."""
    files = sorted((model.folder / part).glob("*.safetensors"))
    chosen = [path for path in files if model.variant and f".{model.variant}" in path.name]
    plain = [path for path in files if path.name.count(".") == 1]
    return chosen or plain or files


def part_of(files: list[Path], bytes_per_weight: float) -> Part:
    """The weights in files. A floating weight counts `bytes_per_weight`."""
    whole, blocks, layers = 0.0, {"": 0.0}, {"": 0.0}
    for path in files:
        for name, entry in header_of(path).items():
            stored = _BITS.get(entry["dtype"], 8) / 8
            floating = entry["dtype"].startswith(("F", "BF"))
            size = math.prod(entry["shape"]) * (bytes_per_weight if floating else stored)
            whole += size
            words = name.split(".")
            number = next((i for i, word in enumerate(words) if word.isdigit()), None)
            block = "" if number is None else ".".join(words[: number + 1])
            blocks[block] = blocks.get(block, 0.0) + size
            layers[".".join(words[:-1])] = layers.get(".".join(words[:-1]), 0.0) + size
    outside = blocks.pop("")  # stays on the device with group offloading
    largest = max(blocks.values(), default=0.0)
    return Part(int(whole), int(outside + largest), int(max(layers.values())))


def header_of(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: dtype and shape of each tensor.

    Raises:
        ValueError: the file is not a safetensors file.
    """
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else LARGEST_HEADER + 1
        if length > LARGEST_HEADER:
            raise ValueError(f"{path} is no safetensors file")
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header


# --- activations -------------------------------------------------------------------------------


class _Decoded(Exception):
    """Raised when the last part has run."""


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of all living tensors that were made inside. `peak` is the maximum, with
    the copies of convolutions."""

    def __init__(self, weights: list[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known = {weight.untyped_storage()._cdata for weight in weights}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            # a value that the pipeline's code reads
            return torch.zeros((), dtype=args[0].dtype).item()
        out = func(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            if isinstance(one, torch.Tensor):
                self.add(one)
        if func is torch.ops.aten.convolution.default:
            # Kernels for tensor cores need channels last: input and weight are copied before, and
            # the output is made in a copy.
            copies = sum(one.nbytes for one in (*args[:2], out))
            self.peak = max(self.peak, self.now + copies)
        return out

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor while it is alive, unless its storage counts already."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self._known.add(key)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key, storage.nbytes())

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class _Fused(TorchFunctionMode):
    """Attention as a fused kernel computes it: only its output, and no matrix of scores."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            query, value = ([*args, *kwargs.values()][i] for i in (0, 2))
            return query.new_empty((*query.shape[:-1], value.shape[-1]))
        return func(*args, **kwargs)


class _Stand(torch.nn.Module):
    """Replaces a part in its pipeline, on the CPU. A call runs the part once on the meta device,
    and returns zeros of the output's shape."""

    def __init__(self, part: torch.nn.Module, name: str, peaks: dict[str, int]) -> None:
        super().__init__()
        self.__dict__.update(part=part, part_name=name, peaks=peaks, known={})
        kind = next(part.parameters()).dtype
        self.anchor = torch.nn.Parameter(torch.zeros(1, dtype=kind), requires_grad=False)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            found = getattr(self.__dict__["part"], name)
            return _on_cpu(found) if isinstance(found, torch.Tensor) else found

    @property
    def dtype(self) -> torch.dtype:
        return self.anchor.dtype

    @property
    def device(self) -> torch.device:
        return self.anchor.device

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run("forward", self.part, args, kwargs)

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        return self.run("encode", self.part.encode, args, kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        self.run("decode", self.part.decode, args, kwargs)
        raise _Decoded

    def run(self, kind: str, work: Any, args: Any, kwargs: Any) -> Any:
        if kind not in self.known:
            args, kwargs = tree_map_only(torch.Tensor, lambda t: t.to("meta"), (args, kwargs))
            live = _Live([*self.part.parameters(), *self.part.buffers()])
            for one in tree_leaves((args, kwargs)):
                if isinstance(one, torch.Tensor):
                    live.add(one)
            with torch.no_grad(), _Fused(), live:
                self.known[kind] = work(*args, **kwargs)
            self.peaks[self.part_name] = max(self.peaks.get(self.part_name, 0), live.peak)
        return _on_cpu(self.known[kind])


def _on_cpu(value: Any) -> Any:
    """The output with zeros instead of tensors on the meta device."""
    if hasattr(value, "latent_dist"):
        dist = value.latent_dist
        value.latent_dist = type(dist)(torch.zeros(dist.parameters.shape))
        return value
    return tree_map_only(
        torch.Tensor, lambda t: torch.zeros(t.shape, dtype=t.dtype) if t.is_meta else t, value
    )


def activations_of(
    model: LoadableModel, setup: Setup, dtype: torch.dtype, arguments: Callable[[Any], Any]
) -> dict[str, int]:
    """Peak bytes of living tensors, for each component that the pipeline calls."""
    import diffusers

    peaks: dict[str, int] = {}
    kind = getattr(diffusers, str(model.index["_class_name"]))
    given = {}
    known = inspect.signature(kind.__init__).parameters  # a related pipeline class may have fewer
    for name, entry in model.index.items():
        if name not in known:
            continue
        if not isinstance(entry, list):
            given[name] = entry
        elif entry[0] is None:
            given[name] = None
        else:
            given[name] = _built(model, name, entry, dtype, setup, peaks)
    pipe = kind(**given)
    fit_vae(pipe)
    pipe.set_progress_bar_config(disable=True)
    with contextlib.suppress(_Decoded):
        pipe(**arguments(pipe) | {"num_inference_steps": 3})
    return peaks


def _built(
    model: LoadableModel, name: str, entry: Any, dtype: Any, setup: Setup, peaks: dict[str, int]
) -> Any:
    """Build a component without weights. A component that has none is returned as it is."""
    import diffusers
    import transformers

    library = diffusers if entry[0] == "diffusers" else transformers
    folder = model.folder / name
    kind: Any = getattr(library, entry[1])
    is_module = isinstance(kind, type) and issubclass(kind, torch.nn.Module)
    if not is_module:
        return kind.from_pretrained(str(folder))
    with torch.device("meta"):
        if library is diffusers:
            part = kind.from_config(kind.load_config(str(folder)))
        else:
            part = kind(kind.config_class.from_pretrained(str(folder)))
    part = part.to(torch.float32 if name == "vae" else dtype).eval()
    if name == "vae" and setup.vae_tiling:
        part.enable_tiling()
    return _Stand(part, name, peaks)
