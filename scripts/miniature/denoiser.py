"""Stage 3 of the miniature's training: trains denoiser and text encoder together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from families import FAMILIES
from hints import Heads, Hints, inside
from muon import Muon, Together, split
from pools import Batches, Size
from recipe import TEXT_LENGTH, Preset, grid_of, schedule
from run import Run, multiplies_bfloat16
from torch import nn
from world import DEFAULT

MIDDLE = 0.6  # share of the blocks after which the hints are read


def train_denoiser(
    preset: Preset, run: Run, batches: Batches | None, words: int, start_from=None
) -> tuple[nn.Module, nn.Module]:
    """Train a denoiser for a vocabulary of this number of words, from another model's weights if
    one is given.

    `batches` is None if the stage was finished before.
    """
    model = build(preset, words, start_from).to(run.device)
    ema = [p.detach().clone() for p in model.parameters()]
    if run.finished("denoiser", model):
        return model["transformer"], model["text_encoder"]
    rates = [torch.tensor(0.0, device=run.device) for _ in range(2)]
    optimizer = optimizer_of(model, preset, run, rates)
    start = run.resume("denoiser", model, optimizer, ema)
    optimizer.set_lr(*rates)
    step = denoiser_step(model, optimizer, run, preset)
    if preset.compile and not run.limits.eager:
        for block in blocks_of(model, preset):
            block.compile(fullgraph=True, dynamic=False)
    run.begin("denoiser")
    for i in itertools.count(start):
        position = run.position("denoiser", i, preset.iterations)
        if position >= preset.iterations or run.limits.end:
            break
        size, batch = batch_at(preset, i, position)
        share = schedule(position, preset.iterations, preset.warm, preset.hold)
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


def build(preset: Preset, words: int, start_from=None) -> torch.nn.ModuleDict:
    """`transformer`, `text_encoder` and, if there are hints, the `heads` for them."""
    family = FAMILIES[preset.family]
    parts: dict[str, torch.nn.Module] = {
        "transformer": family.transformer(preset),
        "text_encoder": family.text_encoder(words),
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
    """AdamW, and Muon for the inner matrices if the preset has a rate for it."""
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
    """Make one optimiser step. Returns the mean squared error of the denoiser's prediction.

    Latents and noise (B, C, F, h, w), padded text ids (B, L), padding from TEXT_LENGTH on,
    the levels of noise (B,), whether the caption is complete (B,), and the clips' hints.
    """
    family = FAMILIES[preset.family]
    middle: list[torch.Tensor] = []
    if preset.hints:
        block = blocks_of(model, preset)[round(MIDDLE * preset.layers) - 1]
        block.register_forward_hook(lambda module, args, output: middle.append(tokens_of(output)))

    def step(
        x: torch.Tensor,
        text: torch.Tensor,
        level: torch.Tensor,
        noise: torch.Tensor,
        complete: torch.Tensor,
        hints: Hints,
    ) -> torch.Tensor:
        with run.autocast_matrices():
            text_read = family.read(model["text_encoder"], text)
            noisy, target, timestep = family.mix(x, noise, level)
            predicted = family.predict(model["transformer"], noisy, timestep, text_read)
            error = (predicted.float() - target).square()
            loss = mse = error.mean()
            if preset.focus:
                weight = 1 + preset.focus * inside(hints, x.shape[2:])
                loss = (error.mean(1) * weight).sum() / weight.sum()
            if preset.hints:
                grid = tuple(n // p for n, p in zip(x.shape[2:], preset.patch, strict=True))
                heads = model["heads"]
                hint_loss = heads.token_loss(middle.pop(), grid, hints, complete)
                hint_loss = hint_loss + heads.word_loss(
                    text_read[0][:, :TEXT_LENGTH], hints, complete
                )
                loss = loss + preset.hints * hint_loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        return mse.detach()

    return step


def blocks_of(model: torch.nn.ModuleDict, preset: Preset) -> nn.ModuleList:
    return getattr(model["transformer"], FAMILIES[preset.family].blocks)


def tokens_of(output: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The video's tokens in a block's output, which may also have the text's tokens."""
    return output[0] if isinstance(output, tuple) else output


def batch_at(preset: Preset, i: int, position: float) -> tuple[Size, int]:
    """The size of iteration `i` and its number of clips. Batches of large clips are smaller."""
    ends = itertools.accumulate(stage.share for stage in preset.curriculum)
    share = position / preset.iterations
    stage = next(
        (s for s, end in zip(preset.curriculum, ends, strict=True) if share < end),
        preset.curriculum[-1],
    )
    size = stage.sizes[i % len(stage.sizes)]
    cells = math.prod(grid_of(size))
    return size, max(2, round(stage.batch * min(1.0, math.prod(grid_of(DEFAULT)) / cells)))
