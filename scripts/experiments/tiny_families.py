"""Builds the pipelines that the safety net runs: the miniature, and one tiny one of every family.

Goes in: a name of `PIPELINES`. Comes out: a `Subject`, a quiet pipeline on the CPU in float32 with
the arguments of its calls, one call for each prompt. It knows diffusers' classes and nothing of
dit_accel. The tiny Wan pipeline is the one of the tests; the others have no text encoder and no
VAE: embeddings are drawn from the prompt, latents come out. The widths are ours; the classes,
schedulers and guidance are those of each family's checkpoints.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import torch

ROOT = Path(__file__).resolve().parents[2]
MINIATURE = "mini-wan"
PROMPTS = (
    "a big red star moving up on a plain gray background",
    "a small blue circle moving left on a dotted background",
    "a green square bouncing on the left and a yellow ring growing on the right",
    "a cyan triangle circling on a striped background, the camera pans right",
)
NEGATIVE = "blue square"
TEXT_TOKENS, TEXT_WIDTH, POOLED_WIDTH = 8, 16, 8


@dataclass(frozen=True)
class Subject:
    """A pipeline and how it is called.

    Args:
        pipe: a diffusers pipeline.
        call: arguments of every call, without steps, prompt and noise.
        text: arguments that carry a prompt, by the prompt.
        threshold: drift at which windows of this model are neither all short nor all long.
        quality: PSNR in dB that some plan of this model reaches.
        cache_memory: bytes that are fewer than its cached values need.
        side: height and width of a clip with a layout, in pixels.
        steps: denoising steps of a call.
        fewer_steps: the same if no profile is needed, to save time.
        has_profile: whether its folder has a profile; else the first run is recorded.
    """

    pipe: Any
    call: dict[str, Any]
    text: Callable[[str], dict[str, Any]]
    threshold: float
    quality: float
    cache_memory: int = 3_000
    side: int = 64
    steps: int = 16
    fewer_steps: int = 16
    has_profile: bool = False

    def arguments(self, index: int, steps: int) -> dict[str, Any]:
        """Arguments of the call for the prompt `index`, whose noise has that seed."""
        noise = torch.Generator().manual_seed(index)
        given = {"num_inference_steps": steps, "generator": noise}
        return self.call | self.text(PROMPTS[index]) | given

    def scene_arguments(self, prompts: Sequence[str], steps: int) -> dict[str, Any]:
        """Arguments of one call for all shots of a layout."""
        noise = [torch.Generator().manual_seed(row) for row in range(len(prompts))]
        given = {"prompt": list(prompts), "num_inference_steps": steps, "generator": noise}
        return self.call | {"height": self.side, "width": self.side} | given


@dataclass(frozen=True)
class Tiny:
    """Names of diffusers classes and their settings, for one family without text encoder and VAE.

    Args:
        pooled, masked, negative: whether the call takes a pooled embedding, a mask of the text's
            tokens, and the embeddings of a negative prompt.
        threshold, quality: see `Subject`.
    """

    transformer: str
    pipeline: str
    scheduler: str
    config: dict[str, Any]
    scheduling: dict[str, Any]
    call: dict[str, Any]
    absent: tuple[str, ...] = ("tokenizer", "text_encoder", "vae")
    pooled: bool = False
    masked: bool = False
    negative: bool = True
    threshold: float = 0.8
    quality: float = 8.0


_HEADS: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 16}
FAMILIES: dict[str, Tiny] = {
    "hunyuan-video": Tiny(
        transformer="HunyuanVideoTransformer3DModel",
        pipeline="HunyuanVideoPipeline",
        scheduler="FlowMatchEulerDiscreteScheduler",
        config=_HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "num_single_layers": 2,
            "num_refiner_layers": 1,
            "rope_axes_dim": (4, 6, 6),
            "text_embed_dim": TEXT_WIDTH,
            "pooled_projection_dim": POOLED_WIDTH,
        },
        scheduling={"shift": 7.0},
        call={"height": 64, "width": 64, "num_frames": 9, "guidance_scale": 6.0},
        absent=("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2", "vae"),
        pooled=True,
        masked=True,
        negative=False,
        threshold=1.5,
    ),
    "cogvideox": Tiny(
        transformer="CogVideoXTransformer3DModel",
        pipeline="CogVideoXPipeline",
        scheduler="CogVideoXDDIMScheduler",
        config=_HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 3,
            "time_embed_dim": 16,
            "text_embed_dim": TEXT_WIDTH,
            "max_text_seq_length": TEXT_TOKENS,
            "use_rotary_positional_embeddings": True,
        },
        scheduling={
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "clip_sample": False,
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "set_alpha_to_one": True,
            "timestep_spacing": "trailing",
        },
        call={"height": 64, "width": 64, "num_frames": 9, "guidance_scale": 6.0},
        threshold=2.5,
    ),
    "ltx": Tiny(
        transformer="LTXVideoTransformer3DModel",
        pipeline="LTXPipeline",
        scheduler="FlowMatchEulerDiscreteScheduler",
        config=_HEADS
        | {
            "in_channels": 8,
            "out_channels": 8,
            "num_layers": 3,
            "cross_attention_dim": 32,
            "caption_channels": TEXT_WIDTH,
        },
        scheduling={
            "use_dynamic_shifting": True,
            "base_shift": 0.95,
            "max_shift": 2.05,
            "base_image_seq_len": 1024,
            "max_image_seq_len": 4096,
            "shift_terminal": 0.1,
        },
        call={"height": 128, "width": 128, "num_frames": 17, "guidance_scale": 3.0},
        masked=True,
    ),
}


def miniature() -> Subject:
    """The embedded miniature with its default settings: 64x64, 17 frames, 50 steps."""
    pipe = diffusers.WanPipeline.from_pretrained(str(ROOT / "assets" / MINIATURE))
    pipe.set_progress_bar_config(disable=True)
    call = {"height": 64, "width": 64, "num_frames": 17, "guidance_scale": 4.0}
    call |= {"max_sequence_length": 64, "output_type": "np"}
    return Subject(
        pipe, call, _by_words, threshold=0.25, quality=32, cache_memory=300_000, steps=50,
        fewer_steps=20, has_profile=True,
    )  # fmt: skip


def tiny_wan(**settings: Any) -> Subject:
    """The tests' tiny Wan pipeline; `settings` are those of their builder."""
    module = tests_module("tiny_wan")
    call = module.CALL | {"height": 32, "width": 32}
    return Subject(module.tiny_wan(**settings), call, _by_words, threshold=1.0, quality=8)


