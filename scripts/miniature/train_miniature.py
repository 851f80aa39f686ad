"""Trains the embedded miniature, and similar models of other families and another world.

    python scripts/miniature/train_miniature.py --preset gpu --out assets/mini-wan  # minutes
    python scripts/miniature/train_miniature.py --preset cpu --out out/mini-wan-cpu  # hours
    python scripts/miniature/train_miniature.py --preset mini-cogvideox --out assets/mini-cogvideox
    python scripts/miniature/train_miniature.py --preset mini-ltx --out assets/mini-ltx
    python scripts/miniature/train_miniature.py --preset photos --out out/photos
    python scripts/miniature/train_miniature.py --sizes  # parameters and bytes of each, no training

Every class is a stock class of its family (`families.py`), so the result loads with the
`from_pretrained` of its pipeline. The data comes from the world of the preset (`worlds.py`);
nothing is downloaded. The run is seeded. `--work` has checkpoints, and the same command continues
from the last one. Beside the model it writes the loss curve (CSV and PNG) and a sample sheet.

If time is short: `--minutes` ends this call with a checkpoint (exit code 3). `--within` ends the
whole training within that time, with schedules scaled to it. `--end` uses the moving average of the
last checkpoint.

`--start FOLDER` begins with a trained model of the preset's family (its VAE does not change).
`--unsaid SHARE` leaves the colours out of a share of captions, so that only a reference shows them:

    python scripts/miniature/train_miniature.py --preset gpu --start assets/mini-wan --unsaid 0.3 \\
        --iterations 3000 --lr 3e-4 --out out/mini-wan-unsaid

Stages: (1) the VAE on clips rendered on the fly, L1 + L2 and a little KL; (2) pools of normalised
latents at several sizes, once; (3) denoiser and text encoder together: the mean squared error of
what the family predicts, at its own levels of noise, 10 % empty captions for classifier-free
guidance, an EMA. Short recipes also train on the world's knowledge about its clips (`hints.py`).
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import sys
from pathlib import Path

import torch
from denoiser import train_denoiser
from families import FAMILIES
from output import draw_curve, draw_sheet, export, sizes_of
from pools import Batches, encode_pools
from recipe import PRESETS, Preset, build_tokenizer
from run import Limits, Run, Stopped
from vae import train_vae
from worlds import WORLDS

OVERRIDES = {
    "vae_iterations": int, "iterations": int, "pool": int, "lr": float,
    "heads": int, "ffn": int, "hints": float, "focus": float,
}  # fmt: skip
SHARES = {"vae": 0.25, "denoiser": 0.6}  # of `--within`; the rest is for pools and output
STOPPED = 3


def main() -> None:
    args = arguments()
    if args.sizes:
        for name, preset in PRESETS.items():
            print(f"{name}: {sizes_of(preset)}")
        return
    overrides = {
        key: value for key in (*OVERRIDES, "mix") if (value := getattr(args, key)) is not None
    }
    preset = dataclasses.replace(PRESETS[args.preset], **overrides)
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    torch.set_float32_matmul_precision("high")
    torch.set_flush_denormal(True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shares = {name: args.within * share for name, share in SHARES.items()} if args.within else {}
    limits = Limits(args.minutes, **shares, end=args.end, eager=args.eager)
    try:
        train(preset, Run(args.work, device, args.save_every, limits), args)
    except Stopped:
        sys.exit(STOPPED)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--preset", choices=sorted(PRESETS), default="gpu" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--out", type=Path, help="default: assets/mini-wan of gpu, else out/PRESET")
    parser.add_argument("--work", type=Path, help="checkpoints; default: runs/ and the name of out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--save-every", type=float, default=120.0, help="seconds between checkpoints"
    )
    parser.add_argument("--minutes", type=float, help="of this call, then a checkpoint")
    parser.add_argument("--within", type=float, help="minutes that the whole training may take")
    parser.add_argument("--end", action="store_true", help="the denoiser as its checkpoint has it")
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs, no compilation")
    parser.add_argument("--sizes", action="store_true", help="print parameters and bytes, and end")
    parser.add_argument("--sheet-rows", type=int, default=12)
    for name, kind in OVERRIDES.items():
        parser.add_argument("--" + name.replace("_", "-"), type=kind, help="override the preset")
    parser.add_argument("--mix", type=int, nargs=3, help="override the preset")
    parser.add_argument("--start", type=Path, help="a model to begin from; its VAE stays")
    parser.add_argument("--unsaid", type=float, default=0.0, help="share of captions, no colours")
    args = parser.parse_args()
    args.out = args.out or Path("assets/mini-wan" if args.preset == "gpu" else f"out/{args.preset}")
    args.work = args.work or Path("runs", args.out.name)
    if args.end and not (args.work / "denoiser.pt").exists():
        parser.error(f"--end needs a checkpoint of the denoiser: {args.work} has no denoiser.pt")
    return args


def train(preset: Preset, run: Run, args: argparse.Namespace) -> None:
    """Run all stages that are not finished, and write the results."""
    family = FAMILIES[preset.family]
    tokenizer = build_tokenizer(WORLDS[preset.world].words)
    start = family.pipeline.from_pretrained(args.start) if args.start else None
    vae = start.vae.to(run.device) if start else train_vae(preset, run)
    vae = vae.eval().requires_grad_(False)
    batches = None
    if not run.is_finished("denoiser"):
        pools, captions = encode_pools(vae, preset, run)
        batches = Batches(pools, captions, tokenizer, preset, args.unsaid)
    torch.manual_seed(args.seed)  # the same in a continued run, which draws other numbers before
    transformer, text_encoder = train_denoiser(preset, run, batches, len(tokenizer), start)
    pipe = export(args.out, run, preset, vae, transformer, text_encoder, tokenizer)
    draw_curve(args.out.parent / f"{args.out.name}-loss.png", run.curve)
    sheet = args.out.parent / f"{args.out.name}-sheet.png"
    draw_sheet(sheet, pipe.to(run.device), args.out, WORLDS[preset.world], args.sheet_rows)


if __name__ == "__main__":
    main()
