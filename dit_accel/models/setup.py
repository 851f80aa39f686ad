"""Sets up a pipeline beyond its folder: LoRAs, scheduler, offloading, compilation, backend.

In: a `Setup`, a checked folder, and later the loaded pipeline. Out: errors before any weights are
read, and the requested pipeline.
Knows diffusers' public switches, and which ones cannot be combined; knows no acceleration. Errors
name the arguments of `Setup`.
Source: ours.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dit_accel.models import backends, loading, lora, quantizing, samplers
from dit_accel.models.families import EXPERTS
from dit_accel.models.folder import LoadableModel, ModelError, ModelLoadError

OFFLOADS = ("none", "model", "sequential", "group")
MASKED_FAMILIES = ("hunyuan-video", "ltx")  # families whose attentions get a mask
# Pipelines of diffusers that use the folder of another pipeline if an input is given.
SIBLINGS = {
    ("WanPipeline", "video"): "WanVideoToVideoPipeline",
    ("CogVideoXPipeline", "video"): "CogVideoXVideoToVideoPipeline",
    ("LTXPipeline", "image"): "LTXImageToVideoPipeline",
    ("WanPipeline", "image"): "WanImageToVideoPipeline",  # only for 2.2 TI2V
}


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Changes to a pipeline after it is loaded; by default none.

    Args:
        lora: files or folders, each `[EXPERT=]PATH[:WEIGHT]`.
        offload: how weights are offloaded to the CPU: one of `OFFLOADS`.
        compile: whether the denoiser's blocks are compiled.
        attention_backend: a backend of diffusers' attention dispatcher, by name.
        scheduler: the class name of a scheduler that replaces the folder's.
        vae_tiling: whether frames are decoded in tiles.
        quantize: how the denoiser's weights are quantised: one of `quantizing.QUANTIZERS`.
    """

    lora: tuple[str, ...] = ()
    offload: str = "none"
    compile: bool = False
    attention_backend: str | None = None
    scheduler: str | None = None
    vae_tiling: bool = False
    quantize: str | None = None

    def __post_init__(self) -> None:
        if self.offload not in OFFLOADS:
            raise ModelError(f"offload is {self.offload!r}; accepted: {', '.join(OFFLOADS)}")
        if self.compile and self.offload == "sequential":
            raise ModelError(
                "compile and offload=sequential are given, but sequential moves every layer by "
                "itself; accepted: offload model, group or none"
            )
        if self.quantize and self.offload == "sequential":
            raise ModelError(
                "quantize and offload=sequential are given; accepted: offload model, group or none"
            )
        for text in self.lora:
            lora.lora_of(text)
        quantizing.check(self.quantize)

    def to_dict(self) -> dict[str, Any]:
        """The settings that are not the default, JSON-able."""
        values = ((one, getattr(self, one.name)) for one in dataclasses.fields(self))
        found = {one.name: value for one, value in values if value != one.default}
        return found | ({"lora": list(self.lora)} if self.lora else {})


def with_input(model: LoadableModel, given: str) -> LoadableModel:
    """The model as a pipeline with an input, if the folder's own pipeline does not.

    Args:
        given: "image" or "video".
    """
    import diffusers

    name = str(model.index["_class_name"])
    kind = getattr(diffusers, SIBLINGS.get((name, given), ""), None)
    if kind is None:
        return model
    known = inspect.signature(kind.__init__).parameters
    parts = {part for part, entry in model.index.items() if isinstance(entry, list) and entry[0]}
    if parts - known.keys():  # then a part would be left out silently
        return model
    if kind.__name__ == "WanImageToVideoPipeline" and not model.index.get("expand_timesteps"):
        return model  # its transformer does not use a picture
    return dataclasses.replace(model, index=model.index | {"_class_name": kind.__name__})


def check(setup: Setup, model: LoadableModel, device: str) -> None:
    """Refuse settings that cannot work with this model or on this machine, before loading.

    Raises:
        ModelError: a setting cannot work; the message names the argument.
    """
    for text in setup.lora:
        lora.check(text, model)
    if setup.scheduler is not None:
        samplers.check(setup.scheduler, model)
    if setup.attention_backend is not None:
        _check_effect(setup.attention_backend, model, device)
    if setup.compile and backends.compiler(device) is None:
        needed = "a C++ compiler" if device == "cpu" else "triton"
        raise ModelError(f"compile is given: on {device} it needs {needed}, and none is found")
    if setup.quantize is not None:
        quantizing.check_device(setup.quantize, device)
    if setup.offload == "sequential" and device == "cpu":
        raise ModelError(
            "offload is 'sequential'; accepted: none, model or group on the CPU, because the "
            "weights are there already"
        )


