"""Train the embedded miniature `assets/mini-wan/` from nothing: VAE, latents once, denoiser.

    python scripts/train_miniature.py --preset gpu --out assets/mini-wan    # minutes on one GPU
    python scripts/train_miniature.py --preset cpu --out out/mini-wan       # hours on two CPU cores

Every class is a stock one (`AutoencoderKLWan`, `UMT5EncoderModel`, `WanTransformer3DModel`), so
that the result loads with `WanPipeline.from_pretrained(out)`. Data is the procedural world of
`miniature_world.py`; nothing is downloaded. The run is seeded; `--work` keeps checkpoints, and the
same command goes on from the last one. Beside the model it writes the loss curve (CSV and PNG) and
a sample sheet.

Stages: (1) the VAE on clips rendered on the fly, L1 + L2 and a little KL; (2) pools of normalised
latents at several sizes, once; (3) denoiser and text encoder together, flow matching
(x_t = (1 - sigma) x + sigma noise, target noise - x, arXiv 2210.02747), sigma drawn as a shifted
logit-normal (arXiv 2403.03206 §3.1), 10 % empty captions for classifier-free guidance, an EMA.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from miniature_world import (
    BACKGROUNDS,
    COLORS,
    MOTIONS,
    PLACES,
    SHAPES,
    SIZES,
    render,
    scene_at,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

TRAIN_STREAM, SHEET_STREAM = 1, 2  # check_miniature.py uses a third: no scene is seen in training
TEXT_LENGTH = 48
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
    vae_dim: int
    vae_iterations: int
    vae_batch: int
    vae_size: tuple[int, int, int]
    vae_lr: float
    vae_clips: int
    pool: int
    iterations: int
    lr: float
    ema: float
    curriculum: tuple[Stage, ...]
    compile: bool


DEFAULT = (17, 64, 64)
PRESETS = {
    "gpu": Preset(
        layers=12, heads=6, ffn=640, vae_dim=40,
        vae_iterations=6000, vae_batch=16, vae_size=DEFAULT, vae_lr=2e-3, vae_clips=12_000,
        pool=40_000, iterations=7000, lr=1.2e-3, ema=0.9995,
        curriculum=(
            Stage(0.25, 512, ((9, 48, 48),)),
            Stage(0.75, 256, (DEFAULT,) * 6 + ((17, 96, 96), (33, 64, 64))),
        ),
        compile=True,
    ),
    "cpu": Preset(
        layers=8, heads=4, ffn=512, vae_dim=24,
        vae_iterations=3000, vae_batch=4, vae_size=(9, 48, 48), vae_lr=2e-3, vae_clips=3000,
        pool=3000, iterations=14_000, lr=1.5e-3, ema=0.9995,
        curriculum=(
            Stage(0.45, 24, ((9, 32, 32),)),
            Stage(0.3, 12, ((9, 48, 48), (17, 48, 48))),
            Stage(0.25, 8, (DEFAULT,)),
        ),
        compile=False,
    ),
    "refine": Preset(  # the GPU's model, carried on with --init on two CPU cores
        layers=12, heads=6, ffn=640, vae_dim=40,
        vae_iterations=0, vae_batch=4, vae_size=DEFAULT, vae_lr=0.0, vae_clips=0,
        pool=1600, iterations=1500, lr=6e-4, ema=0.995,
        curriculum=(Stage(1.0, 8, (DEFAULT,)),),
        compile=False,
    ),
    "smoke": Preset(
        layers=2, heads=2, ffn=64, vae_dim=8,
        vae_iterations=4, vae_batch=2, vae_size=(9, 32, 32), vae_lr=1e-3, vae_clips=8,
        pool=8, iterations=4, lr=1e-3, ema=0.9,
        curriculum=(Stage(0.5, 2, ((9, 32, 32),)), Stage(0.5, 2, (DEFAULT,))),
        compile=False,
    ),
}  # fmt: skip


# --- models ---------------------------------------------------------------------------------


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
    return AutoencoderKLWan(
        base_dim=preset.vae_dim, z_dim=48, dim_mult=[1, 2, 2], num_res_blocks=1,
        temperal_downsample=[True, True], is_residual=True, patch_size=2,
        in_channels=12, out_channels=12, scale_factor_spatial=COMPRESSION, scale_factor_temporal=4,
        latents_mean=[0.0] * 48, latents_std=[1.0] * 48,
    )  # fmt: skip


def build_transformer(preset: Preset) -> WanTransformer3DModel:
    model = WanTransformer3DModel(
        patch_size=(1, 1, 1), num_attention_heads=preset.heads, attention_head_dim=32,
        in_channels=48, out_channels=48, text_dim=128, freq_dim=128, ffn_dim=preset.ffn,
        num_layers=preset.layers, cross_attn_norm=True, rope_max_seq_len=64,
    )  # fmt: skip
    torch.nn.init.zeros_(model.proj_out.weight)
    torch.nn.init.zeros_(model.proj_out.bias)
    return model


# --- stage 1: the VAE -----------------------------------------------------------------------


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
    if run.init is not None:
        return AutoencoderKLWan.from_pretrained(run.init / "vae").to(run.device)
    vae = build_vae(preset).to(run.device)
    if run.finished("vae", vae):
        return vae
    with torch.no_grad():  # almost no posterior noise to begin with
        half = vae.config.z_dim
        vae.quant_conv.weight[half:] *= 0.01
        vae.quant_conv.bias[half:] = -6.0
    lr = torch.tensor(0.0, device=run.device)
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0,
        capturable=run.device.type == "cuda", foreach=run.device.type == "cuda",
    )  # fmt: skip
    start = run.resume("vae", vae, optimizer)
    clips = render_pool(preset, run)
    step = vae_step(vae, optimizer, preset, run)
    for i in range(start, preset.vae_iterations):
        draw = torch.Generator(run.device).manual_seed(i)
        pick = torch.randint(len(clips), (preset.vae_batch,), generator=draw, device=run.device)
        lr.fill_(preset.vae_lr * schedule(i, preset.vae_iterations))
        mse = step(clips[pick].float() / 127.5 - 1)
        run.tick(
            "vae", i, mse,
            lambda: {"model": vae.state_dict(), "optimizer": optimizer.state_dict()},
        )  # fmt: skip
    measure_latents(vae, clips, run)
    run.finish("vae", vae)
    return vae


def render_pool(preset: Preset, run: Run) -> torch.Tensor:
    """Clips for the VAE, uint8 (N, 3, T, H, W); rendered again on every start, from the seed."""
    parts = []
    for first in range(0, preset.vae_clips, 250):
        scenes = [
            scene_at(TRAIN_STREAM, first + j) for j in range(min(250, preset.vae_clips - first))
        ]
        clips = render(scenes, *preset.vae_size, run.device)
        parts.append(((clips + 1) * 127.5).round().to(torch.uint8))
    run.say(f"rendered {preset.vae_clips} clips for the VAE")
    return torch.cat(parts)


def vae_step(
    vae: AutoencoderKLWan, optimizer: torch.optim.Optimizer, preset: Preset, run: Run
) -> Callable[[torch.Tensor], torch.Tensor]:
    """One optimiser step: clips in [-1, 1] -> mean squared error. A CUDA graph on a GPU.

    The VAE runs chunk by chunk through small kernels, so that launching them costs more than
    running them; a graph launches once.
    """

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

    if run.device.type != "cuda":
        return step
    torch.backends.cudnn.benchmark = True
    static = torch.zeros(preset.vae_batch, 3, *preset.vae_size, device=run.device)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(static.normal_())
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(static)

    def replay(clip: torch.Tensor) -> torch.Tensor:
        static.copy_(clip)
        graph.replay()
        return captured

    return replay


@torch.no_grad()
def measure_latents(vae: AutoencoderKLWan, clips: torch.Tensor, run: Run) -> None:
    """Put the latents' mean and standard deviation into the VAE's configuration."""
    parts = [vae.encode(c.float() / 127.5 - 1).latent_dist.mean for c in clips[:512].split(16)]
    values = torch.cat(parts).transpose(0, 1).flatten(1)
    mean, std = values.mean(1).tolist(), values.std(1).clamp_min(1e-4).tolist()
    vae.register_to_config(latents_mean=mean, latents_std=std)


# --- stage 2: latents, once -----------------------------------------------------------------


@dataclass
class Pool:
    """Normalised latents of one size (N, 48, F, h, w) in float16 and their captions' rows."""

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
        count = preset.pool if size == DEFAULT else preset.pool // 4
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


