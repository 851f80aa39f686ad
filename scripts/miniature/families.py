"""The families of models that are trained here: one row each, in `FAMILIES`.

In: a preset. Out: parts of the family's own diffusers classes, called exactly as the pipeline calls
them, so that training and use agree: tests/scripts/test_families.py compares them. The settings of
schedulers are those of the public checkpoints (`dit_accel/models/checkpoints.yaml`). Shapes as in
`family.py`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    WanPipeline,
    WanTransformer3DModel,
)
from family import HEAD, TEMPORAL, Family, kl_of, text_config, zero_last
from recipe import FPS, TEXT_LENGTH, TEXT_PADDED, TEXT_WIDTH, Preset, grid_of
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel


class Wan(Family):
    pipeline = WanPipeline
    blocks = "blocks"

    def vae(self, preset: Preset) -> AutoencoderKLWan:
        z = preset.channels
        return AutoencoderKLWan(
            base_dim=preset.vae_dim, z_dim=z, dim_mult=list(preset.vae_mult),
            num_res_blocks=preset.vae_blocks, temperal_downsample=[True, True], is_residual=True,
            patch_size=2, in_channels=12, out_channels=12,
            scale_factor_spatial=self.compression, scale_factor_temporal=TEMPORAL,
            latents_mean=[0.0] * z, latents_std=[1.0] * z,
        )  # fmt: skip

    def transformer(self, preset: Preset) -> WanTransformer3DModel:
        return zero_last(WanTransformer3DModel(
            patch_size=preset.patch, num_attention_heads=preset.heads, attention_head_dim=HEAD,
            in_channels=preset.channels, out_channels=preset.channels,
            text_dim=TEXT_WIDTH, freq_dim=128, ffn_dim=preset.ffn, num_layers=preset.layers,
            cross_attn_norm=True, rope_max_seq_len=64,
        ))  # fmt: skip

    def scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        return FlowMatchEulerDiscreteScheduler(shift=3.0)

    def text_encoder(self, words: int) -> UMT5EncoderModel:
        return UMT5EncoderModel(text_config(UMT5Config, words))

    def quiet(self, vae: AutoencoderKLWan) -> None:
        half = vae.config.z_dim
        vae.quant_conv.weight[half:] *= 0.01
        vae.quant_conv.bias[half:] = -6.0

    def autoencode(self, vae: AutoencoderKLWan, clip: Tensor) -> tuple[Tensor, Tensor]:
        """The decoding of `vae.decode` without its clamp."""
        from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

        posterior = vae.encode(clip).latent_dist
        vae.clear_cache()
        x = vae.post_quant_conv(posterior.sample())
        chunks = []
        for i in range(x.shape[2]):
            vae._conv_idx = [0]
            chunk = vae.decoder(
                x[:, :, i : i + 1],
                feat_cache=vae._feat_map,
                feat_idx=vae._conv_idx,
                first_chunk=i == 0,
            )
            chunks.append(chunk)
        vae.clear_cache()
        return unpatchify(torch.cat(chunks, 2), vae.config.patch_size), kl_of(posterior)

    def set_scale(self, vae: AutoencoderKLWan, mean: Tensor, std: Tensor) -> None:
        vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())

    def restore_scale(self, vae: AutoencoderKLWan, config: dict) -> None:
        names = ("latents_mean", "latents_std")
        vae.register_to_config(**{key: config[key] for key in names})

    def normalized(self, vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
        mean, std = (
            torch.tensor(values, device=latents.device).view(1, -1, 1, 1, 1)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        return (latents - mean) / std

    def read(self, encoder: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder reads only words; padding is zero."""
        length = ids.shape[1]
        ids = ids[:, :TEXT_LENGTH]
        mask = (ids != 0).long()
        states = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return F.pad(states * mask[..., None], (0, 0, 0, length - TEXT_LENGTH)), mask

    def predict(
        self, transformer: nn.Module, x: Tensor, timestep: Tensor, text: tuple[Tensor, Tensor]
    ) -> Tensor:
        return transformer(
            hidden_states=x, timestep=timestep, encoder_hidden_states=text[0], return_dict=False
        )[0]