def load(model: LoadableModel, setup: Setup, *, device: str, dtype: str) -> Any:
    """Load a pipeline and set it up.

    Raises:
        ModelLoadError: a part of the setup failed.
    """
    import torch

    more: dict[str, Any] = {}
    if setup.quantize is not None:
        parts = list(model.denoisers)
        kind = getattr(torch, dtype)
        more["quantization_config"] = quantizing.config_of(setup.quantize, parts, kind)
    return loading.read(model, dtype=dtype, place=lambda pipe: apply(pipe, setup, device), **more)


def apply(pipe: Any, setup: Setup, device: str) -> None:
    """Set the pipeline up and move it to its device.

    Raises:
        ModelLoadError: a part of the setup failed; the message names the argument.
    """
    steps: tuple[tuple[str, Any, Callable[[], None]], ...] = (
        ("scheduler", setup.scheduler, lambda: samplers.replace(pipe, str(setup.scheduler))),
        ("lora", setup.lora, lambda: lora.load(pipe, setup.lora)),
        ("attention_backend", setup.attention_backend,
         lambda: _set_backend(pipe, str(setup.attention_backend))),
        ("vae_tiling", setup.vae_tiling, lambda: pipe.vae.enable_tiling()),
        ("offload", setup.offload, lambda: _place(pipe, setup.offload, device)),
        ("compile", setup.compile, lambda: _compile(pipe)),
    )  # fmt: skip
    import torch

    fit_vae(pipe)
    for name, value, step in steps:
        try:
            if value:
                step()
        except (MemoryError, torch.OutOfMemoryError, ModelLoadError):
            raise
        except Exception as error:  # diffusers and peft may raise any error
            shown = ", ".join(value) if isinstance(value, tuple) else value
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelLoadError(f"{name} is {shown!r}, which failed: {first}") from error


def fit_vae(pipe: Any) -> None:
    """If a pipeline assumes another VAE (Wan's video-to-video does), set the factor of its own
    VAE."""
    from diffusers.video_processor import VideoProcessor

    config = getattr(getattr(pipe, "vae", None), "config", {})
    factor = config.get("scale_factor_spatial")
    if factor and getattr(pipe, "vae_scale_factor_spatial", factor) != factor:
        pipe.vae_scale_factor_spatial = factor
        pipe.video_processor = VideoProcessor(vae_scale_factor=factor)


def check_backend(name: str, device: str) -> bool:
    """Refuse an attention backend that does not work here. Returns whether it accepts masks."""
    found = backends.attempt(name, device)
    if found.why == backends.FROM_HUB:  # a user who names it wants it
        return "varlen" in name
    if not found.works:
        raise ModelError(f"attention_backend is {name!r}, which does not work here: {found.why}")
    return found.masks


def _check_effect(name: str, model: LoadableModel, device: str) -> None:
    masks = check_backend(name, device)
    if model.family.name in MASKED_FAMILIES and not masks:
        raise ModelError(
            f"attention_backend is {name!r}, which takes no mask: {model.family.name} needs one"
        )
    if not backends.dispatched(model):
        raise ModelError(
            f"attention_backend is {name!r}: {model.family.transformer} calls PyTorch's attention "
            "itself, so that it would do nothing"
        )


def _denoisers(pipe: Any) -> list[Any]:
    found = (getattr(pipe, name, None) for name in EXPERTS)
    return [part for part in found if part is not None]


def _set_backend(pipe: Any, name: str) -> None:
    for part in _denoisers(pipe):
        part.set_attention_backend(name)


def _place(pipe: Any, offload: str, device: str) -> None:
    if offload == "none":
        pipe.to(device)
    elif offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        _offload_groups(pipe, device)


def _offload_groups(pipe: Any, device: str) -> None:
    """Offload the denoisers block by block, and text encoders as a whole, before the loop."""
    import torch
    from diffusers.hooks import apply_group_offloading

    where = torch.device(device)
    for name, part in pipe.components.items():
        if not isinstance(part, torch.nn.Module):
            continue
        if name in EXPERTS:
            part.enable_group_offload(  # type: ignore[operator]
                onload_device=where, offload_device=torch.device("cpu"),
                offload_type="block_level", num_blocks_per_group=1,
            )  # fmt: skip
        elif name == "vae":  # decode() is not a forward, which the hooks rely on
            part.to(where)
        else:
            apply_group_offloading(
                part, onload_device=where, offload_device=torch.device("cpu"),
                offload_type="leaf_level",
            )  # fmt: skip


def _compile(pipe: Any) -> None:
    """Compile the denoisers block by block, which takes seconds instead of minutes; as a whole if
    there are no blocks."""
    for part in _denoisers(pipe):
        try:
            part.compile_repeated_blocks()
        except ValueError:  # the class names no blocks
            part.compile()
