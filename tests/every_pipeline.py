"""Builds a tiny pipeline of a row: real diffusers classes, random weights, embeddings given.

Goes in: a `Row` of `pipeline_rows.py`. Comes out: the pipeline and the arguments of its smallest
call. There is no text encoder; a VAE is there where the call encodes a picture or a clip. It knows
diffusers' classes by name, so that an older diffusers has fewer of them, and nothing of dit_accel.
Source: ours.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import numpy as np
import tiny
import torch
from packaging.version import Version
from PIL import Image

Made = tuple[str, dict[str, Any]]  # a class of diffusers, and its settings


@dataclass(frozen=True)
class Row:
    """A pipeline's classes and settings, and its smallest call.

    Args:
        pipeline, transformer: classes of diffusers.
        config: of the transformer.
        tensors: shapes of arguments of the call; masks are ones.
        scheduler: class and settings.
        name: of the row, where a pipeline has several.
        vae: a key of `VAES`; "": none.
        parts: more of the pipeline: a class of diffusers and its settings, or a function.
        settings, attributes: of the pipeline's constructor; of the pipeline, set thereafter.
        images, videos: arguments of the call: pictures, and how many frames a clip has.
        clips: the same as tensors: channels and frames.
        made: the same, by functions that make them, or one in a list.
        call: more arguments of the call.
        size: height and width; None: the call takes none.
        frames: the call's argument for the number of frames.
        experts: whether it has a second transformer.
        steps: the call's argument for the number of steps, and its value.
        since: the first version of diffusers whose pipeline takes the call.
        broken: what its call fails with in this diffusers, without us; "": it does not.
    """

    pipeline: str
    transformer: str
    config: dict[str, Any]
    tensors: dict[str, tuple[int, ...]]
    scheduler: Made
    name: str = ""
    vae: str = ""
    parts: dict[str, Made | Callable[[], Any]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    images: tuple[str, ...] = ()
    videos: dict[str, int] = field(default_factory=dict)
    clips: dict[str, tuple[int, int]] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)
    size: int | None = 32
    frames: tuple[str, int] | None = ("num_frames", 9)
    experts: bool = False
    steps: tuple[str, Any] = ("num_inference_steps", 10)
    broken: str = ""
    since: str = "0.35"

    @property
    def title(self) -> str:
        return f"{self.pipeline} ({self.name})" if self.name else self.pipeline

    @property
    def is_there(self) -> bool:
        """Whether the installed diffusers has the classes."""
        made = [part[0] for part in self.parts.values() if isinstance(part, tuple)]
        made += [VAES[self.vae][0]] if self.vae else []
        names = (self.pipeline, self.transformer, self.scheduler[0], *made)
        is_new = Version(diffusers.__version__) >= Version(self.since)
        return is_new and all(map(is_class, names))

    def build(self) -> Any:
        """The pipeline, quiet, on the CPU, with the same weights each time."""
        made: dict[str, Any] = {name: self._part(one) for name, one in self.parts.items()}
        made["transformer"] = make((self.transformer, self.config))
        if self.experts:
            made["transformer_2"] = make((self.transformer, self.config))
        if self.vae:
            made["vae"] = make(VAES[self.vae])
        for seed, module in enumerate(made.values()):
            if isinstance(module, torch.nn.Module):
                tiny.draw_weights(module, seed=seed)
                module.requires_grad_(False)
        made["scheduler"] = make(self.scheduler)
        kind = class_of(self.pipeline)
        wanted = inspect.signature(kind.__init__).parameters.values()
        empty = [one.name for one in wanted if one.default is one.empty and one.name != "self"]
        pipe = kind(**(dict.fromkeys(empty) | made | self.settings))
        pipe.set_progress_bar_config(disable=True)
        for name, value in self.attributes.items():
            setattr(pipe, name, value)
        return pipe

    @staticmethod
    def _part(one: Made | Callable[[], Any]) -> Any:
        return make(one) if isinstance(one, tuple) else one()

    @property
    def arguments(self) -> dict[str, Any]:
        """Of the smallest call, less its generator."""
        known = inspect.signature(class_of(self.pipeline).__call__).parameters
        given: dict[str, Any] = {"output_type": "latent", self.steps[0]: self.steps[1]}
        given |= {"prompt": None} if "prompt" in known else {}
        if self.size is not None:
            given |= {"height": self.size, "width": self.size}
        if self.frames is not None:
            given[self.frames[0]] = self.frames[1]
        given |= {name: picture(i, self.size or 32) for i, name in enumerate(self.images)}
        for name, count in self.videos.items():
            given[name] = [picture(i, self.size or 32) for i in range(count)]
        draw = torch.Generator().manual_seed(1)
        for name, (channels, count) in self.clips.items():
            side = self.size or 32
            given[name] = torch.rand(1, channels, count, side, side, generator=draw)
        for name, one in self.made.items():
            given[name] = [one[0]()] if isinstance(one, list) else one()
        given |= {name: tensor(name, shape, draw) for name, shape in self.tensors.items()}
        return given | self.call

    def run(self, pipe: Any, **changes: Any) -> torch.Tensor:
        """All that a call gives, in one row: latents of the video, and of the sound."""
        noise = torch.Generator().manual_seed(0)
        found = pipe(**self.arguments | changes, generator=noise, return_dict=False)
        return torch.cat([torch.as_tensor(one).flatten() for one in flat(found)])


def make(made: Made) -> Any:
    """An object of a class of diffusers; constructors draw from the global state."""
    with torch.random.fork_rng(devices=[]):
        return class_of(made[0])(**made[1])


@functools.cache
def class_of(name: str) -> Any:
    """A class of diffusers; `module:name` where the top level does not have it."""
    module, _, name = name.rpartition(":")
    return getattr(importlib.import_module(f"diffusers.{module}" if module else "diffusers"), name)


def is_class(name: str) -> bool:
    try:
        class_of(name)
    except (ImportError, AttributeError):
        return False
    return True


def picture(seed: int, side: int) -> Image.Image:
    draw = np.random.default_rng(seed)
    return Image.fromarray(draw.integers(0, 255, (side, side, 3), dtype=np.uint8))


def tensor(name: str, shape: tuple[int, ...], draw: torch.Generator) -> torch.Tensor:
    if "cu_seqlens" in name:
        return torch.tensor(shape, dtype=torch.int32)
    if "_mask" in name:
        return torch.ones(shape, dtype=torch.bool)
    return torch.randn(shape, generator=draw)


def flat(found: Any) -> list[Any]:
    """The tensors and arrays of nested tuples and lists."""
    if isinstance(found, (tuple, list)):
        return [one for part in found for one in flat(part)]
    return [] if found is None else [found]


_HUNYUAN = {
    "down_block_types": ["HunyuanVideoDownBlock3D"] * 4,
    "up_block_types": ["HunyuanVideoUpBlock3D"] * 4,
    "block_out_channels": [8] * 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
_WAN = {
    "base_dim": 3,
    "z_dim": 16,
    "dim_mult": [1] * 4,
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
}
VAES: dict[str, Made] = {
    "wan": ("AutoencoderKLWan", _WAN),
    "wan-ti2v": (
        "AutoencoderKLWan",
        _WAN | {"in_channels": 12, "out_channels": 12, "is_residual": True, "patch_size": 2,
                "latents_mean": [0.0] * 16, "latents_std": [1.0] * 16, "scale_factor_spatial": 16},
    ),
    "cogvideox": (
        "AutoencoderKLCogVideoX",
        {"down_block_types": ["CogVideoXDownBlock3D"] * 4, "latent_channels": 4,
         "up_block_types": ["CogVideoXUpBlock3D"] * 4, "block_out_channels": [8] * 4,
         "layers_per_block": 1, "norm_num_groups": 2},
    ),
    "hunyuan": ("AutoencoderKLHunyuanVideo", _HUNYUAN | {"latent_channels": 4}),
    "hunyuan-16": ("AutoencoderKLHunyuanVideo", _HUNYUAN | {"latent_channels": 16}),
    "hunyuan-1.5": (
        "AutoencoderKLHunyuanVideo15",
        {"latent_channels": 4, "block_out_channels": [16, 16], "layers_per_block": 1,
         "spatial_compression_ratio": 4, "temporal_compression_ratio": 2,
         "downsample_match_channel": False, "upsample_match_channel": False},
    ),
    "ltx": (
        "AutoencoderKLLTXVideo",
        {"latent_channels": 8, "block_out_channels": [8] * 4, "layers_per_block": [1] * 5,
         "decoder_block_out_channels": [8] * 4, "decoder_layers_per_block": [1] * 5,
         "spatio_temporal_scaling": [True, True, False, False],
         "decoder_spatio_temporal_scaling": [True, True, False, False],
         "decoder_inject_noise": [False] * 5, "upsample_residual": [False] * 4,
         "upsample_factor": [1] * 4, "patch_size": 1, "patch_size_t": 1},
    ),
    "ltx2": (
        "AutoencoderKLLTX2Video",
        {"latent_channels": 4, "block_out_channels": [8, 8], "decoder_block_out_channels": [8, 8],
         "layers_per_block": [1, 1], "decoder_layers_per_block": [1, 1, 1],
         "spatio_temporal_scaling": [True, True], "decoder_spatio_temporal_scaling": [True, True],
         "decoder_inject_noise": [False] * 3, "downsample_type": ["spatial", "spatial"],
         "upsample_residual": [False, False], "upsample_factor": [1, 1], "patch_size": 1,
         "patch_size_t": 1},
    ),
    "cosmos": (
        "AutoencoderKLCosmos",
        {"latent_channels": 4, "encoder_block_out_channels": [8] * 4,
         "decode_block_out_channels": [8] * 4, "attention_resolutions": [8], "resolution": 64,
         "num_layers": 2, "spatial_compression_ratio": 4, "temporal_compression_ratio": 4},
    ),
    "magvit": (
        "AutoencoderKLMagvit",
        {"latent_channels": 4, "block_out_channels": [8] * 4, "layers_per_block": 1,
         "down_block_types": ["SpatialDownBlock3D", *["SpatialTemporalDownBlock3D"] * 3],
         "up_block_types": ["SpatialUpBlock3D", *["SpatialTemporalUpBlock3D"] * 3],
         "norm_num_groups": 2, "spatial_group_norm": False},
    ),
}  # fmt: skip
