"""Makes the tables of windows by threshold of research/LOG.md: sites x thresholds, fewer steps.

    OMP_NUM_THREADS=1 python scripts/experiments/table_edcw.py --prompts 16 \\
        --out research/data/edcw.json

Every row has the same prompts, seeds and process. For each prompt the uncached clip is made first.
Then every row is compared with it on the frames in memory. The control "fewer steps, no cache" runs
at several step counts, and is interpolated linearly to each row's FLOPs, prompt by prompt. Means
over prompts have 95 % bootstrap intervals. Results are stored prompt by prompt in `--out`, so that
an interrupted run can continue.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import WanPipeline

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "miniature"))

from check_miniature import choose
from output import sample

from dit_accel import EDCW, accelerate
from dit_accel.core.measure import Stopwatch
from dit_accel.metrics import psnr, ssim

STEPS = 50
ROWS = [
    (site, threshold) for site in ("attention", "block", "model") for threshold in (0.1, 0.2, 0.4)
]
FEWER = (10, 15, 20, 30, 45)


def one_prompt(
    pipe: WanPipeline, prompt: str, seed: int, rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Every row on one prompt; the first result is the uncached clip itself."""
    reference, full = run(pipe, prompt, seed, STEPS, None)
    results = [full | {"psnr_db": 100.0, "ssim": 1.0}]
    for row in rows:
        clip, cost = run(pipe, prompt, seed, row["steps"], row["config"] and row)
        scores = {
            "psnr_db": psnr(reference, clip, data_range=1.0),
            "ssim": ssim(reference, clip, data_range=1.0),
        }
        cost["flops"] /= full["flops"]
        results.append(cost | scores | {"speedup": full["seconds"] / cost["seconds"]})
    return results


def run(
    pipe: WanPipeline, prompt: str, seed: int, steps: int, row: dict[str, Any] | None
) -> tuple[np.ndarray, dict[str, Any]]:
    """A clip (T, H, W, 3) and its cost; without a row, of the stock pipeline. FLOPs are in
    steps."""
    if row is None:
        with Stopwatch("cpu") as watch:
            clip = sample(pipe, [prompt], seed, num_inference_steps=steps)[0]
        cost = {"flops": float(steps), "computed": steps, "cached_mib": 0.0}
        return clip, cost | {"seconds": watch.seconds}
    with accelerate(pipe, site=row["site"], config=EDCW(**row["config"])) as handle:
        with Stopwatch("cpu") as watch:
            clip = sample(pipe, [prompt], seed, num_inference_steps=steps)[0]
        report = handle.report()
    assert report.flops_kept is not None
    return clip, {
        "seconds": watch.seconds,
        "flops": report.flops_kept * steps,
        "computed": report.steps_computed,
        "cached_mib": report.cached_bytes / 2**20,
    }


def interval(values: list[float], draws: int = 2000) -> tuple[float, float, float]:
    """Mean with its 95 % bootstrap interval over prompts."""
    data = np.array(values)
    picks = np.random.default_rng(0).integers(0, len(data), (draws, len(data)))
    low, high = np.percentile(data[picks].mean(1), (2.5, 97.5))
    return float(data.mean()), float(low), float(high)


def table(rows: list[dict[str, Any]], results: list[list[dict[str, Any]]]) -> str:
    """A table in Markdown. The last two columns compare with the control at the same FLOPs."""
    lines = [
        "| method | steps computed | FLOPs kept | speedup (seconds) | PSNR dB | SSIM | cached MiB "
        "| fewer steps at equal FLOPs, dB | ahead of them, dB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    controls = [i for i, row in enumerate(rows) if not row["config"]]
    for i, (row, column) in enumerate(zip(rows, list(zip(*results, strict=True))[1:], strict=True)):
        m = {key: float(np.mean([r[key] for r in column])) for key in column[0]}
        other, ahead = "–", "–"
        if row["config"] and controls:
            fewer = [
                fewer_steps(result[1:], controls, result[i + 1]["flops"]) for result in results
            ]
            gaps = [r["psnr_db"] - f for r, f in zip(column, fewer, strict=True)]
            other, ahead = f"{np.mean(fewer):.1f}", in_words(gaps, "+.1f")
        lines.append(
            f"| {row['name']} | {m['computed']:.1f} | {m['flops']:.0%} | {m['speedup']:.2f}× | "
            f"{in_words([r['psnr_db'] for r in column], '.1f')} | {m['ssim']:.4f} | "
            f"{m['cached_mib']:.1f} | {other} | {ahead} |"
        )
    return "\n".join(lines)


def fewer_steps(result: list[dict[str, Any]], controls: list[int], flops: float) -> float:
    """One prompt's PSNR of the stock pipeline with fewer steps, at these FLOPs."""
    points = sorted((result[i]["flops"], result[i]["psnr_db"]) for i in controls)
    return float(np.interp(flops, *zip(*points, strict=True)))


def in_words(values: list[float], spec: str) -> str:
    """Mean and interval: `36.3 [33.2, 38.8]`."""
    mean, low, high = (format(value, spec) for value in interval(values))
    return f"{mean} [{low}, {high}]"


def lead(rows: list[dict[str, Any]], results: list[list[dict[str, Any]]], site: str) -> str:
    """How far growth by rate is ahead of growth by step at equal FLOPs, prompt by prompt.

    Each rule's PSNR over FLOPs is a line through its thresholds. The lead is the mean distance of
    the two lines where both exist.
    """
    leads = []
    for result in results:
        lines = []
        for rule in ("rate", "step"):
            points = [
                (r["flops"], r["psnr_db"])
                for row, r in zip(rows, result[1:], strict=True)
                if row["site"] == site and row["config"]["growth"] == rule
            ]
            lines.append(np.array(sorted(points)).T)
        shared = np.linspace(max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines), 50)
        rate, step = (np.interp(shared, x, y) for x, y in lines)
        leads.append(float((rate - step).mean()))
    return f"{site}: rate ahead of step by {in_words(leads, '+.1f')} dB at equal FLOPs"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path("assets/mini-wan"))
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("research/data/edcw.json"))
    parser.add_argument("--growth", action="store_true", help="compare the rules of growth instead")
    args = parser.parse_args()

    if args.growth:
        rows = [
            {"name": f"{site} δ={t}, {rule}", "site": site, "steps": STEPS,
             "config": {"threshold": t, "growth": rule}}
            for site in ("block", "model") for t in (0.1, 0.2, 0.4) for rule in ("step", "rate")
        ]  # fmt: skip
    else:
        rows = [
            {"name": f"EDCW {site} δ={t}", "site": site, "steps": STEPS, "config": {"threshold": t}}
            for site, t in ROWS
        ]
    if not args.growth:
        rows += [{"name": f"{n} steps", "site": "", "steps": n, "config": None} for n in FEWER]
    pipe = WanPipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)
    sample(pipe, ["a red circle"], 0, num_inference_steps=2)  # warm-up
    results = json.loads(args.out.read_text())["results"] if args.out.exists() else []
    for i, scene in enumerate(choose(args.prompts, 2, 3)):
        if i >= len(results):
            results.append(one_prompt(pipe, scene.caption(), 1000 + i, rows))
            args.out.parent.mkdir(parents=True, exist_ok=True)
            part = args.out.with_suffix(".part")
            part.write_text(json.dumps({"rows": rows, "results": results}) + "\n")
            part.replace(args.out)
            print(f"prompt {i + 1} of {args.prompts}", flush=True)
    print(table(rows, results))
    if args.growth:
        print("\n".join(lead(rows, results, site) for site in ("block", "model")))


if __name__ == "__main__":
    main()
