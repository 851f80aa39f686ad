"""Stage 1 of the miniature's training: the VAE, on clips rendered on the fly."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from families import FAMILIES
from family import Family
from muon import Muon, Together, split
from recipe import Preset, schedule
from run import Run, graphed
from torch import nn
from world import TRAIN_STREAM
from worlds import WORLDS


def train_vae(preset: Preset, run: Run) -> nn.Module:
    family = FAMILIES[preset.family]
    vae = family.vae(preset).to(run.device)
    if run.finished("vae", vae):
        family.restore_scale(vae, run.config)
        return vae
    with torch.no_grad():
        family.quiet(vae)
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
    step = vae_step(family, vae, optimizer, run)
    run.begin("vae")
    for i in itertools.count(start):
        position = run.position("vae", i, preset.vae_iterations)
        if position >= preset.vae_iterations:
            break
        torch.manual_seed(i)  # seeds the posterior's noise, so that a resumed run is the same
        draw = torch.Generator(run.device).manual_seed(i)
        size, batch, share = vae_stage(preset, position)
        pick = torch.randint(len(clips), (batch,), generator=draw, device=run.device)
        for rate, peak in zip(rates, (preset.vae_lr, preset.vae_muon), strict=True):
            rate.fill_(peak * share)
        mse = step(crop(clips[pick], size, draw).float() / 127.5 - 1)
        run.tick(
            "vae", i, mse,
            lambda: {"model": vae.state_dict(), "optimizer": optimizer.state_dict()},
        )  # fmt: skip
    measure_latents(family, vae, clips)
    run.finish("vae", vae)
    return vae


def vae_stage(preset: Preset, position: float) -> tuple[tuple[int, int, int], int, float]:
    """Size, batch and share of the peak learning rate after this number of iterations.

    Short crops come first. The decoder passes features from frame to frame, and drifts over frames
    later than those in training. So the tail has all frames, fewer crops at a time, and a lower
    peak.
    """
    frames, height, width = preset.vae_size
    tail = round(preset.vae_iterations * preset.vae_tail)
    head = preset.vae_iterations - tail
    if position < head:
        return preset.vae_size, preset.vae_batch, schedule(position, head)
    every = preset.size[0]
    batch = max(1, round(preset.vae_batch * frames / every))
    return (every, height, width), batch, 0.3 * schedule(position - head, tail)


def crop(clips: torch.Tensor, size: tuple[int, int, int], draw: torch.Generator) -> torch.Tensor:
    """The same random window (frames, height, width) of every clip; the whole clip if it is not
    larger."""
    for axis, (whole, part) in enumerate(zip(clips.shape[2:], size, strict=True), 2):
        if part < whole:
            first = int(torch.randint(whole - part + 1, (), generator=draw, device=draw.device))
            clips = clips.narrow(axis, first, part)
    return clips


def render_pool(preset: Preset, run: Run) -> torch.Tensor:
    """Clips for the VAE, uint8 (N, 3, T, H, W); rendered again on every start, from the seed."""
    world, parts = WORLDS[preset.world], []
    for first in range(0, preset.vae_clips, 250):
        scenes = [
            world.scene_at(TRAIN_STREAM, first + j)
            for j in range(min(250, preset.vae_clips - first))
        ]
        clips = world.render(scenes, *preset.size, run.device)
        parts.append(((clips + 1) * 127.5).round().to(torch.uint8))
    run.say(f"rendered {preset.vae_clips} clips for the VAE")
    return torch.cat(parts)


def vae_step(
    family: Family, vae: nn.Module, optimizer: Together, run: Run
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Make one optimiser step on clips in [-1, 1]. Returns the mean squared error. On a GPU it is a
    CUDA graph."""

    def step(clip: torch.Tensor) -> torch.Tensor:
        with run.autocast():
            output, kl = family.autoencode(vae, clip)
        error = output.float() - clip
        mse = error.square().mean()
        loss = mse + 0.2 * error.abs().mean() + 1e-6 * kl.float()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0, foreach=True)
        optimizer.step()
        return mse.detach()

    return graphed(step, run)


@torch.no_grad()
def measure_latents(family: Family, vae: nn.Module, clips: torch.Tensor) -> None:
    """Store the mean and standard deviation of its latents in the VAE."""
    parts = [vae.encode(c.float() / 127.5 - 1).latent_dist.mean for c in clips[:512].split(16)]
    values = torch.cat(parts).transpose(0, 1).flatten(1)
    family.set_scale(vae, values.mean(1), values.std(1).clamp_min(1e-4))
