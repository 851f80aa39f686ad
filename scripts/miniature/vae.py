"""Stage 1 of the miniature's training: the VAE, on clips rendered on the fly."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import AutoencoderKLWan
from muon import Muon, Together, split
from recipe import Preset, build_vae, schedule
from run import Run, graphed
from world import DEFAULT, TRAIN_STREAM, render, scene_at


def autoencode(vae: AutoencoderKLWan, clip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Reconstruction without the final clamp (which has no gradient), and the KL in nats/value."""
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
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    return unpatchify(torch.cat(chunks, 2), vae.config.patch_size), kl


def train_vae(preset: Preset, run: Run) -> AutoencoderKLWan:
    vae = build_vae(preset).to(run.device)
    if run.finished("vae", vae):
        return vae
    with torch.no_grad():  # almost no posterior noise to begin with
        half = vae.config.z_dim
        vae.quant_conv.weight[half:] *= 0.01
        vae.quant_conv.bias[half:] = -6.0
    gpu = run.device.type == "cuda"
    matrices, rest = split(vae, preset.vae_muon)
    rates = [torch.tensor(0.0, device=run.device) for _ in range(2)]
    optimizer = Together(
        torch.optim.AdamW(
            rest, lr=rates[0], betas=(0.9, 0.99), weight_decay=0, capturable=gpu, foreach=gpu
        ),
        *([Muon(matrices, rates[1])] if matrices else []),
    )
    start = run.resume("vae", vae, optimizer)
    optimizer.set_lr(*rates)
    clips = render_pool(preset, run)
    step = vae_step(vae, optimizer, run)
    for i in range(start, preset.vae_iterations):
        draw = torch.Generator(run.device).manual_seed(i)
        size, batch, share = vae_stage(preset, i)
        pick = torch.randint(len(clips), (batch,), generator=draw, device=run.device)
        for rate, peak in zip(rates, (preset.vae_lr, preset.vae_muon), strict=True):
            rate.fill_(peak * share)
        mse = step(crop(clips[pick], size, draw).float() / 127.5 - 1)
        run.tick(
            "vae", i, mse,
            lambda: {"model": vae.state_dict(), "optimizer": optimizer.state_dict()},
        )  # fmt: skip
    measure_latents(vae, clips, run)
    run.finish("vae", vae)
    return vae


def vae_stage(preset: Preset, i: int) -> tuple[tuple[int, int, int], int, float]:
    """Iteration `i`'s size, batch and share of the peak learning rate.

    Short crops first. The decoder hands features on from frame to frame and drifts over frames
    later than it ever saw, so the tail has all frames, fewer crops at a time, and a lower peak.
    """
    frames, height, width = preset.vae_size
    tail = round(preset.vae_iterations * preset.vae_tail)
    head = preset.vae_iterations - tail
    if i < head:
        return preset.vae_size, preset.vae_batch, schedule(i, head)
    batch = max(1, round(preset.vae_batch * frames / DEFAULT[0]))
    return (DEFAULT[0], height, width), batch, 0.3 * schedule(i - head, tail)


def crop(clips: torch.Tensor, size: tuple[int, int, int], draw: torch.Generator) -> torch.Tensor:
    """The same random window (frames, height, width) of every clip; all of it if as large."""
    for axis, (whole, part) in enumerate(zip(clips.shape[2:], size, strict=True), 2):
        if part < whole:
            first = int(torch.randint(whole - part + 1, (), generator=draw, device=draw.device))
            clips = clips.narrow(axis, first, part)
    return clips


def render_pool(preset: Preset, run: Run) -> torch.Tensor:
    """Clips for the VAE, uint8 (N, 3, T, H, W); rendered again on every start, from the seed."""
    parts = []
    for first in range(0, preset.vae_clips, 250):
        scenes = [
            scene_at(TRAIN_STREAM, first + j) for j in range(min(250, preset.vae_clips - first))
        ]
        clips = render(scenes, *DEFAULT, run.device)
        parts.append(((clips + 1) * 127.5).round().to(torch.uint8))
    run.say(f"rendered {preset.vae_clips} clips for the VAE")
    return torch.cat(parts)


def vae_step(
    vae: AutoencoderKLWan, optimizer: Together, run: Run
) -> Callable[[torch.Tensor], torch.Tensor]:
    """One optimiser step: clips in [-1, 1] -> mean squared error. A CUDA graph on a GPU."""

    def step(clip: torch.Tensor) -> torch.Tensor:
        with run.autocast():
            output, kl = autoencode(vae, clip)
        error = output.float() - clip
        mse = error.square().mean()
        loss = mse + 0.2 * error.abs().mean() + 1e-6 * kl.float()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0, foreach=True)
        optimizer.step()
        return mse.detach()

    return graphed(step, run.device)


@torch.no_grad()
def measure_latents(vae: AutoencoderKLWan, clips: torch.Tensor, run: Run) -> None:
    """Put the latents' mean and standard deviation into the VAE's configuration."""
    parts = [vae.encode(c.float() / 127.5 - 1).latent_dist.mean for c in clips[:512].split(16)]
    values = torch.cat(parts).transpose(0, 1).flatten(1)
    mean, std = values.mean(1).tolist(), values.std(1).clamp_min(1e-4).tolist()
    vae.register_to_config(latents_mean=mean, latents_std=std)