# --- stage 3: the denoiser ------------------------------------------------------------------


def train_denoiser(
    preset: Preset, run: Run, pools: dict, captions: list[str], tokenizer: PreTrainedTokenizerFast
) -> tuple[WanTransformer3DModel, UMT5EncoderModel]:
    model = torch.nn.ModuleDict(
        {
            "transformer": build_transformer(preset),
            "text_encoder": build_text_encoder(len(tokenizer)),
        }
    ).to(run.device)
    for name, part in model.items():
        if run.init is not None:
            part.load_state_dict(type(part).from_pretrained(run.init / name).state_dict())
    ema = [p.detach().clone() for p in model.parameters()]
    if run.finished("denoiser", model):
        return model["transformer"], model["text_encoder"]
    tokens = tokenizer(
        captions, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
    )
    ids, empty = tokens.input_ids.to(run.device), tokenizer("").input_ids
    decay = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}],
        lr=preset.lr, betas=(0.9, 0.98), fused=run.device.type == "cuda",
    )  # fmt: skip
    start = run.resume("denoiser", model, optimizer, ema)
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
        dropped = torch.rand(batch, generator=draw, device=run.device) < 0.1
        text[dropped] = torch.tensor(empty + [0] * (TEXT_LENGTH - len(empty)), device=run.device)
        for group in optimizer.param_groups:
            group["lr"] = preset.lr * schedule(i, preset.iterations)
        with run.autocast():
            loss = flow_matching_loss(
                model, x, text, 512 if size == DEFAULT and i % 8 == 4 else 64, draw
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
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


def flow_matching_loss(
    model: torch.nn.ModuleDict,
    x: torch.Tensor,
    text: torch.Tensor,
    text_length: int,
    draw: torch.Generator,
) -> torch.Tensor:
    """Mean squared error of the predicted flow; x (B, 48, F, h, w), text ids (B, TEXT_LENGTH)."""
    batch = len(x)
    sigma = torch.sigmoid(torch.randn(batch, generator=draw, device=x.device))
    sigma = 2.0 * sigma / (1 + sigma)  # shift 2: towards noise
    noise = torch.randn(x.shape, generator=draw, device=x.device)
    s = sigma.view(-1, 1, 1, 1, 1)
    mask = (text != 0).long()
    states = model["text_encoder"](input_ids=text, attention_mask=mask).last_hidden_state
    states = F.pad(states * mask[..., None], (0, 0, 0, text_length - TEXT_LENGTH))
    flow = model["transformer"](
        hidden_states=(1 - s) * x + s * noise,
        timestep=sigma * 1000,
        encoder_hidden_states=states,
        return_dict=False,
    )[0]
    return F.mse_loss(flow.float(), noise - x)


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


def schedule(i: int, total: int) -> float:
    """Share of the peak learning rate: linear warm-up over 2 %, cosine to 1 %."""
    warm = max(1, total // 50)
    return min(1.0, (i + 1) / warm) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * i / total)))


