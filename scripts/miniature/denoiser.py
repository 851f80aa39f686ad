"""Stage 3 of the miniature's training: denoiser and text encoder together, by flow matching."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from diffusers import WanPipeline, WanTransformer3DModel
from hints import Heads, Hints, inside
from muon import Muon, Together, split
from pools import Batches, Size
from recipe import (
    COMPRESSION,
    TEXT_LENGTH,
    Preset,
    build_text_encoder,
    build_transformer,
    schedule,
)
from run import Run, multiplies_bfloat16
from transformers import UMT5EncoderModel
from world import DEFAULT

MIDDLE = 0.6  # share of the blocks after which the hints are read


def train_denoiser(
    preset: Preset, run: Run, batches: Batches, words: int, start_from: WanPipeline | None = None
) -> tuple[WanTransformer3DModel, UMT5EncoderModel]:
    """Of a vocabulary of so many words; from another miniature's weights, where one is given."""
    model = build(preset, words, start_from).to(run.device)
    ema = [p.detach().clone() for p in model.parameters()]
    if run.finished("denoiser", model):
        return model["transformer"], model["text_encoder"]
    rates = [torch.tensor(0.0, device=run.device) for _ in range(2)]
    optimizer = optimizer_of(model, preset, run, rates)
    start = run.resume("denoiser", model, optimizer, ema)
    optimizer.set_lr(*rates)
    step = denoiser_step(model, optimizer, run, preset)
    if preset.compile:
        model["transformer"].compile_repeated_blocks(fullgraph=True, dynamic=False)
    for i, size, batch in curriculum(preset):
        if i < start:
            continue
        share = schedule(i, preset.iterations, preset.warm, preset.hold)
        for rate, peak in zip(rates, (preset.lr, preset.muon), strict=True):
            rate.fill_(peak * share)
        loss = step(*batches.draw(i, size, batch))
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


def build(preset: Preset, words: int, start_from: WanPipeline | None) -> torch.nn.ModuleDict:
    """`transformer`, `text_encoder` and, where there are hints, the `heads` that they train."""
    parts: dict[str, torch.nn.Module] = {
        "transformer": build_transformer(preset),
        "text_encoder": build_text_encoder(words),
    }
    if start_from is not None:
        for name, part in parts.items():
            part.load_state_dict(getattr(start_from, name).float().state_dict())
    if preset.hints:
        config = parts["transformer"].config
        width = config.num_attention_heads * config.attention_head_dim
        parts["heads"] = Heads(width, parts["text_encoder"].config.d_model)
    return torch.nn.ModuleDict(parts)


def optimizer_of(
    model: torch.nn.Module, preset: Preset, run: Run, rates: list[torch.Tensor]
) -> Together:
    """AdamW, and Muon for the inner matrices where the preset has a rate for it."""
    gpu = run.device.type == "cuda"
    matrices, others = split(model, preset.muon)
    decay = [p for p in others if p.ndim >= 2]
    rest = [p for p in others if p.ndim < 2]
    dtype = torch.bfloat16 if multiplies_bfloat16(run.device) else torch.float32
    return Together(
        torch.optim.AdamW(
            [{"params": decay, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}],
            lr=rates[0], betas=(0.9, 0.98), fused=gpu, capturable=gpu,
        ),
        *([Muon(matrices, rates[1], weight_decay=0.01, dtype=dtype)] if matrices else []),
    )  # fmt: skip


def denoiser_step(
    model: torch.nn.ModuleDict, optimizer: Together, run: Run, preset: Preset
) -> Callable[..., torch.Tensor]:
    """One optimiser step of flow matching -> the mean squared error of the predicted flow.

    Latents and noise (B, C, F, h, w), padded text ids (B, L) of which the first TEXT_LENGTH are
    read, sigma (B,) in (0, 1), whether the caption is complete (B,), and the clips' hints.
    """
    middle: list[torch.Tensor] = []
    if preset.hints:
        block = model["transformer"].blocks[round(MIDDLE * preset.layers) - 1]
        block.register_forward_hook(lambda module, args, output: middle.append(output))

    def step(
        x: torch.Tensor,
        text: torch.Tensor,
        sigma: torch.Tensor,
        noise: torch.Tensor,
        complete: torch.Tensor,
        hints: Hints,
    ) -> torch.Tensor:
        with run.autocast_matrices():
            s = sigma.view(-1, 1, 1, 1, 1)
            ids = text[:, :TEXT_LENGTH]
            mask = (ids != 0).long()
            states = model["text_encoder"](input_ids=ids, attention_mask=mask).last_hidden_state
            padded = F.pad(states * mask[..., None], (0, 0, 0, text.shape[1] - TEXT_LENGTH))
            flow = model["transformer"](
                hidden_states=(1 - s) * x + s * noise,
                timestep=sigma * 1000,
                encoder_hidden_states=padded,
                return_dict=False,
            )[0]
            error = (flow.float() - (noise - x)).square()
            loss = mse = error.mean()
            if preset.focus:
                weight = 1 + preset.focus * inside(hints, x.shape[2:])
                loss = (error.mean(1) * weight).sum() / weight.sum()
            if preset.hints:
                grid = tuple(n // p for n, p in zip(x.shape[2:], preset.patch, strict=True))
                heads = model["heads"]
                hint_loss = heads.token_loss(middle.pop(), grid, hints, complete)
                hint_loss = hint_loss + heads.word_loss(states, hints, complete)
                loss = loss + preset.hints * hint_loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        return mse.detach()

    return step


def curriculum(preset: Preset) -> Iterator[tuple[int, Size, int]]:
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


def tokens_of(size: Size) -> int:
    frames, height, width = size
    return ((frames - 1) // 4 + 1) * (height // COMPRESSION) * (width // COMPRESSION)
