"""Train the embedded miniature `assets/mini-wan/` from nothing: VAE, latents once, denoiser.

    python scripts/miniature/train_miniature.py --preset gpu --out assets/mini-wan  # minutes
    python scripts/miniature/train_miniature.py --preset cpu --out out/mini-wan-cpu  # hours

Every class is a stock one (`AutoencoderKLWan`, `UMT5EncoderModel`, `WanTransformer3DModel`), so
that the result loads with `WanPipeline.from_pretrained(out)`. Data is the procedural world of
`world.py`; nothing is downloaded. The run is seeded; `--work` keeps checkpoints, and the
same command goes on from the last one. Beside the model it writes the loss curve (CSV and PNG) and
a sample sheet.

`--start FOLDER` begins from a trained miniature (its VAE stays as it is), and `--unsaid SHARE`
leaves the colours out of a share of captions, so that only a reference shows them:

    python scripts/miniature/train_miniature.py --preset gpu --start assets/mini-wan --unsaid 0.3 \\
        --iterations 3000 --lr 3e-4 --out out/mini-wan-unsaid --work .run/unsaid

Stages: (1) the VAE on clips rendered on the fly, L1 + L2 and a little KL; (2) pools of normalised
latents at several sizes, once; (3) denoiser and text encoder together, flow matching
(x_t = (1 - sigma) x + sigma noise, target noise - x, arXiv 2210.02747), sigma drawn as a shifted
logit-normal (arXiv 2403.03206 §3.1), 10 % empty captions for classifier-free guidance, an EMA. The
short recipe of a CPU also trains on what the world knows of its clips (`hints.py`).
"""

from __future__ import annotations

import argparse
import dataclasses
import random
from pathlib import Path

import torch
from denoiser import train_denoiser
from diffusers import WanPipeline
from output import draw_curve, draw_sheet, export
from pools import Batches, encode_pools
from recipe import PRESETS, build_tokenizer
from run import Run
from vae import train_vae

OVERRIDES = {
    "vae_iterations": int, "iterations": int, "pool": int, "lr": float,
    "heads": int, "ffn": int, "hints": float, "focus": float,
}  # fmt: skip


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
    for name, kind in OVERRIDES.items():
        parser.add_argument("--" + name.replace("_", "-"), type=kind, help="override the preset")
    parser.add_argument("--mix", type=int, nargs=3, help="override the preset")
    parser.add_argument("--start", type=Path, help="a miniature to begin from; its VAE stays")
    parser.add_argument("--unsaid", type=float, default=0.0, help="share of captions, no colours")
    args = parser.parse_args()

    overrides = {
        key: value for key in (*OVERRIDES, "mix") if (value := getattr(args, key)) is not None
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
    batches = Batches(pools, captions, tokenizer, preset, args.unsaid)
    transformer, text_encoder = train_denoiser(preset, run, batches, len(tokenizer), start)
    pipe = export(args.out, run, vae, transformer, text_encoder, tokenizer)
    draw_curve(args.out.parent / f"{args.out.name}-loss.png", run.curve)
    draw_sheet(args.out.parent / f"{args.out.name}-sheet.png", pipe, device, args.sheet_rows)


if __name__ == "__main__":
    main()
