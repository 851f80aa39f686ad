"""Public configurations of real checkpoints: what builds a denoiser of true size without weights.

In: nothing. Out: `DENOISERS`, a row a checkpoint: diffusers classes, the configuration of its hub
repository where it is not the class's default, the shape of a prompt's embeddings, its authors'
clip.
Knows names and numbers only; nothing is imported or downloaded. `small` is for a machine without a
GPU: the same classes with fewer, narrower blocks; its seconds are the machinery's, not the model's.
Source: the `config.json` files of the checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Shape:
    """Of a clip, in pixels and frames."""

    height: int
    width: int
    frames: int

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


@dataclass(frozen=True)
class LatentStrides:
    """What a clip's size must be a multiple of; frames are 1 more than a multiple of theirs."""

    spatial: int
    temporal: int


@dataclass(frozen=True)
class TextShape:
    """Embeddings of a prompt, as the pipeline's call takes them.

    Args:
        tokens, width: of the text, `(1, tokens, width)`.
        pooled: width of the pooled embedding, or None where there is none.
        masked: whether a mask of the text's tokens goes along.
        negative: whether the pipeline takes those of a negative prompt, too.
    """

    tokens: int
    width: int
    pooled: int | None = None
    masked: bool = False
    negative: bool = True


@dataclass(frozen=True)
class Denoiser:
    """One checkpoint.

    Args:
        name: on the command line.
        checkpoint: the hub repository of its configuration.
        transformer, pipeline, scheduler: names of diffusers classes.
        config: of the transformer, over the class's defaults.
        scheduling: of the scheduler, over the class's defaults.
        prompt: the shape of its embeddings.
        strides: of its VAE and patches together.
        shape, steps, guidance: its authors' usual clip.
        small, small_shape, small_prompt: configuration, clip and embeddings for a machine without a
            GPU.
        components: the other components of the pipeline, which are None.
    """

    name: str
    checkpoint: str
    transformer: str
    pipeline: str
    scheduler: str
    config: dict[str, Any]
    scheduling: dict[str, Any]
    prompt: TextShape
    strides: LatentStrides
    shape: Shape
    guidance: float
    small: dict[str, Any]
    small_shape: Shape
    small_prompt: TextShape
    steps: int = 50
    components: dict[str, None] = field(default_factory=dict)


_COMPONENTS: dict[str, None] = dict.fromkeys(("tokenizer", "text_encoder", "vae"))
_WAN: dict[str, Any] = {
    "transformer": "WanTransformer3DModel",
    "pipeline": "WanPipeline",
    "scheduler": "UniPCMultistepScheduler",
    "prompt": TextShape(tokens=512, width=4096),
    "strides": LatentStrides(16, 4),
    "guidance": 5.0,
    "small": {"num_attention_heads": 3, "ffn_dim": 1536, "num_layers": 6, "text_dim": 64},
    "small_shape": Shape(128, 128, 17),
    "small_prompt": TextShape(tokens=32, width=64),
    "components": _COMPONENTS,
}
_WAN_SCHEDULING = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
_COGVIDEOX: dict[str, Any] = {
    "transformer": "CogVideoXTransformer3DModel",
    "pipeline": "CogVideoXPipeline",
    "scheduler": "CogVideoXDDIMScheduler",
    "prompt": TextShape(tokens=226, width=4096),
    "strides": LatentStrides(16, 4),
    "shape": Shape(480, 720, 49),
    "guidance": 6.0,
    "small_shape": Shape(128, 128, 17),
    "small_prompt": TextShape(tokens=32, width=64),
    "components": _COMPONENTS,
}
_COGVIDEOX_SCHEDULING = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "set_alpha_to_one": True,
    "timestep_spacing": "trailing",
}
_COGVIDEOX_SMALL = {"num_attention_heads": 6, "num_layers": 6, "text_embed_dim": 64,
                    "max_text_seq_length": 32}  # fmt: skip

DENOISERS: dict[str, Denoiser] = {
    row.name: row
    for row in (
        Denoiser(
            name="wan2.1-1.3b",
            checkpoint="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
            config={"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
            scheduling={**_WAN_SCHEDULING, "flow_shift": 3.0},
            shape=Shape(480, 832, 81),
            **_WAN,
        ),
        Denoiser(
            name="wan2.1-14b",
            checkpoint="Wan-AI/Wan2.1-T2V-14B-Diffusers",
            config={"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40},
            scheduling={**_WAN_SCHEDULING, "flow_shift": 5.0},
            shape=Shape(720, 1280, 81),
            **_WAN,
        ),
        Denoiser(
            name="hunyuan-video",
            checkpoint="hunyuanvideo-community/HunyuanVideo",
            transformer="HunyuanVideoTransformer3DModel",
            pipeline="HunyuanVideoPipeline",
            scheduler="FlowMatchEulerDiscreteScheduler",
            config={},
            scheduling={"shift": 7.0},
            prompt=TextShape(tokens=256, width=4096, pooled=768, masked=True, negative=False),
            strides=LatentStrides(16, 4),
            shape=Shape(720, 1280, 129),
            guidance=6.0,
            small={"num_attention_heads": 3, "num_layers": 2, "num_single_layers": 4,
                   "text_embed_dim": 64, "pooled_projection_dim": 32},
            small_shape=Shape(128, 128, 17),
            small_prompt=TextShape(tokens=32, width=64, pooled=32, masked=True, negative=False),
            components={**_COMPONENTS, "tokenizer_2": None, "text_encoder_2": None},
        ),
        Denoiser(
            name="cogvideox-2b",
            checkpoint="THUDM/CogVideoX-2b",
            config={},
            scheduling={**_COGVIDEOX_SCHEDULING, "snr_shift_scale": 3.0},
            small=_COGVIDEOX_SMALL,
            **_COGVIDEOX,
        ),
        Denoiser(
            name="cogvideox-5b",
            checkpoint="THUDM/CogVideoX-5b",
            config={"num_attention_heads": 48, "num_layers": 42,
                    "use_rotary_positional_embeddings": True},
            scheduling={**_COGVIDEOX_SCHEDULING, "snr_shift_scale": 1.0},
            small=_COGVIDEOX_SMALL,
            **_COGVIDEOX,
        ),
        Denoiser(
            name="ltx-video",
            checkpoint="Lightricks/LTX-Video",
            transformer="LTXVideoTransformer3DModel",
            pipeline="LTXPipeline",
            scheduler="FlowMatchEulerDiscreteScheduler",
            config={},
            scheduling={"use_dynamic_shifting": True, "base_shift": 0.95, "max_shift": 2.05,
                        "base_image_seq_len": 1024, "max_image_seq_len": 4096,
                        "shift_terminal": 0.1},
            prompt=TextShape(tokens=128, width=4096, masked=True),
            strides=LatentStrides(32, 8),
            shape=Shape(512, 704, 161),
            guidance=3.0,
            small={"num_attention_heads": 6, "cross_attention_dim": 384, "num_layers": 6,
                   "caption_channels": 64},
            small_shape=Shape(256, 256, 17),
            small_prompt=TextShape(tokens=32, width=64, masked=True),
            components=_COMPONENTS,
        ),
    )
}  # fmt: skip
