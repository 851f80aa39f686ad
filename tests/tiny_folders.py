"""Tiny models in folders, whole: tokenizer, text encoder, denoiser, VAE, as `--model` takes.

Goes in: a name of `FOLDERS` and a folder. Comes out: a pipeline of real classes with random weights
there, its usual call beside it, and a LoRA of one of its layers. It knows diffusers and
transformers, and nothing of dit_accel. Source: ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch
from every_pipeline import VAES, make
from pipeline_rows import COG, HUNYUAN, LTX, POOLED, ROWS, WAN, WIDTH, WITH_IMAGE
from safetensors.numpy import save_file

CALL = {"height": 32, "width": 32, "num_frames": 9, "num_inference_steps": 8, "fps": 8}


@dataclass(frozen=True)
class TinyFolder:
    """A model that is saved.

    Args:
        pipeline: the title of a row in `pipeline_rows`, which has scheduler and denoiser.
        text: makes text encoders and tokenizers, by their names in the pipeline.
        layer: of the denoiser, and its width: what a LoRA changes.
        image, video: whether `generate` takes one.
        vae: a key of `VAES`.
    """

    pipeline: str
    text: Callable[[], dict[str, Any]]
    layer: tuple[str, int]
    vae: str
    image: bool = False
    video: bool = False
    call: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write the model, its usual call, and `lora.safetensors` in the folder."""
        row = next(row for row in ROWS if row.title == self.pipeline)
        pipe = row.build()
        with torch.random.fork_rng(devices=[]):
            parts = self.text() | {"vae": make(VAES[self.vae])}
        for seed, part in enumerate(parts.values()):
            if isinstance(part, torch.nn.Module):
                tiny.draw_weights(part, seed=10 + seed)
        type(pipe)(**pipe.components | parts, **row.settings).save_pretrained(folder)
        (folder / "generation_defaults.json").write_text(json.dumps(CALL | self.call))
        save_lora(folder / "lora.safetensors", *self.layer)


def save_lora(path: Path, layer: str, width: int, seed: int = 0) -> Path:
    """Write a LoRA of one layer, named as diffusers writes it."""
    draw = np.random.default_rng(seed)
    sides = {"lora_A": (4, width), "lora_B": (width, 4)}
    tensors = {f"transformer.{layer}.{side}.weight": draw.normal(size=shape).astype(np.float32)
               for side, shape in sides.items()}  # fmt: skip
    save_file(tensors, path)
    return path


def _umt5() -> dict[str, Any]:
    return {"text_encoder": tiny.text_encoder(WIDTH), "tokenizer": tiny.tiny_tokenizer()}


def _t5() -> dict[str, Any]:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=tiny.VOCABULARY, d_model=WIDTH, d_kv=8, d_ff=16, num_layers=1,
                      num_heads=2, pad_token_id=0, eos_token_id=1)  # fmt: skip
    return {"text_encoder": T5EncoderModel(config), "tokenizer": tiny.tiny_tokenizer()}


def _llama_and_clip() -> dict[str, Any]:
    from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel

    sizes: dict[str, Any] = {
        "vocab_size": tiny.VOCABULARY, "num_hidden_layers": 3, "num_attention_heads": 2,
        "intermediate_size": 16, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1,
    }  # fmt: skip
    clip = CLIPTextConfig(hidden_size=POOLED, projection_dim=POOLED, **sizes)
    return {
        "text_encoder": LlamaModel(LlamaConfig(hidden_size=WIDTH, **sizes)),
        "tokenizer": tiny.tiny_tokenizer(),
        "text_encoder_2": CLIPTextModel(clip),
        "tokenizer_2": tiny.tiny_tokenizer(),
    }


def _width(config: dict[str, Any]) -> int:
    return int(config["num_attention_heads"] * config["attention_head_dim"])


FOLDERS = {
    "wan-image": TinyFolder("WanImageToVideoPipeline", _umt5,
                            ("blocks.0.attn1.to_q", _width(WITH_IMAGE)), "wan", image=True),
    "wan": TinyFolder("WanPipeline", _umt5, ("blocks.0.attn1.to_q", _width(WAN)), "wan",
                      video=True, call={"max_sequence_length": 16}),
    "ltx": TinyFolder("LTXPipeline", _t5, ("transformer_blocks.0.attn1.to_q", _width(LTX)), "ltx",
                      image=True, call={"max_sequence_length": 16}),
    "cogvideox": TinyFolder("CogVideoXPipeline", _t5,
                            ("transformer_blocks.0.attn1.to_q", _width(COG)), "cogvideox",
                            video=True, call={"max_sequence_length": 16}),
    "hunyuan-video": TinyFolder("HunyuanVideoPipeline", _llama_and_clip,
                                ("transformer_blocks.0.attn.to_q", _width(HUNYUAN)), "hunyuan"),
}  # fmt: skip
TWO_EXPERTS = TinyFolder("WanPipeline (two experts)", _umt5,
                         ("blocks.0.attn1.to_q", _width(WAN)), "wan",
                         call={"max_sequence_length": 16})  # fmt: skip