class CogVideoX(Family):
    """V-prediction (arXiv 2202.00512), with the alphas and times of CogVideoX 2B.

    The target is sqrt(a) noise - sqrt(1 - a) x. Its mean squared error is the original's loss, a
    squared error of x with weight 1 / (1 - a). Levels are whole timesteps, all equally likely. Text
    and video are one sequence, and positions are counted from `TEXT_PADDED` words on. So the text
    has that length in training and in every call.
    """

    pipeline = CogVideoXPipeline

    def vae(self, preset: Preset) -> AutoencoderKLCogVideoX:
        levels = len(preset.vae_mult)
        return AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * levels,
            up_block_types=("CogVideoXUpBlock3D",) * levels,
            block_out_channels=[preset.vae_dim * mult for mult in preset.vae_mult],
            latent_channels=preset.channels, layers_per_block=preset.vae_blocks,
            norm_num_groups=8, temporal_compression_ratio=TEMPORAL, scaling_factor=1.0,
        )  # fmt: skip

    def transformer(self, preset: Preset) -> CogVideoXTransformer3DModel:
        frames, height, width = preset.size
        return zero_last(CogVideoXTransformer3DModel(
            num_attention_heads=preset.heads, attention_head_dim=HEAD,
            in_channels=preset.channels, out_channels=preset.channels, time_embed_dim=64,
            text_embed_dim=TEXT_WIDTH, num_layers=preset.layers, patch_size=preset.patch[1],
            sample_width=width // self.compression, sample_height=height // self.compression,
            sample_frames=frames, max_text_seq_length=TEXT_PADDED,
        ))  # fmt: skip

    def scheduler(self) -> CogVideoXDDIMScheduler:
        return CogVideoXDDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
            prediction_type="v_prediction", rescale_betas_zero_snr=True, set_alpha_to_one=True,
            timestep_spacing="trailing", snr_shift_scale=3.0,
        )  # fmt: skip

    def set_scale(self, vae: AutoencoderKLCogVideoX, mean: Tensor, std: Tensor) -> None:
        """Set one scale for all channels, and no mean: the pipeline supports no more."""
        scale = (mean.square() + std.square()).mean().rsqrt()
        vae.register_to_config(scaling_factor=float(scale))

    def restore_scale(self, vae: AutoencoderKLCogVideoX, config: dict) -> None:
        vae.register_to_config(scaling_factor=config["scaling_factor"])

    def normalized(self, vae: AutoencoderKLCogVideoX, latents: Tensor) -> Tensor:
        return latents * vae.config.scaling_factor

    def level(self, draw: torch.Generator, batch: int, size: Sequence[int]) -> Tensor:
        return torch.randint(1000, (batch,), generator=draw, device=draw.device)

    def mix(self, x: Tensor, noise: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        alpha = _alphas(level.device)[level].view(-1, 1, 1, 1, 1)
        root, other = alpha.sqrt(), (1 - alpha).sqrt()
        return root * x + other * noise, root * noise - other * x, level

    def predict(
        self, transformer: nn.Module, x: Tensor, timestep: Tensor, text: tuple[Tensor, Tensor]
    ) -> Tensor:
        predicted = transformer(
            hidden_states=x.transpose(1, 2), timestep=timestep,
            encoder_hidden_states=text[0], return_dict=False,
        )[0]  # fmt: skip
        return predicted.transpose(1, 2)


class LTX(Family):
    """Flow matching on packed latents, with sigma shifted by the number of tokens.

    Text that is padding is masked in cross-attention. A token is a latent cell, so cells are large,
    like those of LTX-Video with 32 pixels.
    """

    pipeline = LTXPipeline
    compression = 16

    def vae(self, preset: Preset) -> AutoencoderKLLTXVideo:
        """The VAE with the residual blocks of LTX-Video 0.9.5: plain blocks learn half as fast."""
        widths = [preset.vae_dim * mult for mult in preset.vae_mult]
        levels = len(widths)
        layers = [preset.vae_blocks] * (levels + 1)
        every = [True] * levels
        return AutoencoderKLLTXVideo(
            latent_channels=preset.channels, block_out_channels=[widths[0], *widths],
            decoder_block_out_channels=widths, layers_per_block=layers,
            decoder_layers_per_block=layers, down_block_types=["LTXVideo095DownBlock3D"] * levels,
            spatio_temporal_scaling=every, decoder_spatio_temporal_scaling=every,
            decoder_inject_noise=[False] * (levels + 1),
            downsample_type=["spatiotemporal"] * levels, upsample_residual=every,
            upsample_factor=[1] * levels, patch_size=self.compression // 2**levels, patch_size_t=1,
        )  # fmt: skip

    def transformer(self, preset: Preset) -> LTXVideoTransformer3DModel:
        width = preset.heads * HEAD
        return zero_last(LTXVideoTransformer3DModel(
            in_channels=preset.channels, out_channels=preset.channels,
            num_attention_heads=preset.heads, attention_head_dim=HEAD, cross_attention_dim=width,
            num_layers=preset.layers, caption_channels=TEXT_WIDTH,
        ))  # fmt: skip

    def scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        return FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024,
            max_image_seq_len=4096, shift_terminal=0.1,
        )  # fmt: skip

    def set_scale(self, vae: AutoencoderKLLTXVideo, mean: Tensor, std: Tensor) -> None:
        vae.latents_mean.copy_(mean)
        vae.latents_std.copy_(std)

    def normalized(self, vae: AutoencoderKLLTXVideo, latents: Tensor) -> Tensor:
        mean, std = (v.view(1, -1, 1, 1, 1) for v in (vae.latents_mean, vae.latents_std))
        return (latents - mean) / std

    def shift(self, size: Sequence[int]) -> float:
        """The pipeline's shift for this number of tokens."""
        from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift

        config = self.scheduler().config
        return math.exp(calculate_shift(
            math.prod(grid_of(size, self.compression)),
            config.base_image_seq_len, config.max_image_seq_len,
            config.base_shift, config.max_shift,
        ))  # fmt: skip

    def predict(
        self, transformer: nn.Module, x: Tensor, timestep: Tensor, text: tuple[Tensor, Tensor]
    ) -> Tensor:
        frames, height, width = x.shape[2:]
        predicted = transformer(
            hidden_states=x.flatten(2).mT, timestep=timestep, encoder_hidden_states=text[0],
            encoder_attention_mask=text[1], num_frames=frames, height=height, width=width,
            rope_interpolation_scale=(TEMPORAL / FPS, self.compression, self.compression),
            return_dict=False,
        )[0]  # fmt: skip
        return predicted.mT.unflatten(2, (frames, height, width))


@functools.cache
def _alphas(device: torch.device) -> Tensor:
    return CogVideoX().scheduler().alphas_cumprod.float().to(device)


FAMILIES: dict[str, Family] = {"wan": Wan(), "cogvideox": CogVideoX(), "ltx": LTX()}
