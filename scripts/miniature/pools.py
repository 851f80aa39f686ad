"""Stage 2 of the miniature's training: encodes many clips once, and draws batches of latents."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from families import FAMILIES
from hints import Hints, hints_of
from recipe import TEXT_LENGTH, TEXT_PADDED, Preset
from run import Run
from torch import nn
from transformers import PreTrainedTokenizerFast
from world import COLORS, TRAIN_STREAM
from worlds import WORLDS

Size = tuple[int, int, int]  # frames, height, width


@dataclass
class Pool:
    """Normalised latents of one size (N, C, F, h, w) in float16, with the rows of their captions
    and hints."""

    latents: torch.Tensor
    rows: torch.Tensor
    hints: Hints


@torch.no_grad()
def encode_pools(vae: nn.Module, preset: Preset, run: Run) -> tuple[dict[Size, Pool], list[str]]:
    sizes = list(dict.fromkeys(size for stage in preset.curriculum for size in stage.sizes))
    family, world = FAMILIES[preset.family], WORLDS[preset.world]
    pools, captions = {}, []
    first = preset.vae_clips
    for size in sizes:
        frames, height, width = size
        pixels = frames * height * width
        batch = max(8, 128 * 17 * 64**2 // pixels) if run.device.type == "cuda" else 8
        count = preset.pool if size == preset.size else preset.pool_other
        mix = "-".join(map(str, preset.mix))
        path = run.work / f"latents-{frames}x{height}x{width}-{mix}.pt"
        scenes = [
            world.scene_at(TRAIN_STREAM, first + i, width / height, mix=preset.mix)
            for i in range(count)
        ]
        first += count
        if path.exists():
            latents = torch.load(path, map_location=run.device, weights_only=True)
        else:
            parts = []
            for i in range(0, count, batch):
                with run.autocast():
                    clip = world.render(scenes[i : i + batch], *size, run.device)
                    latents = vae.encode(clip).latent_dist.mean
                    parts.append(family.normalized(vae, latents).half())
            latents = torch.cat(parts)
            if run.device.type != "cuda":  # on a GPU it is faster to encode again
                torch.save(latents, path)
        rows = torch.arange(len(captions), len(captions) + count, device=run.device)
        hints = hints_of(scenes, frames, TEXT_LENGTH, run.device)
        pools[size] = Pool(latents, rows, hints)
        captions += [scene.caption() for scene in scenes]
        run.say(f"pool {size}: {count} clips, latent std {latents[:500].float().std():.3f}")
    return pools, captions


class Batches:
    """Draws the batch of an iteration: the same whenever it is drawn.

    `unsaid`: the share of captions without their colours.
    """

    def __init__(
        self,
        pools: dict[Size, Pool],
        captions: Sequence[str],
        tokenizer: PreTrainedTokenizerFast,
        preset: Preset,
        unsaid: float = 0.0,
    ) -> None:
        self.pools, self.preset, self.unsaid = pools, preset, unsaid
        self.device = next(iter(pools.values())).latents.device
        self.ids = ids_of(captions, tokenizer).to(self.device)
        self.empty = ids_of([""], tokenizer)[0].to(self.device)
        if unsaid:
            self.bare = ids_of([without_colors(c) for c in captions], tokenizer).to(self.device)

    def draw(self, i: int, size: Size, batch: int) -> tuple[torch.Tensor | Hints, ...]:
        """The arguments of the step of `denoiser_step`."""
        seed = torch.Generator(self.device).manual_seed(i)
        pool = self.pools[size]
        pick = torch.randint(len(pool.latents), (batch,), generator=seed, device=self.device)
        x = pool.latents[pick].float()
        text = self.ids[pool.rows[pick]].clone()
        complete = torch.ones(batch, dtype=torch.bool, device=self.device)
        if self.unsaid:
            left = torch.rand(batch, generator=seed, device=self.device) < self.unsaid
            text[left] = self.bare[pool.rows[pick[left]]]
            complete &= ~left
        dropped = torch.rand(batch, generator=seed, device=self.device) < 0.1
        text[dropped] = self.empty
        long = self.preset.long_text and size == self.preset.size and i % 8 == 4
        text = F.pad(text, (0, (512 if long else TEXT_PADDED) - TEXT_LENGTH))
        level = FAMILIES[self.preset.family].level(seed, batch, size)
        noise = torch.randn(x.shape, generator=seed, device=self.device)
        return x, text, level, noise, complete & ~dropped, pool.hints.at(pick)


def ids_of(captions: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """Padded token ids (N, TEXT_LENGTH)."""
    return tokenizer(
        list(captions),
        padding="max_length",
        max_length=TEXT_LENGTH,
        truncation=True,
        return_tensors="pt",
    ).input_ids


def without_colors(caption: str) -> str:
    """`a ring` from `an orange ring`. Backgrounds keep their colours."""
    words = re.sub(rf"\b({'|'.join(COLORS)}) (?!background)", "", caption)
    return re.sub(r"\ban (?![aeiou])", "a ", words)
