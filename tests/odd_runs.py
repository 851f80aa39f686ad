"""Pipelines whose runs are not the plain one: they begin late, have several loops, other forwards.

Each row of `RUNS` makes a tiny pipeline of real diffusers classes with random weights, and the
arguments of a call. `steps` are the forwards of one branch that such a call makes, `loops` how many
denoising loops they are in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import small_denoisers
import tiny
import torch

from dit_accel.core.generation import call_arguments
from dit_accel.evaluation import speed

STEPS = 16


@dataclass(frozen=True)
class OddRun:
    """A pipeline, and what a call of it does."""

    build: Callable[[], tuple[Any, dict[str, Any]]]
    steps: int
    branches: tuple[str, ...]
    loops: int = 1

    def __call__(self, pipe: Any, arguments: dict[str, Any], **changes: Any) -> Any:
        seed = torch.Generator().manual_seed(0)
        output = pipe(**arguments | changes, generator=seed)
        return getattr(output, "frames", output)


def of_diffusers(name: str, module: Any = diffusers) -> Any:
    """A class; skips the test where this diffusers does not have it yet."""
    found = getattr(module, name, None)
    if found is None:
        pytest.skip(f"this diffusers has no {name}")
    return found


def _wan(**changes: Any) -> dict[str, Any]:
    return tiny.CALL | {"num_inference_steps": STEPS, "output_type": "latent"} | changes


def _frames() -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.rand(1, 9, 3, 16, 16, generator=generator)


def wan_video_to_video(strength: float = 0.8) -> tuple[Any, dict[str, Any]]:
    base = tiny.tiny_wan()
    names = ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")
    pipe = diffusers.WanVideoToVideoPipeline(**{name: getattr(base, name) for name in names})
    pipe.set_progress_bar_config(disable=True)
    arguments = _wan(video=_frames(), strength=strength)
    del arguments["num_frames"]
    return pipe, arguments


def wan_two_experts() -> tuple[Any, dict[str, Any]]:
    return tiny.tiny_wan(transformer_2=True, boundary_ratio=0.8), _wan()


def wan_modular() -> tuple[Any, dict[str, Any]]:
    base = tiny.tiny_wan()
    pipe = of_diffusers("WanBlocks", diffusers.modular_pipelines)().init_pipeline()
    names = ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")
    pipe.update_components(**{name: getattr(base, name) for name in names})
    arguments = _wan(output="latents")
    for name in ("guidance_scale", "output_type"):
        del arguments[name]
    return pipe, arguments


def _small(name: str, kind: str) -> tuple[Any, dict[str, Any]]:
    case = small_denoisers.trial(name, steps=STEPS)
    base = speed.build(case)
    parts = {name: getattr(base, name, None) for name in case.denoiser.components}
    pipe = of_diffusers(kind)(transformer=base.transformer, scheduler=base.scheduler, **parts)
    pipe.set_progress_bar_config(disable=True)
    arguments = call_arguments(pipe, case.clip) | {"output_type": "latent"}
    arguments |= speed.embeddings(case.prompt, case.guidance, "cpu", torch.float32)
    del arguments["generator"]
    return pipe, arguments


def hunyuan_true_cfg() -> tuple[Any, dict[str, Any]]:
    pipe, arguments = _small("hunyuan-video", "HunyuanVideoPipeline")
    draw = torch.Generator().manual_seed(2)
    for name in ("prompt_embeds", "pooled_prompt_embeds"):
        like = arguments[name]
        arguments[f"negative_{name}"] = torch.randn(like.shape, generator=draw)
    arguments["negative_prompt_attention_mask"] = arguments["prompt_attention_mask"]
    return pipe, arguments | {"true_cfg_scale": 3.0}


def cogvideox_video_to_video(strength: float = 0.8) -> tuple[Any, dict[str, Any]]:
    pipe, arguments = _small("cogvideox-2b", "CogVideoXVideoToVideoPipeline")
    arguments.pop("num_frames", None)  # the video has its own
    shape = (1, 3, pipe.transformer.config.in_channels, 4, 4)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    return pipe, arguments | {"latents": latents, "strength": strength}


def ltx_condition(strength: float = 0.75) -> tuple[Any, dict[str, Any]]:
    pipe, arguments = _small("ltx-video", "LTXConditionPipeline")
    pipe.vae = SimpleNamespace(dtype=torch.float32)  # asked for its dtype alone
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()  # as of LTX-Video 0.9.5 on
    latents = torch.randn(1, 128, 3, 2, 2, generator=torch.Generator().manual_seed(3))
    return pipe, arguments | {"latents": latents, "denoise_strength": strength}


def ltx_long() -> tuple[Any, dict[str, Any]]:
    """Four windows of a clip; each loop leaves the last timestep out."""
    pipe, arguments = _small("ltx-video", "LTXI2VLongMultiPromptPipeline")
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    names = ("prompt_embeds", "prompt_attention_mask")
    given = tuple(arguments.pop(f"{sign}{name}") for sign in ("", "negative_") for name in names)
    pipe.encode_prompt = lambda **_: given
    return pipe, arguments | {
        "prompt": "one|two", "num_frames": 33, "temporal_tile_size": 16, "temporal_overlap": 8,
    }  # fmt: skip


RUNS = {
    "wan-v2v": OddRun(wan_video_to_video, 12, ("cond", "uncond")),
    "wan-two-experts": OddRun(wan_two_experts, STEPS, ("cond", "uncond")),
    "wan-modular": OddRun(wan_modular, STEPS, ("cond", "uncond")),
    "hunyuan-true-cfg": OddRun(hunyuan_true_cfg, STEPS, ("cond", "uncond")),
    "cogvideox-v2v": OddRun(cogvideox_video_to_video, 12, ("cond_uncond",)),
    "ltx-condition": OddRun(ltx_condition, 12, ("cond_uncond",)),
    "ltx-long": OddRun(ltx_long, 15, ("cond_uncond",), loops=4),
}
