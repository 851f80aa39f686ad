"""The recipes (presets): architecture and training of each model; its tokenizer; the schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from world import BACKGROUNDS, COLORS, DEFAULT, MIX, MOTIONS, PLACES, SHAPES, SIZES

TEXT_LENGTH = 48  # words that are read, with the end token
TEXT_PADDED = 64  # length to which a call pads
TEXT_WIDTH = 128
FPS = 8
SHIFT = 2.0  # shift of training's sigma, towards noise
LARGE = (17, 128, 128)  # frames, height, width


@dataclass(frozen=True)
class Stage:
    """A part of the denoiser's curriculum: `share` of all iterations, batches of one size each."""

    share: float
    batch: int
    sizes: tuple[tuple[int, int, int], ...]  # (frames, height, width)


@dataclass(frozen=True)
class Preset:
    """Everything that differs between models and machines.

    Lengths are iterations, not seconds: a run is repeatable, unless `--within` ends it sooner.
    """

    layers: int
    heads: int
    ffn: int
    patch: tuple[int, int, int]  # of the denoiser, in latent cells
    muon: float  # learning rate of Muon for the denoiser's matrices; 0: AdamW for everything
    channels: int  # of the latents
    vae_dim: int
    vae_mult: tuple[int, ...]
    vae_blocks: int
    vae_muon: float
    vae_iterations: int
    vae_batch: int
    vae_size: tuple[int, int, int]  # crops of this size out of clips of the default size
    vae_tail: float  # share of its iterations, the last ones, whose crops keep every frame
    vae_lr: float
    vae_clips: int
    pool: int  # clips encoded at the default size
    pool_other: int  # at every other size
    iterations: int
    lr: float
    warm: int  # iterations of warm-up
    hold: float  # share of the iterations after which the learning rate begins to fall
    ema: float
    curriculum: tuple[Stage, ...]
    long_text: bool  # train text of 512 tokens too, the pipeline's own default
    compile: bool
    mix: tuple[int, int, int] = MIX  # weights of clips of one, two and three subjects
    hints: float = 0.0  # weight of what the world knows of its clips (hints.py)
    focus: float = 0.0  # extra weight of a latent cell inside a subject
    family: str = "wan"  # a row of families.py
    world: str = "shapes"  # a row of worlds.py
    size: tuple[int, int, int] = DEFAULT  # of the model's own clips