# --- the run: checkpoints, log, device --------------------------------------------------------


class Run:
    """Where a training run lives: device, log and checkpoints in `work`, written atomically."""

    def __init__(
        self, work: Path, device: torch.device, save_every: float, init: Path | None = None
    ) -> None:
        self.work, self.device, self.save_every, self.init = work, device, save_every, init
        work.mkdir(parents=True, exist_ok=True)
        self.started = self.saved = time.time()
        self.curve: list[tuple[str, int, float]] = []
        if (work / "curve.json").exists():
            self.curve = [tuple(row) for row in json.loads((work / "curve.json").read_text())]
        self.sum: torch.Tensor | float = 0.0

    def say(self, text: str) -> None:
        print(f"[{time.time() - self.started:7.1f} s] {text}", flush=True)

    def autocast(self) -> torch.autocast:
        gpu = self.device.type == "cuda"  # no weight cache: it does not survive a graph capture
        return torch.autocast(self.device.type, torch.bfloat16, enabled=gpu, cache_enabled=False)

    def tick(self, name: str, i: int, loss: torch.Tensor, state) -> None:
        """Log the mean loss every 100 iterations; save every `save_every` seconds."""
        self.sum = self.sum + loss.detach()
        if (i + 1) % 100 == 0:
            mean, self.sum = float(self.sum) / 100, 0.0
            if not math.isfinite(mean):
                raise RuntimeError(f"{name}: the loss is {mean} at iteration {i + 1}")
            self.curve.append((name, i + 1, mean))
            note = f" ({10 * math.log10(4 / mean):.2f} dB)" if name == "vae" else ""
            self.say(f"{name} {i + 1}: loss {mean:.5f}{note}")
        if time.time() - self.saved > self.save_every:
            self._save(f"{name}.pt", {"iteration": i + 1, **state()})
            (self.work / "curve.json").write_text(json.dumps(self.curve))
            self.saved = time.time()

    def resume(self, name: str, model, optimizer, ema: list[torch.Tensor] | None = None) -> int:
        path = self.work / f"{name}.pt"
        if not path.exists():
            return 0
        state = torch.load(path, map_location=self.device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        for mine, saved in zip(ema or [], state.get("ema", []), strict=True):
            mine.copy_(saved)
        last = state["iteration"]
        self.curve = [row for row in self.curve if row[0] != name or row[1] <= last]
        self.say(f"{name}: goes on at iteration {last}")
        return last

    def finish(self, name: str, model: torch.nn.Module) -> None:
        config = dict(model.config) if name == "vae" else {}
        self._save(f"{name}-final.pt", {"model": model.state_dict(), "config": config})
        (self.work / "curve.json").write_text(json.dumps(self.curve))

    def finished(self, name: str, model: torch.nn.Module) -> bool:
        path = self.work / f"{name}-final.pt"
        if not path.exists():
            return False
        state = torch.load(path, map_location=self.device)
        model.load_state_dict(state["model"])
        if name == "vae":
            kept = ("latents_mean", "latents_std")
            model.register_to_config(**{key: state["config"][key] for key in kept})
        self.say(f"{name}: finished before")
        return True

    def _save(self, name: str, state: dict) -> None:
        temporary = self.work / (name + ".part")
        torch.save(state, temporary)
        temporary.replace(self.work / name)


# --- what comes out -------------------------------------------------------------------------


def export(out: Path, run: Run, vae, transformer, text_encoder, tokenizer) -> WanPipeline:
    """The pipeline folder, the call's defaults and the loss curve.

    Transformer and VAE in float16, which diffusers loads as float32; the small text encoder in
    float32, since transformers keeps the stored dtype.
    """
    pipe = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder.eval().float().cpu(),
        vae=vae.eval().float().cpu(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=transformer.eval().float().cpu(),
    )
    for part in (pipe.vae, pipe.transformer):
        for tensor in itertools.chain(part.parameters(), part.buffers()):
            tensor.data = tensor.data.half() if tensor.is_floating_point() else tensor.data
    pipe.save_pretrained(out)
    for name in ("model_index.json", "tokenizer/tokenizer_config.json"):  # transformers 4 and 5
        text = (out / name).read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast")
        (out / name).write_text(text)
    frames, height, width = DEFAULT
    defaults = {
        "height": height, "width": width, "num_frames": frames, "num_inference_steps": 50,
        "guidance_scale": 4.0, "max_sequence_length": 64, "fps": 8,
    }  # fmt: skip
    (out / "generation_defaults.json").write_text(json.dumps(defaults, indent=2) + "\n")
    with open(out.parent / f"{out.name}-loss.csv", "w", newline="") as file:
        csv.writer(file).writerows([("stage", "iteration", "loss"), *run.curve])
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    run.say(f"wrote {out}: {size / 1e6:.1f} MB")
    return WanPipeline.from_pretrained(out)


def draw_curve(path: Path, curve: list[tuple[str, int, float]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    for axis, name in zip(axes, ("vae", "denoiser"), strict=True):
        rows = [(i, loss) for stage, i, loss in curve if stage == name]
        axis.plot(*zip(*rows, strict=True) if rows else ((), ()), linewidth=1)
        axis.set(title=name, xlabel="iteration", ylabel="loss (mean squared error)", yscale="log")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def draw_sheet(
    path: Path, pipe: WanPipeline, device: torch.device, rows: int, seed: int = 0
) -> None:
    """One row a prompt of the sheet's stream: five frames of the clip, the caption above."""
    import cv2

    pipe.to(device).set_progress_bar_config(disable=True)
    strips = []
    for i in range(rows):
        caption = scene_at(SHEET_STREAM, 10_000 + i).caption()
        clip = sample(pipe, [caption], seed + i)[0]
        frames = clip[:: (len(clip) - 1) // 4][:5]
        strip = np.concatenate(
            [np.pad(f, ((0, 0), (0, 2), (0, 0)), constant_values=1) for f in frames], 1
        )
        strip = cv2.resize(
            (strip * 255).round().astype(np.uint8),
            None,
            fx=2,
            fy=2,
            interpolation=cv2.INTER_NEAREST,
        )
        title = np.full((18, strip.shape[1], 3), 255, np.uint8)
        cv2.putText(
            title, caption[:100], (3, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (0, 0, 0), 1, cv2.LINE_AA
        )
        strips += [title, strip]
    cv2.imwrite(str(path), np.concatenate(strips)[:, :, ::-1])


def sample(pipe: WanPipeline, prompts: list[str], seed: int, **settings) -> np.ndarray:
    """Clips (B, T, H, W, 3) in [0, 1] at the miniature's defaults; noise from CPU generators."""
    frames, height, width = DEFAULT
    call = {
        "height": height, "width": width, "num_frames": frames, "guidance_scale": 4.0,
        "max_sequence_length": 64, "output_type": "np",
    }  # fmt: skip
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    return pipe(prompts, generator=generators, **{**call, **settings}).frames


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--preset", choices=sorted(PRESETS), default="gpu" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--out", type=Path, default=Path("assets/mini-wan"))
    parser.add_argument("--work", type=Path, default=Path(".run/miniature"), help="checkpoints")
    parser.add_argument("--init", type=Path, help="pipeline folder to go on from (its VAE is kept)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--save-every", type=float, default=120.0, help="seconds between checkpoints"
    )
    parser.add_argument("--sheet-rows", type=int, default=12)
    for name in ("vae_iterations", "iterations", "pool"):
        parser.add_argument("--" + name.replace("_", "-"), type=int, help="override the preset")
    args = parser.parse_args()

    overrides = {
        key: value
        for key in ("vae_iterations", "iterations", "pool")
        if (value := getattr(args, key))
    }
    preset = dataclasses.replace(PRESETS[args.preset], **overrides)
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = Run(args.work, device, args.save_every, args.init)
    tokenizer = build_tokenizer()
    vae = train_vae(preset, run).eval().requires_grad_(False)
    pools, captions = encode_pools(vae, preset, run)
    transformer, text_encoder = train_denoiser(preset, run, pools, captions, tokenizer)
    pipe = export(args.out, run, vae, transformer, text_encoder, tokenizer)
    draw_curve(args.out.parent / f"{args.out.name}-loss.png", run.curve)
    draw_sheet(args.out.parent / f"{args.out.name}-sheet.png", pipe, device, args.sheet_rows)


if __name__ == "__main__":
    main()
