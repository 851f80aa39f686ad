"""The recipe of the miniature: its models, and what differs between machines (presets)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel
from world import BACKGROUNDS, COLORS, DEFAULT, MIX, MOTIONS, PLACES, SHAPES, SIZES

TEXT_LENGTH = 48
SHIFT = 2.0  # of the training's sigma, towards noise
COMPRESSION = 8  # pixels per latent cell; four frames per latent frame


@dataclass(frozen=True)
class Stage:
    """A part of the denoiser's curriculum: `share` of all iterations, batches of one size each."""

    share: float
    batch: int
    sizes: tuple[tuple[int, int, int], ...]  # (frames, height, width)


@dataclass(frozen=True)
class Preset:
    """Everything that differs between machines. Iterations, not seconds: a run is repeatable."""

    layers: int
    heads: int
    ffn: int
    patch: tuple[int, int, int]  # of the denoiser, in latent cells
    muon: float  # learning rate of Muon for the denoiser's matrices; 0: AdamW for everything
    channels: int  # of the latents
    vae_dim: int
    vae_mult: tuple[int, int, int]
    vae_blocks: int
    vae_muon: float
    vae_iterations: int
    vae_batch: int
    vae_size: tuple[int, int, int]  # crops of this size out of clips of the default size
    vae_tail: float  # share of its iterations, the last ones, whose crops keep every frame
    vae_lr: float
    vae_clips: int
    pool: int  # clips encoded at the default size
    pool_other: int  # at every other size
    iterations: int
    lr: float
    warm: int  # iterations of warm-up
    hold: float  # share of the iterations after which the learning rate begins to fall
    ema: float
    curriculum: tuple[Stage, ...]
    long_text: bool  # train text of 512 tokens too, the pipeline's own default
    compile: bool
    mix: tuple[int, int, int] = MIX  # weights of clips of one, two and three subjects
    hints: float = 0.0  # weight of what the world knows of its clips (hints.py)
    focus: float = 0.0  # what a latent cell within a subject weighs beyond one outside


PRESETS = {
    "gpu": Preset(
        layers=12, heads=6, ffn=640, patch=(1, 1, 1), muon=0.0,
        channels=48, vae_dim=40, vae_mult=(1, 2, 2), vae_blocks=1, vae_muon=0.0,
        vae_iterations=6000, vae_batch=16, vae_size=DEFAULT, vae_tail=0.0,
        vae_lr=2e-3, vae_clips=12_000,
        pool=50_000, pool_other=12_500, iterations=16_000, lr=1.2e-3,
        warm=320, hold=0.0, ema=0.9995,
        curriculum=(
            Stage(0.25, 512, ((9, 48, 48),)),
            Stage(0.75, 256, (DEFAULT,) * 6 + ((17, 96, 96), (33, 64, 64))),
        ),
        long_text=True, compile=True,
    ),
    "cpu": Preset(
        layers=5, heads=8, ffn=768, patch=(1, 2, 2), muon=5e-3,
        channels=24, vae_dim=32, vae_mult=(1, 1, 1), vae_blocks=0, vae_muon=3e-3,
        vae_iterations=2500, vae_batch=8, vae_size=(9, 32, 32), vae_tail=0.2,
        vae_lr=3e-3, vae_clips=3000,
        pool=12_000, pool_other=10_000, iterations=7500, lr=1.5e-3,
        warm=100, hold=0.6, ema=0.998,
        curriculum=(Stage(0.16, 64, ((9, 48, 48),)), Stage(0.84, 32, (DEFAULT,))),
        long_text=False, compile=False, mix=(35, 35, 30), hints=0.1, focus=2.0,
    ),
    "smoke": Preset(
        layers=2, heads=2, ffn=64, patch=(1, 2, 2), muon=5e-3,
        channels=8, vae_dim=8, vae_mult=(1, 1, 1), vae_blocks=0, vae_muon=3e-3,
        vae_iterations=4, vae_batch=2, vae_size=(9, 32, 32), vae_tail=0.5,
        vae_lr=1e-3, vae_clips=8,
        pool=8, pool_other=8, iterations=4, lr=1e-3,
        warm=1, hold=0.5, ema=0.9,
        curriculum=(Stage(0.5, 2, ((9, 32, 32),)), Stage(0.5, 2, (DEFAULT,))),
        long_text=False, compile=False, mix=(1, 1, 1), hints=0.1, focus=1.0,
    ),
}  # fmt: skip


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Word level: every word of the world, lower case, an end token, <unk> for the rest."""
    phrases = [*COLORS, *SHAPES, *MOTIONS.values(), *BACKGROUNDS, *SIZES]
    phrases += [place for places in PLACES.values() for place in places]
    phrases += ["a an on and the camera pans left right up down background ,"]
    words = sorted({word for phrase in phrases for word in phrase.split()})
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def build_text_encoder(vocab_size: int) -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=vocab_size, d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4,
        dropout_rate=0.0, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    return UMT5EncoderModel(config)


def build_vae(preset: Preset) -> AutoencoderKLWan:
    z = preset.channels
    return AutoencoderKLWan(
        base_dim=preset.vae_dim, z_dim=z, dim_mult=list(preset.vae_mult),
        num_res_blocks=preset.vae_blocks,
        temperal_downsample=[True, True], is_residual=True, patch_size=2,
        in_channels=12, out_channels=12, scale_factor_spatial=COMPRESSION, scale_factor_temporal=4,
        latents_mean=[0.0] * z, latents_std=[1.0] * z,
    )  # fmt: skip


def build_transformer(preset: Preset) -> WanTransformer3DModel:
    model = WanTransformer3DModel(
        patch_size=preset.patch, num_attention_heads=preset.heads, attention_head_dim=32,
        in_channels=preset.channels, out_channels=preset.channels,
        text_dim=128, freq_dim=128, ffn_dim=preset.ffn, num_layers=preset.layers,
        cross_attn_norm=True, rope_max_seq_len=64,
    )  # fmt: skip
    torch.nn.init.zeros_(model.proj_out.weight)
    torch.nn.init.zeros_(model.proj_out.bias)
    return model


def schedule(i: int, total: int, warm: int = 0, hold: float = 0.0) -> float:
    """Share of the peak learning rate: linear warm-up (else over 2 %), hold, cosine to 1 %."""
    warm = warm or max(1, total // 50)
    fallen = max(0.0, i / total - hold) / (1 - hold)
    return min(1.0, (i + 1) / warm) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * fallen)))