PRESETS = {
    "gpu": Preset(
        layers=12, heads=6, ffn=640, patch=(1, 1, 1), muon=0.0,
        channels=48, vae_dim=40, vae_mult=(1, 2, 2), vae_blocks=1, vae_muon=0.0,
        vae_iterations=6000, vae_batch=16, vae_size=DEFAULT, vae_tail=0.0,
        vae_lr=2e-3, vae_clips=12_000,
        pool=50_000, pool_other=12_500, iterations=16_000, lr=1.2e-3,
        warm=320, hold=0.0, ema=0.9995,
        curriculum=(
            Stage(0.25, 512, ((9, 48, 48),)),
            Stage(0.75, 256, (DEFAULT,) * 6 + ((17, 96, 96), (33, 64, 64))),
        ),
        long_text=True, compile=True,
    ),
    "cpu": Preset(
        layers=5, heads=8, ffn=768, patch=(1, 2, 2), muon=5e-3,
        channels=24, vae_dim=32, vae_mult=(1, 1, 1), vae_blocks=0, vae_muon=3e-3,
        vae_iterations=2500, vae_batch=8, vae_size=(9, 32, 32), vae_tail=0.2,
        vae_lr=3e-3, vae_clips=3000,
        pool=12_000, pool_other=10_000, iterations=7500, lr=1.5e-3,
        warm=100, hold=0.6, ema=0.998,
        curriculum=(Stage(0.16, 64, ((9, 48, 48),)), Stage(0.84, 32, (DEFAULT,))),
        long_text=False, compile=False, mix=(35, 35, 30), hints=0.1, focus=2.0,
    ),
    # Other families, of the same size, for nine minutes of a GPU.
    "mini-cogvideox": Preset(
        layers=5, heads=8, ffn=768, patch=(1, 2, 2), muon=5e-3,
        channels=24, vae_dim=16, vae_mult=(1, 2, 3, 3), vae_blocks=1, vae_muon=3e-3,
        vae_iterations=8000, vae_batch=16, vae_size=(9, 32, 32), vae_tail=0.2,
        vae_lr=3e-3, vae_clips=3000,
        pool=20_000, pool_other=10_000, iterations=9000, lr=1.5e-3,
        warm=100, hold=0.6, ema=0.998,
        curriculum=(Stage(0.16, 256, ((9, 48, 48),)), Stage(0.84, 128, (DEFAULT,))),
        long_text=False, compile=False, mix=(35, 35, 30), hints=0.1, focus=2.0,
        family="cogvideox",
    ),
    "mini-ltx": Preset(
        layers=6, heads=6, ffn=768, patch=(1, 1, 1), muon=5e-3,
        channels=96, vae_dim=32, vae_mult=(1, 2), vae_blocks=1, vae_muon=3e-3,
        vae_iterations=15_000, vae_batch=16, vae_size=(9, 64, 64), vae_tail=0.2,
        vae_lr=3e-3, vae_clips=3000,
        pool=20_000, pool_other=10_000, iterations=9000, lr=1.5e-3,
        warm=100, hold=0.6, ema=0.998,
        curriculum=(Stage(0.16, 256, ((9, 48, 48),)), Stage(0.84, 128, (DEFAULT,))),
        long_text=False, compile=False, mix=(35, 35, 30), hints=0.1, focus=2.0,
        family="ltx",
    ),
    # For eight minutes on a GPU: the short recipe for a CPU core, but wider.
    "photos": Preset(
        layers=12, heads=10, ffn=1280, patch=(1, 2, 2), muon=5e-3,
        channels=48, vae_dim=48, vae_mult=(1, 2, 2), vae_blocks=1, vae_muon=3e-3,
        vae_iterations=2500, vae_batch=16, vae_size=(17, 64, 64), vae_tail=0.0,
        vae_lr=3e-3, vae_clips=3000,
        pool=20_000, pool_other=5000, iterations=8000, lr=1.5e-3,
        warm=100, hold=0.6, ema=0.999,
        curriculum=(
            Stage(0.2, 128, (DEFAULT,)),
            Stage(0.8, 128, (LARGE,) * 5 + (DEFAULT, (33, 64, 64), (33, 128, 128))),
        ),
        long_text=False, compile=False, mix=(35, 35, 30), hints=0.1, focus=2.0,
        world="photos", size=LARGE,
    ),
    "smoke": Preset(
        layers=2, heads=2, ffn=64, patch=(1, 2, 2), muon=5e-3,
        channels=8, vae_dim=8, vae_mult=(1, 1, 1), vae_blocks=0, vae_muon=3e-3,
        vae_iterations=4, vae_batch=2, vae_size=(9, 32, 32), vae_tail=0.5,
        vae_lr=1e-3, vae_clips=8,
        pool=8, pool_other=8, iterations=4, lr=1e-3,
        warm=1, hold=0.5, ema=0.9,
        curriculum=(Stage(0.5, 2, ((9, 32, 32),)), Stage(0.5, 2, (DEFAULT,))),
        long_text=False, compile=False, mix=(1, 1, 1), hints=0.1, focus=1.0,
    ),
}  # fmt: skip
PRESETS |= {  # each whole recipe in seconds, to test that it runs
    "smoke-cogvideox": replace(
        PRESETS["smoke"], family="cogvideox", patch=(1, 1, 1), vae_mult=(1, 1, 1, 1), vae_blocks=1
    ),
    "smoke-ltx": replace(
        PRESETS["smoke"], family="ltx", patch=(1, 1, 1), vae_mult=(1, 1), vae_blocks=1
    ),
    "smoke-photos": replace(PRESETS["smoke"], world="photos"),
}


def build_tokenizer(more: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Word level: every word of the world and more, lower case, an end token, <unk> else."""
    phrases = [*more, *COLORS, *SHAPES, *MOTIONS.values(), *BACKGROUNDS, *SIZES]
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


def grid_of(size: Sequence[int], compression: int = 8) -> tuple[int, int, int]:
    """Latent frames, rows and columns of a clip with this number of frames, height and width.

    A latent cell has `compression` pixels a side; a latent frame, after the first, four frames.
    """
    frames, height, width = size
    return (frames - 1) // 4 + 1, height // compression, width // compression


def schedule(position: float, total: int, warm: int = 0, hold: float = 0.0) -> float:
    """Share of the peak learning rate: linear warm-up (else over 2 %), hold, cosine to 1 %."""
    warm = warm or max(1, total // 50)
    fallen = min(max(0.0, position / total - hold) / (1 - hold), 1.0)
    rise = min(1.0, (position + 1) / warm)
    return rise * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * fallen)))
