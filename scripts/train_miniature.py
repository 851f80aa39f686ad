"""Train the embedded miniature `assets/mini-wan/` from nothing: VAE, latents once, denoiser.

    python scripts/train_miniature.py --preset gpu --out assets/mini-wan      # minutes on one GPU
    python scripts/train_miniature.py --preset cpu --out out/mini-wan-cpu  # hours on a CPU core

Every class is a stock one (`AutoencoderKLWan`, `UMT5EncoderModel`, `WanTransformer3DModel`), so
that the result loads with `WanPipeline.from_pretrained(out)`. Data is the procedural world of
`miniature_world.py`; nothing is downloaded. The run is seeded; `--work` keeps checkpoints, and the
same command goes on from the last one. Beside the model it writes the loss curve (CSV and PNG) and
a sample sheet.

`--start FOLDER` begins from a trained miniature (its VAE stays as it is), and `--unsaid SHARE`
leaves the colours out of a share of captions, so that there is something for references to tell:

    python scripts/train_miniature.py --preset gpu --start assets/mini-wan --unsaid 0.3 \\
        --iterations 3000 --lr 3e-4 --out out/mini-wan-unsaid --work .run/unsaid

Stages: (1) the VAE on clips rendered on the fly, L1 + L2 and a little KL; (2) pools of normalised
latents at several sizes, once; (3) denoiser and text encoder together, flow matching
(x_t = (1 - sigma) x + sigma noise, target noise - x, arXiv 2210.02747), sigma drawn as a shifted
logit-normal (arXiv 2403.03206 §3.1), 10 % empty captions for classifier-free guidance, an EMA.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from miniature_muon import Muon, Together
from miniature_output import draw_curve, draw_sheet, export
from miniature_recipe import (
    COMPRESSION,
    PRESETS,
    TEXT_LENGTH,
    Preset,
    build_text_encoder,
    build_tokenizer,
    build_transformer,
    build_vae,
)
from miniature_run import Run, graphed, multiplies_bfloat16
from miniature_world import COLORS, DEFAULT, TRAIN_STREAM, render, scene_at
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

# --- stage 1: the VAE --------------------------------------------------------------


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


def split(
    model: torch.nn.Module, muon: float
) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """Parameters for Muon (matrices and convolutions, no embeddings, no last layer); the others."""
    outer = ("shared", "embed_tokens", "relative_attention_bias", "proj_out")
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        inner = min(parameter.flatten(1).shape) > 1 if parameter.ndim >= 2 else False
        inner = inner and not any(part in name for part in outer)
        (matrices if muon and inner else rest).append(parameter)
    return matrices, rest


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


# --- stage 2: latents, once --------------------------------------------------------------


@dataclass
class Pool:
    """Normalised latents of one size (N, C, F, h, w) in float16 and their captions' rows."""

    latents: torch.Tensor
    rows: torch.Tensor


@torch.no_grad()
def encode_pools(vae: AutoencoderKLWan, preset: Preset, run: Run) -> tuple[dict, list[str]]:
    sizes = list(dict.fromkeys(size for stage in preset.curriculum for size in stage.sizes))
    mean = torch.tensor(vae.config.latents_mean, device=run.device).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std, device=run.device).view(1, -1, 1, 1, 1)
    pools, captions = {}, []
    first = preset.vae_clips
    batch = 128 if run.device.type == "cuda" else 8
    for size in sizes:
        frames, height, width = size
        count = preset.pool if size == DEFAULT else preset.pool_other
        path = run.work / f"latents-{frames}x{height}x{width}.pt"
        scenes = [scene_at(TRAIN_STREAM, first + i, width / height) for i in range(count)]
        first += count
        if path.exists():
            latents = torch.load(path, map_location=run.device)
        else:
            parts = []
            for i in range(0, count, batch):
                with run.autocast():
                    clip = render(scenes[i : i + batch], frames, height, width, run.device)
                    parts.append(((vae.encode(clip).latent_dist.mean - mean) / std).half())
            latents = torch.cat(parts)
            if run.device.type != "cuda":  # on a GPU it is faster to encode again
                torch.save(latents, path)
        rows = torch.arange(len(captions), len(captions) + count, device=run.device)
        pools[size] = Pool(latents, rows)
        captions += [scene.caption() for scene in scenes]
        run.say(f"pool {size}: {count} clips, latent std {latents[:500].float().std():.3f}")
    return pools, captions


