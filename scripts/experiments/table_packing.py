"""Measures the error of fewer bits: the miniature's plans with every cached value quantised.

OMP_NUM_THREADS=1 python scripts/experiments/table_packing.py --prompts 4 --speedups 2.5 4

For each plan and form: PSNR against the uncached clip, the error in the last latents from the form
alone (against the same run with unpacked values; relative, in dB), the predicted error, and the
stored bytes. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from dit_accel import accelerate  # noqa: E402
from dit_accel.caching.store import TensorStore  # noqa: E402
from dit_accel.core.generation import ClipSpec, Generation, generate, warm_up  # noqa: E402
from dit_accel.core.quantization import Packed, pack, random_signs, typical_error  # noqa: E402
from dit_accel.metrics import psnr  # noqa: E402
from dit_accel.models import miniature  # noqa: E402
from dit_accel.planning.error_model import noise_energy  # noqa: E402
from dit_accel.planning.profile import Profile  # noqa: E402

Form = Callable[[torch.Tensor], torch.Tensor | Packed]


class Forced(TensorStore):
    """A store that puts every value into one form at once."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form

    def fit(self, device: torch.device) -> None:
        self.device = device
        stored = self._by_age()
        for values, name in stored:
            value = values.raw[name]
            values.raw[name] = self.form(value) if isinstance(value, torch.Tensor) else value
        self._count([values.raw[name] for values, name in stored])


@dataclass(frozen=True)
class Row:
    """One form on one clip at one speed."""

    speedup: float
    form: str
    psnr_db: float
    alone_db: float | None
    predicted_db: float | None
    cached_bytes: int


def halved(value: torch.Tensor, dtype: torch.dtype) -> Packed:
    """A value in another dtype, as a packed value without a scale."""
    codes = value.flatten()[None].to(dtype)
    ones = torch.ones(1, device=value.device)
    return Packed(codes, ones, None, 16, value.shape, value.dtype)


def forms() -> dict[str, tuple[Form, float | None]]:
    """By name: the form, and its typical relative error."""
    found: dict[str, tuple[Form, float | None]] = {
        "float16": (partial(halved, dtype=torch.float16), None),
        "bfloat16": (partial(halved, dtype=torch.bfloat16), None),
    }
    for bits, groups in ((16, (64,)), (8, (16, 64, 256)), (4, (64,))):
        for group in groups:
            for rotated in (False, True) if bits < 16 else (True,):
                signs = random_signs(group) if rotated else None
                name = f"{bits} bits, groups of {group}{', rotated' if rotated else ''}"
                form = partial(pack, bits=bits, signs=signs, group=group)
                found[name] = form, typical_error(bits, group)
    return found


def clip_of(prompt: str, seed: int, steps: int) -> ClipSpec:
    """The miniature's clip with its default settings."""
    return ClipSpec(prompt, None, seed, steps, 4.0, 64, 64, 17, max_sequence_length=64)


def run(
    pipe: Any, clip: ClipSpec, profile: Profile, speedup: float, form: Form | None
) -> tuple[Any, ...]:
    """The generation, the bytes of cached values, and the plan."""
    with accelerate(pipe, profile=profile, speedup=speedup, static=True) as handle:
        executor = handle.executor
        if form is not None:
            executor.store = Forced(form)
        made = generate(pipe, clip, device="cpu")
        return made, handle.report().cached_bytes, executor.policy.plan


def rows_of(
    pipe: Any, clip: ClipSpec, profile: Profile, speedup: float, uncached: Generation
) -> list[Row]:
    """All forms on one clip."""
    plain, stored, plan = run(pipe, clip, profile, speedup, None)
    energy = noise_energy(plan, profile.error_model)
    rows = [Row(speedup, "as they are", decibels(uncached, plain), None, None, stored)]
    for name, (form, typical) in forms().items():
        made, stored, _ = run(pipe, clip, profile, speedup, form)
        off = np.linalg.norm(made.latents - plain.latents) / np.linalg.norm(plain.latents)
        predicted = None if typical is None else -10 * math.log10(energy * typical**2)
        alone = -20 * math.log10(max(float(off), 1e-9))
        rows.append(Row(speedup, name, decibels(uncached, made), alone, predicted, stored))
    return rows


def decibels(uncached: Generation, made: Generation) -> float:
    """PSNR, at most 100 dB."""
    return min(float(psnr(uncached.frames, made.frames, data_range=1.0)), 100.0)


def table(rows: list[Row]) -> str:
    """Means by form and speed, as Markdown; in brackets the clip with the largest loss."""
    speeds = list(dict.fromkeys(row.speedup for row in rows))
    heads = [f"{s:g}×: PSNR | alone | predicted" for s in speeds]
    lines = [
        "| form | stored, KiB | " + " | ".join(heads) + " |",
        "|---|---|" + "---|" * (3 * len(speeds)),
    ]
    for form in dict.fromkeys(row.form for row in rows):
        stored = max(row.cached_bytes for row in rows if row.form == form) / 1024
        cells = []
        for speed in speeds:
            mine = [row for row in rows if (row.form, row.speedup) == (form, speed)]
            plain = [row for row in rows if (row.form, row.speedup) == ("as they are", speed)]
            worst = min(m.psnr_db - p.psnr_db for p, m in zip(plain, mine, strict=True))
            change = f" ({worst:+.2f})".replace("-", "−") if mine != plain else ""
            cells.append(f"{statistics.fmean(row.psnr_db for row in mine):.2f}{change}")
            for name in ("alone_db", "predicted_db"):
                known = [v for row in mine if (v := getattr(row, name)) is not None]
                cells.append(f"{statistics.fmean(known):.1f}" if known else "–")
        lines.append(f"| {form} | {stored:.1f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--speedups", type=float, nargs="+", default=[2.5, 4.0])
    options = parser.parse_args()
    from diffusers import WanPipeline

    torch.set_num_threads(1)
    pipe = WanPipeline.from_pretrained(str(miniature.path()))
    pipe.set_progress_bar_config(disable=True)
    profile = Profile.load(miniature.path() / "dit-accel-profile.safetensors")
    lines = (ROOT / "assets/prompts/miniature.jsonl").read_text().splitlines()
    rows: list[Row] = []
    for place, line in enumerate(lines[: options.prompts]):
        clip = clip_of(json.loads(line)["prompt"], 1000 + place, profile.key.steps)
        warm_up(pipe, clip)
        uncached = generate(pipe, clip, device="cpu")
        for speedup in options.speedups:
            rows += rows_of(pipe, clip, profile, speedup, uncached)
            print(f"prompt {place}, {speedup:g}x", file=sys.stderr, flush=True)
    print(table(rows))
    print(json.dumps([row.__dict__ for row in rows]))


if __name__ == "__main__":
    main()
