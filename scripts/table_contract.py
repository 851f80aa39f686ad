"""Tables of docs/planning.md from an evaluation's folder: the front, and whether promises are kept.

python scripts/table_contract.py runs/targets

*Front*: at each `speedup` the mean PSNR, and paired with it prompt by prompt each rival at as many
FLOPs, interpolated between its settings. Where all its settings spend more, or all less, by over a
tenth, the cell says what the nearest one spends instead.
*Contract*: of each `quality` the share of clips that reach it, the mean of steps over computed
steps, and the same with hindsight: the fastest `speedup` that reached it for this very clip (every
step, where none did). Of the predictions, how far off they were.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from dit_accel.evaluate.statistics import Interval, difference, mean
from dit_accel.evaluate.store import Store

Points = dict[str, dict[str, list[tuple[float, dict[str, Any]]]]]  # method, prompt: (FLOPs, result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--metric", default="psnr_db")
    args = parser.parse_args()
    store = Store(args.folder)
    points: Points = defaultdict(lambda: defaultdict(list))
    for group in store.plan().groups():
        results = {job.method.label: store.result(job.id) for job in group}
        if any(result is None for result in results.values()):
            continue  # a prompt counts when all of its clips are there
        full = sum(results["uncached"]["flops"])
        for label, result in results.items():
            if result["scores"]:
                name = label.partition(":")[0]
                spent = sum(result["flops"]) / full
                points[name][result["prompt_id"]].append((spent, {**result, "label": label}))
    print(front(points, args.metric), "\n")
    print(contract(points))


def value(result: dict[str, Any], metric: str) -> float:
    found = result["scores"][metric]["value"]
    return 100.0 if found is None or found > 100 else float(found)


def front(points: Points, metric: str) -> str:
    ours = points["speedup"]
    labels = sorted({r["label"] for runs in ours.values() for _, r in runs}, key=_number)
    rivals = [n for n in points if n not in ("uncached", "speedup", "quality")]
    lines = [
        f"| {metric}, {len(ours)} prompts | " + " | ".join(labels) + " |",
        "|---" * (len(labels) + 1) + "|",
    ]
    mine = {
        label: {p: next((f, value(r, metric)) for f, r in runs if r["label"] == label)
                for p, runs in ours.items()}
        for label in labels
    }  # fmt: skip
    shares = [statistics.fmean(f for f, _ in mine[label].values()) for label in labels]
    lines.append("| FLOPs kept | " + " | ".join(f"{share:.0%}" for share in shares) + " |")
    cells = [_interval(mean([v for _, v in mine[label].values()])) for label in labels]
    lines.append("| **ours** | " + " | ".join(cells) + " |")
    for rival in rivals:
        cells = []
        for label in labels:
            spent = statistics.fmean(f for f, _ in mine[label].values())
            reach = _reach(points[rival])
            if not reach[0] / 1.1 <= spent <= reach[1] * 1.1:
                near = min(reach, key=lambda edge: abs(edge - spent))
                cells.append(f"spends {near:.0%}")
                continue
            pairs = [(v, _at(points[rival][p], f, metric)) for p, (f, v) in mine[label].items()]
            gap = difference([v for v, _ in pairs], [other for _, other in pairs])
            cells.append(f"{statistics.fmean(o for _, o in pairs):.1f} ({_interval(gap, '+')})")
        lines.append(f"| {rival} (ours less it) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _at(runs: list[tuple[float, dict[str, Any]]], spent: float, metric: str) -> float:
    """A rival's value at a share of the FLOPs, on the line between its settings; level beyond."""
    known = sorted((share, value(result, metric)) for share, result in runs)
    return float(np.interp(spent, *zip(*known, strict=True)))


def _reach(runs: dict[str, list[tuple[float, dict[str, Any]]]]) -> tuple[float, float]:
    """Mean share of the FLOPs of a rival's cheapest and of its dearest setting."""
    by_label = defaultdict(list)
    for results in runs.values():
        for share, result in results:
            by_label[result["label"]].append(share)
    means = [statistics.fmean(shares) for shares in by_label.values()]
    return min(means), max(means)


def contract(points: Points) -> str:
    lines = [
        "| asked for | clips that reach it | steps over computed | with hindsight | share of it | "
        "PSNR, lowest and mean | prediction off by, median | within 2 dB | inside its interval |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    runs = points["quality"]
    for label in sorted({r["label"] for rs in runs.values() for _, r in rs}, key=_number):
        wanted, reached, speeds, best, values, errors, inside = (
            _number(label),
            [],
            [],
            [],
            [],
            [],
            [],
        )
        for prompt, results in runs.items():
            result = next(r for _, r in results if r["label"] == label)
            psnr, report = value(result, "psnr_db"), result["report"]
            values.append(psnr)
            reached.append(psnr >= wanted)
            speeds.append(report["steps"] / report["steps_computed"])
            ladder = [
                r["report"]["steps"] / r["report"]["steps_computed"]
                for _, r in points["speedup"][prompt]
                if value(r, "psnr_db") >= wanted
            ]
            best.append(max(ladder, default=1.0))
            promised = report["prediction"]
            if promised and promised["psnr_db"] is not None:
                errors.append(psnr - promised["psnr_db"])
                inside.append(promised["low_db"] <= psnr <= promised["high_db"])
        share = statistics.fmean(speeds) / statistics.fmean(best)
        off = statistics.median(map(abs, errors)) if errors else float("nan")
        near = statistics.fmean(abs(e) <= 2 for e in errors) if errors else float("nan")
        kept = statistics.fmean(inside) if inside else float("nan")
        lines.append(
            f"| {wanted:g} dB | {sum(reached)} of {len(reached)} ({statistics.fmean(reached):.0%}) "
            f"| {statistics.fmean(speeds):.2f}× | {statistics.fmean(best):.2f}× | {share:.0%} "
            f"| {min(values):.1f}, {statistics.fmean(values):.1f} | {off:.1f} dB | {near:.0%} "
            f"| {kept:.0%} |"
        )
    return "\n".join(lines)


def _number(label: str) -> float:
    return float(label.partition(":")[2])


def _interval(found: Interval, sign: str = "") -> str:
    if found.low is None or found.high is None:
        return f"{found.value:{sign}.1f}"
    digits = 1 if abs(found.value) >= 2 or abs(found.low) >= 2 else 3
    values = (f"{v:{sign}.{digits}f}" for v in (found.value, found.low, found.high))
    return "{} [{}, {}]".format(*values)


if __name__ == "__main__":
    main()