# --- stage 3: the denoiser --------------------------------------------------------------


def train_denoiser(
    preset: Preset,
    run: Run,
    pools: dict,
    captions: list[str],
    tokenizer: PreTrainedTokenizerFast,
    start_from: WanPipeline | None = None,
    unsaid: float = 0.0,
) -> tuple[WanTransformer3DModel, UMT5EncoderModel]:
    """Begin from another miniature's weights, where one is given.

    `unsaid`: share of the captions that are read without their colours.
    """
    parts = {
        "transformer": build_transformer(preset),
        "text_encoder": build_text_encoder(len(tokenizer)),
    }
    if start_from is not None:
        for name, part in parts.items():
            part.load_state_dict(getattr(start_from, name).float().state_dict())
    model = torch.nn.ModuleDict(parts).to(run.device)
    ema = [p.detach().clone() for p in model.parameters()]
    if run.finished("denoiser", model):
        return model["transformer"], model["text_encoder"]
    ids, empty = ids_of(captions, tokenizer).to(run.device), tokenizer("").input_ids
    bare = (
        ids_of([without_colors(c) for c in captions], tokenizer).to(run.device) if unsaid else ids
    )
    gpu = run.device.type == "cuda"
    matrices, others = split(model, preset.muon)
    decay = [p for p in others if p.ndim >= 2]
    rest = [p for p in others if p.ndim < 2]
    rates = [torch.tensor(0.0, device=run.device) for _ in range(2)]
    dtype = torch.bfloat16 if multiplies_bfloat16(run.device) else torch.float32
    optimizer = Together(
        torch.optim.AdamW(
            [{"params": decay, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}],
            lr=rates[0], betas=(0.9, 0.98), fused=gpu, capturable=gpu,
        ),
        *([Muon(matrices, rates[1], weight_decay=0.01, dtype=dtype)] if matrices else []),
    )  # fmt: skip
    start = run.resume("denoiser", model, optimizer, ema)
    optimizer.set_lr(*rates)
    step = denoiser_step(model, optimizer, run)
    if preset.compile:
        model["transformer"].compile_repeated_blocks(fullgraph=True, dynamic=False)
    for i, size, batch in curriculum(preset):
        if i < start:
            continue
        draw = torch.Generator(run.device).manual_seed(i)
        pool = pools[size]
        pick = torch.randint(len(pool.latents), (batch,), generator=draw, device=run.device)
        x = pool.latents[pick].float()
        text = ids[pool.rows[pick]].clone()
        if unsaid:
            left = torch.rand(batch, generator=draw, device=run.device) < unsaid
            text[left] = bare[pool.rows[pick[left]]]
        dropped = torch.rand(batch, generator=draw, device=run.device) < 0.1
        text[dropped] = torch.tensor(empty + [0] * (TEXT_LENGTH - len(empty)), device=run.device)
        share = schedule(i, preset.iterations, preset.warm, preset.hold)
        for rate, peak in zip(rates, (preset.lr, preset.muon), strict=True):
            rate.fill_(peak * share)
        length = 512 if preset.long_text and size == DEFAULT and i % 8 == 4 else 64
        text = F.pad(text, (0, length - TEXT_LENGTH))
        sigma = torch.sigmoid(torch.randn(batch, generator=draw, device=run.device))
        sigma = 2.0 * sigma / (1 + sigma)  # shift 2: towards noise
        noise = torch.randn(x.shape, generator=draw, device=run.device)
        loss = step(x, text, sigma, noise)
        torch._foreach_lerp_(ema, list(model.parameters()), 1 - min(preset.ema, (1 + i) / (10 + i)))
        run.tick(
            "denoiser", i, loss,
            lambda: {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema},
        )  # fmt: skip
    with torch.no_grad():
        for parameter, average in zip(model.parameters(), ema, strict=True):
            parameter.copy_(average)
    run.finish("denoiser", model)
    return model["transformer"], model["text_encoder"]


