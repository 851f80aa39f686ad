"""Tiny pipelines whose transformers have no row: plans must work there too.

Real diffusers classes, random weights, no text encoder and no VAE. A pipeline is left out where the
installed diffusers does not have it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import tiny
import torch

TEXT = 8  # tokens of a prompt


@dataclass(frozen=True)
class Pipeline:
    """A pipeline's classes and settings, and its call.

    Args:
        width: of the text embedding.
        masked: whether a mask of the text goes along.
        frames: the call's argument for the number of frames.
        arguments: more of the call.
        separate: whether each branch of guidance has a forward of its own.
    """

    pipeline: str
    transformer: str
    config: dict[str, Any]
    scheduler: Callable[[], Any]
    width: int
    masked: bool = False
    frames: tuple[str, int] = ("num_frames", 9)
    size: int = 32
    arguments: dict[str, Any] = field(default_factory=dict)
    separate: bool = False

    @property
    def is_there(self) -> bool:
        return hasattr(diffusers, self.pipeline) and hasattr(diffusers, self.transformer)

    def build(self) -> Any:
        with torch.random.fork_rng(devices=[]):
            transformer = getattr(diffusers, self.transformer)(**self.config)
        tiny.draw_weights(transformer, seed=0)
        transformer.requires_grad_(False)
        parts = dict.fromkeys(("tokenizer", "text_encoder", "vae"))
        kind = getattr(diffusers, self.pipeline)
        pipe = kind(transformer=transformer, scheduler=self.scheduler(), **parts)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    @property
    def call(self) -> dict[str, Any]:
        draw = torch.Generator().manual_seed(1)
        given: dict[str, Any] = {"prompt": None, "height": self.size, "width": self.size,
                                 self.frames[0]: self.frames[1], "guidance_scale": 4.0}  # fmt: skip
        for prefix in ("", "negative_"):
            text = torch.randn(1, TEXT, self.width, generator=draw)
            given[f"{prefix}prompt_embeds"] = text
            if self.masked:
                given[f"{prefix}prompt_attention_mask"] = torch.ones(1, TEXT, dtype=torch.bool)
        return given | self.arguments


def _euler(**settings: Any) -> Callable[[], Any]:
    return lambda: diffusers.FlowMatchEulerDiscreteScheduler(**settings)


PIPELINES = (
    Pipeline(
        "MochiPipeline", "MochiTransformer3DModel",
        {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "text_embed_dim": 16,
         "pooled_projection_dim": 16, "time_embed_dim": 8, "max_sequence_length": TEXT},
        _euler(invert_sigmas=True), 16, masked=True, frames=("num_frames", 7),
    ),
    Pipeline(
        "AllegroPipeline", "AllegroTransformer3DModel",
        {"num_attention_heads": 2, "attention_head_dim": 24, "num_layers": 2,
         "cross_attention_dim": 48, "caption_channels": 16, "sample_height": 4, "sample_width": 4,
         "sample_frames": 3},
        lambda: diffusers.EulerDiscreteScheduler(), 16, masked=True,
        arguments={"negative_prompt": None, "clean_caption": False},
    ),
    Pipeline(
        "LattePipeline", "LatteTransformer3DModel",
        {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "in_channels": 4,
         "out_channels": 8, "cross_attention_dim": 16, "caption_channels": 16, "patch_size": 2,
         "sample_size": 4, "norm_type": "ada_norm_single", "video_length": 4,
         "norm_elementwise_affine": False},
        lambda: diffusers.DDIMScheduler(clip_sample=False), 16, frames=("video_length", 4),
        arguments={"negative_prompt": None, "clean_caption": False, "mask_feature": False},
    ),
    Pipeline(
        "SkyReelsV2Pipeline", "SkyReelsV2Transformer3DModel",
        {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2, "text_dim": 16,
         "freq_dim": 16, "ffn_dim": 16, "rope_max_seq_len": 32},
        _euler(shift=3.0), 16, separate=True,
    ),
    Pipeline(
        "SanaVideoPipeline", "SanaVideoTransformer3DModel",
        {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2,
         "num_cross_attention_heads": 2, "cross_attention_head_dim": 12, "cross_attention_dim": 24,
         "caption_channels": 16, "rope_max_seq_len": 32},
        _euler(shift=3.0), 16, masked=True, frames=("frames", 9),
        arguments={"negative_prompt": None, "use_resolution_binning": False},
    ),
)  # fmt: skip
