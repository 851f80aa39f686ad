"""Tiny pipelines of real diffusers classes, built in code: no file, no network, quick to call.

The weights are random, so a clip means nothing; shapes, hooks, branches and schedules are the real
ones. Building leaves the global random state as it was.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from dit_accel.core.generation import ClipSpec

TEXT_WIDTH = 32
VOCABULARY = 128
WORDS = [
    *("a", "the", "red", "green", "blue", "circle", "square", "triangle", "moving"),
    *("left", "right", "up", "down", "on", "plain", "gray", "background", "slowly", "fast"),
]

CALL: dict[str, Any] = {
    "prompt": "a red circle moving right",
    "negative_prompt": "blue square",
    "height": 16,
    "width": 16,
    "num_frames": 9,
    "num_inference_steps": 4,
    "guidance_scale": 4.0,
    "max_sequence_length": 16,
    "output_type": "np",
}
"""Arguments of the smallest sensible call (4 steps, 16x16, 9 frames); add a `generator`."""


def tiny_clips(steps: int, count: int) -> tuple[ClipSpec, ...]:
    """The clips of such calls, with the seeds 0, 1, ..."""
    return tuple(
        ClipSpec("a red circle moving right", "blue square", seed, steps, 4.0, 16, 16, 9, None, 16)
        for seed in range(count)
    )


def tiny_wan(
    seed: int = 0, transformer_2: bool = False, boundary_ratio: float = 0.5
) -> WanPipeline:
    """A Wan 2.1-like text-to-video pipeline on the CPU, float32, in eval mode.

    Args:
        seed: draws the weights; the same seed gives the same pipeline, wherever it is called.
        transformer_2: add a second denoiser for the low noise (Wan 2.2-like).
        boundary_ratio: the second one runs at timesteps below this share of 1000. With `CALL`'s
            four steps (1000, 857, 602, 8), 0.5 leaves it the last and weakest step only.

    Returns:
        A `WanPipeline` with its progress bar off: 3 blocks, 2 heads of 12, 16 latent channels.
    """
    with torch.random.fork_rng(devices=[]):  # constructors draw from the global state
        models = {
            "text_encoder": text_encoder(),
            "vae": _autoencoder(),
            "transformer": _transformer(),
            "transformer_2": _transformer() if transformer_2 else None,
        }
    for index, model in enumerate(models.values()):
        if model is not None:
            draw_weights(model, 10 * seed + index)
    pipe = WanPipeline(
        **models,
        tokenizer=tiny_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        boundary_ratio=boundary_ratio if transformer_2 else None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; words not in `WORDS` become `<unk>`. `</s>` ends, as in UMT5."""
    words = ["<pad>", "</s>", "<unk>", *WORDS]
    assert len(words) <= VOCABULARY
    tokenizer = Tokenizer(
        WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", words.index("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def text_encoder(width: int = TEXT_WIDTH) -> UMT5EncoderModel:
    """A text encoder whose embeddings have this width, with the random weights of its class."""
    config = UMT5Config(
        vocab_size=VOCABULARY,
        d_model=width,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
    )
    return UMT5EncoderModel(config)


def _transformer() -> WanTransformer3DModel:
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=TEXT_WIDTH,
        freq_dim=32,
        ffn_dim=32,
        num_layers=3,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )


def _autoencoder() -> AutoencoderKLWan:
    return AutoencoderKLWan(
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )


def draw_weights(model: torch.nn.Module, seed: int) -> None:
    """Draw all weights anew, zero-initialised ones too: a path that adds nothing hides faults.

    The libraries' own initialisation differs from version to version; this one does not.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if (weight == 1).all():
                continue  # the scales of norms
            width = weight[0].numel() if weight.ndim > 1 else 100
            weight.copy_(torch.randn(weight.shape, generator=generator) / math.sqrt(width))
    model.eval()