def ids_of(captions: list[str], tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """Padded token ids (N, TEXT_LENGTH)."""
    return tokenizer(
        captions, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
    ).input_ids


def without_colors(caption: str) -> str:
    """`an orange ring` -> `a ring`; grounds keep theirs."""
    words = re.sub(rf"\b({'|'.join(COLORS)}) (?!background)", "", caption)
    return re.sub(r"\ban (?![aeiou])", "a ", words)


def denoiser_step(
    model: torch.nn.ModuleDict, optimizer: Together, run: Run
) -> Callable[..., torch.Tensor]:
    """One optimiser step of flow matching -> the mean squared error of the predicted flow.

    Latents and noise (B, C, F, h, w), padded text ids (B, L) of which the first TEXT_LENGTH are
    read, sigma (B,) in (0, 1).
    """

    def step(
        x: torch.Tensor, text: torch.Tensor, sigma: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        with run.autocast_matrices():
            s = sigma.view(-1, 1, 1, 1, 1)
            ids = text[:, :TEXT_LENGTH]
            mask = (ids != 0).long()
            states = model["text_encoder"](input_ids=ids, attention_mask=mask).last_hidden_state
            states = F.pad(states * mask[..., None], (0, 0, 0, text.shape[1] - TEXT_LENGTH))
            flow = model["transformer"](
                hidden_states=(1 - s) * x + s * noise,
                timestep=sigma * 1000,
                encoder_hidden_states=states,
                return_dict=False,
            )[0]
            loss = F.mse_loss(flow.float(), noise - x)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        return loss.detach()

    return step


def curriculum(preset: Preset) -> Iterator[tuple[int, tuple[int, int, int], int]]:
    """(iteration, size, batch) of the whole run; large clips in smaller batches."""
    first = 0
    for stage in preset.curriculum:
        count = round(stage.share * preset.iterations)
        sizes = itertools.cycle(stage.sizes)
        for i in range(first, first + count):
            size = next(sizes)
            yield (
                i,
                size,
                max(2, round(stage.batch * min(1.0, tokens_of(DEFAULT) / tokens_of(size)))),
            )
        first += count


def tokens_of(size: tuple[int, int, int]) -> int:
    frames, height, width = size
    return ((frames - 1) // 4 + 1) * (height // COMPRESSION) * (width // COMPRESSION)


def schedule(i: int, total: int, warm: int = 0, hold: float = 0.0) -> float:
    """Share of the peak learning rate: linear warm-up (else over 2 %), hold, cosine to 1 %."""
    warm = warm or max(1, total // 50)
    fallen = max(0.0, i / total - hold) / (1 - hold)
    return min(1.0, (i + 1) / warm) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * fallen)))


# --- the command --------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--preset", choices=sorted(PRESETS), default="gpu" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--out", type=Path, default=Path("assets/mini-wan"))
    parser.add_argument("--work", type=Path, default=Path(".run/miniature"), help="checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--save-every", type=float, default=120.0, help="seconds between checkpoints"
    )
    parser.add_argument("--sheet-rows", type=int, default=12)
    for name in ("vae_iterations", "iterations", "pool", "lr"):
        kind = float if name == "lr" else int
        parser.add_argument("--" + name.replace("_", "-"), type=kind, help="override the preset")
    parser.add_argument("--start", type=Path, help="a miniature to begin from; its VAE is kept")
    parser.add_argument("--unsaid", type=float, default=0.0, help="share of captions, no colours")
    args = parser.parse_args()

    overrides = {
        key: value
        for key in ("vae_iterations", "iterations", "pool", "lr")
        if (value := getattr(args, key))
    }
    preset = dataclasses.replace(PRESETS[args.preset], **overrides)
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    torch.set_float32_matmul_precision("high")
    torch.set_flush_denormal(True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = Run(args.work, device, args.save_every)
    tokenizer = build_tokenizer()
    start = WanPipeline.from_pretrained(args.start) if args.start else None
    vae = start.vae.to(device) if start else train_vae(preset, run)
    vae = vae.eval().requires_grad_(False)
    pools, captions = encode_pools(vae, preset, run)
    transformer, text_encoder = train_denoiser(
        preset, run, pools, captions, tokenizer, start, args.unsaid
    )
    pipe = export(args.out, run, vae, transformer, text_encoder, tokenizer)
    draw_curve(args.out.parent / f"{args.out.name}-loss.png", run.curve)
    draw_sheet(args.out.parent / f"{args.out.name}-sheet.png", pipe, device, args.sheet_rows)


if __name__ == "__main__":
    main()
