"""The part of training that depends on the family of models: the class `Family`.

In: a preset. Out: the parts of a pipeline and their training: how a clip becomes latents, how much
noise is added, what the denoiser predicts, and how it is called. This module has flow matching;
`families.py` has the families.

Shapes: clips (B, 3, T, H, W) in [-1, 1]; latents x and noise (B, C, F, h, w); levels of noise (B,).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from recipe import SHIFT, TEXT_WIDTH, Preset
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel, UMT5Config

HEAD = 32  # channels of a head, in every family
TEMPORAL = 4  # frames in a latent frame, after the first


class Family:
    """Flow matching (arXiv 2210.02747): x_s = (1 - s) x + s noise, target noise - x."""

    pipeline: type
    blocks = "transformer_blocks"
    guidance = 4.0
    compression = 8  # pixels along the side of a latent cell

    def vae(self, preset: Preset) -> nn.Module:
        raise NotImplementedError

    def transformer(self, preset: Preset) -> nn.Module:
        """A transformer whose last layer is zero."""
        raise NotImplementedError

    def scheduler(self) -> object:
        raise NotImplementedError

    def text_encoder(self, words: int) -> nn.Module:
        """A text encoder for a vocabulary of this number of words."""
        return T5EncoderModel(text_config(T5Config, words))

    def quiet(self, vae: nn.Module) -> None:
        """Begin with almost no posterior noise. LTX has one log variance for all channels."""
        last = vae.encoder.conv_out.conv
        half = vae.config.latent_channels
        last.weight[half:] *= 0.01
        last.bias[half:] = -6.0

    def autoencode(self, vae: nn.Module, clip: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction without a clamp (which has no gradient), and the KL in nats/value."""
        posterior = vae.encode(clip).latent_dist
        return vae.decode(posterior.sample()).sample, kl_of(posterior)

    def set_scale(self, vae: nn.Module, mean: Tensor, std: Tensor) -> None:
        """Store the channels' mean and standard deviation where the pipeline expects them."""
        raise NotImplementedError

    def restore_scale(self, vae: nn.Module, config: dict) -> None:
        """The same, from a checkpoint's configuration. Buffers are restored with the weights."""

    def normalized(self, vae: nn.Module, latents: Tensor) -> Tensor:
        """The latents as the denoiser gets them."""
        raise NotImplementedError

    def level(self, draw: torch.Generator, batch: int, size: Sequence[int]) -> Tensor:
        """Sigma in (0, 1), a shifted logit-normal (arXiv 2403.03206 §3.1)."""
        sigma = torch.sigmoid(torch.randn(batch, generator=draw, device=draw.device))
        shift = self.shift(size)
        return shift * sigma / (1 + (shift - 1) * sigma)

    def shift(self, size: Sequence[int]) -> float:
        """The shift of training's sigma, towards noise."""
        return SHIFT

    def mix(self, x: Tensor, noise: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy latents, the denoiser's target, and its timestep."""
        s = level.view(-1, 1, 1, 1, 1)
        return (1 - s) * x + s * noise, noise - x, level * 1000

    def read(self, encoder: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
        """States (B, L, width) of padded ids (B, L), and the mask of words.

        Padding is read like words, as these pipelines give the encoder no mask.
        """
        return encoder(input_ids=ids).last_hidden_state, (ids != 0).long()

    def predict(
        self, transformer: nn.Module, x: Tensor, timestep: Tensor, text: tuple[Tensor, Tensor]
    ) -> Tensor:
        """The denoiser's prediction (B, C, F, h, w) of noisy latents of that shape."""
        raise NotImplementedError


def kl_of(posterior) -> Tensor:
    return 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()


def zero_last(model: nn.Module) -> nn.Module:
    torch.nn.init.zeros_(model.proj_out.weight)
    torch.nn.init.zeros_(model.proj_out.bias)
    return model


def text_config(kind: Callable, words: int) -> T5Config | UMT5Config:
    return kind(
        vocab_size=words, d_model=TEXT_WIDTH, d_kv=32, d_ff=256, num_layers=2, num_heads=4,
        dropout_rate=0.0, feed_forward_proj="gated-gelu",
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