def tiny_wan_multistep() -> Subject:
    """The same with the scheduler of Wan's checkpoints, which stores earlier predictions."""
    subject = tiny_wan()
    subject.pipe.scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return subject


def tiny(row: Tiny) -> Subject:
    """A pipeline of one row of `FAMILIES`."""
    with torch.random.fork_rng(devices=[]):  # constructors draw from the global state
        transformer = getattr(diffusers, row.transformer)(**row.config)
    draw_weights(transformer, seed=0)
    scheduler = getattr(diffusers, row.scheduler)(**row.scheduling)
    absent = dict.fromkeys(row.absent)
    pipe = getattr(diffusers, row.pipeline)(transformer=transformer, scheduler=scheduler, **absent)
    pipe.set_progress_bar_config(disable=True)
    call = row.call | {"output_type": "latent"}
    return Subject(
        pipe, call, functools.partial(embeddings, row), threshold=row.threshold,
        quality=row.quality,
    )  # fmt: skip


PIPELINES: dict[str, Callable[[], Subject]] = {
    MINIATURE: miniature,
    "tiny-wan": tiny_wan,
    "tiny-wan-2.2": functools.partial(tiny_wan, transformer_2=True),
    "tiny-wan-multistep": tiny_wan_multistep,
    **{f"tiny-{name}": functools.partial(tiny, row) for name, row in FAMILIES.items()},
}


def embeddings(row: Tiny, prompt: str) -> dict[str, Any]:
    """Embeddings that depend only on the prompt, by the argument names of the pipeline's call."""
    found: dict[str, Any] = {"prompt": None}
    sides = {"": prompt} | ({"negative_": NEGATIVE} if row.negative else {})
    for prefix, text in sides.items():
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        draw = torch.Generator().manual_seed(seed)
        found[f"{prefix}prompt_embeds"] = torch.randn(1, TEXT_TOKENS, TEXT_WIDTH, generator=draw)
        if row.pooled:
            found["pooled_prompt_embeds"] = torch.randn(1, POOLED_WIDTH, generator=draw)
        if row.masked:
            mask = torch.ones(1, TEXT_TOKENS, dtype=torch.long)
            mask[:, TEXT_TOKENS - len(text) % 3 :] = 0  # some texts are padded
            found[f"{prefix}prompt_attention_mask"] = mask
    return found


def draw_weights(model: torch.nn.Module, seed: int) -> None:
    """Draw all weights anew: initial values differ between versions, and zeros hide faults."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if (weight == 1).all():
                continue  # the scales of norms
            width = weight[0].numel() if weight.ndim > 1 else 100
            weight.copy_(torch.randn(weight.shape, generator=draw) / math.sqrt(width))
    model.eval()


def tests_module(name: str) -> ModuleType:
    """The module of the tests that defines `name`, in any folder.

    Raises:
        FileNotFoundError: no `tiny*.py` under `tests/` does.
    """
    for path in sorted((ROOT / "tests").rglob("tiny*.py")):
        if f"def {name}(" in path.read_text(encoding="utf-8"):
            return _imported(path)
    raise FileNotFoundError(f"no tests/**/tiny*.py defines {name}")


def _imported(path: Path) -> ModuleType:
    for folder in (ROOT / "tests", path.parent):  # it may import its neighbours
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    spec = importlib.util.spec_from_file_location(f"safety_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _by_words(prompt: str) -> dict[str, Any]:
    return {"prompt": prompt, "negative_prompt": NEGATIVE}
