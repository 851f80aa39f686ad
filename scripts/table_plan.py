"""The table of docs/planning.md: plans on the miniature against the uncached clip and fewer steps.

OMP_NUM_THREADS=1 python scripts/table_plan.py --prompts 16 --out docs/planning.json

Calibrates on clips of other prompts, then runs every plan on prompts that it has not seen.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import WanPipeline

sys.path.insert(0, str(Path(__file__).resolve().parent))

from miniature_world import PROMPT_STREAM, scene_at

from dit_accel import accelerate, metrics, miniature
from dit_accel.calibrate import calibrate
from dit_accel.planner import Field, Plan, energies, evenly, fit, search
from dit_accel.takes import Clip, Take, take

PROMPTS = Path(__file__).resolve().parents[1] / "assets" / "prompts" / "miniature.jsonl"
UNCORRECTED = 1e12  # a ridge that lets no correction through
CALIBRATION = 5000  # where its prompts begin in the world's stream, far from those of PROMPTS


def main() -> None:
    args = _arguments()
    pipe = WanPipeline.from_pretrained(str(miniature.path()))
    pipe.set_progress_bar_config(disable=True)
    unseen = [json.loads(line)["prompt"] for line in PROMPTS.read_text().splitlines()]
    field = _field(pipe, args, set(unseen))
    print(f"memory {field.memory:.1f} steps, gain", [round(g, 2) for g in field.gain.tolist()])
    counts = [round(args.steps / speedup) for speedup in args.speedups]
    plans = {
        "reuse, even": _plans(counts, lambda n: _reuse(field, n)),
        "line, searched": _plans(counts, lambda n: search(field, n, depth=2, ridge=UNCORRECTED)),
        "fitted, searched": _plans(counts, lambda n: search(field, n)),
    }
    rows: dict[tuple[str, int], list[float]] = {}
    for index, prompt in enumerate(unseen[: args.prompts]):
        clip = _clip(prompt, args.steps, seed=index)
        stock = take(pipe, clip, device="cpu")
        for name, by_count in plans.items():
            for count, plan in by_count.items():
                with accelerate(pipe, plan=plan):
                    made = take(pipe, clip, device="cpu")
                rows.setdefault((name, count), []).append(_psnr(stock, made))
        for count in counts:
            made = take(pipe, clip, device="cpu", overrides={"num_inference_steps": count})
            rows.setdefault(("fewer steps", count), []).append(_psnr(stock, made))
        print(f"{index + 1} of {args.prompts} prompts", flush=True)
        _write(args, field, counts, plans, rows)
    print(_table(args.steps, counts, rows, plans, field))


def _reuse(field: Field, count: int) -> tuple[Plan, float]:
    return fit(evenly(field.total, count), field, depth=1, ridge=UNCORRECTED)


def _plans(counts: list[int], make: Callable[[int], tuple[Plan, float]]) -> dict[int, Plan]:
    return {count: make(count)[0] for count in counts}


def _field(pipe: Any, args: argparse.Namespace, taken: set[str]) -> Field:
    prompts: list[str] = []
    for index in range(CALIBRATION, CALIBRATION + 100 * args.calibration):
        caption = scene_at(PROMPT_STREAM, index).caption()
        if caption not in taken and caption not in prompts and len(prompts) < args.calibration:
            prompts.append(caption)
    clips = [_clip(prompt, args.steps, seed=1000 + i) for i, prompt in enumerate(prompts)]
    return calibrate(
        pipe,
        clips,
        told=lambda what, done, total: print(f"{what} {done + 1} of {total}", flush=True),
    )


def _clip(prompt: str, steps: int, seed: int) -> Clip:
    given = miniature.call_defaults(miniature.path())
    return Clip(
        prompt=prompt, negative=None, seed=seed, steps=steps,
        guidance=float(given["guidance_scale"]), height=int(given["height"]),
        width=int(given["width"]), frames=int(given["num_frames"]),
        max_sequence_length=int(given["max_sequence_length"]),
    )  # fmt: skip


def _psnr(stock: Take, made: Take) -> float:
    return float(metrics.psnr(stock.frames, made.frames, data_range=1.0))


def _write(
    args: argparse.Namespace,
    field: Field,
    counts: list[int],
    plans: dict[str, dict[int, Plan]],
    rows: dict[tuple[str, int], list[float]],
) -> None:
    content = {
        "steps": args.steps,
        "calibration": args.calibration,
        "memory": field.memory,
        "gain": field.gain.tolist(),
        "rows": [{"method": m, "computed": n, "psnr_db": v} for (m, n), v in rows.items()],
        "plans": {m: {n: p.computed for n, p in by.items()} for m, by in plans.items()},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(content, indent=1) + "\n")


def _table(
    steps: int,
    counts: list[int],
    rows: dict[tuple[str, int], list[float]],
    plans: dict[str, dict[int, Plan]],
    field: Field,
) -> str:
    heads = [f"{n} ({steps / n:.1f}×)" for n in counts]
    lines = [f"| computed of {steps} | " + " | ".join(heads) + " |"]
    lines.append("|---" * (len(counts) + 1) + "|")
    for name in dict.fromkeys(method for method, _ in rows):
        cells = [_interval(rows[name, n]) for n in counts]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for name, by_count in plans.items():
        errors = [statistics.fmean(energies(by_count[n], field).log10().tolist()) for n in counts]
        cells = [f"{-10 * error:.1f}" for error in errors]
        lines.append(f"| foretold of the latents: {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _interval(values: list[float]) -> str:
    draw = np.random.default_rng(0)
    picks = draw.integers(0, len(values), (10_000, len(values)))
    low, high = np.percentile(np.asarray(values)[picks].mean(1), [2.5, 97.5])
    return f"{statistics.fmean(values):.1f} [{low:.1f}, {high:.1f}]"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--calibration", type=int, default=12)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--speedups", type=float, nargs="+", default=[2, 2.5, 3.1, 4.2])
    parser.add_argument("--out", type=Path, default=Path("out/planning.json"))
    return parser.parse_args()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
