"""Makes tables of research/LOG.md from an evaluation: the front, and whether guarantees hold.

python scripts/experiments/table_contract.py runs/targets [--choose assets/mini-wan]

*Front*: at each `speedup` the mean PSNR, and for comparison each rival at equal FLOPs, prompt by
prompt, interpolated between its settings. If all its settings cost more or less by over a tenth,
the cell has the cost of the nearest one instead. *Contract*: for each `quality` the share of clips
that reach it, the mean of steps over computed steps, and the same for the oracle: the fastest
`speedup` that reached it for this very clip (every step, if none did). For the predictions, their
errors.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from dit_accel.evaluation.statistics import Interval, difference, mean
from dit_accel.evaluation.store import Store

QUALITIES = (28, 32, 36)
MIN_CANDIDATES = 5  # least number of plans that the oracle may choose from

Points = dict[str, dict[str, list[tuple[float, dict[str, Any]]]]]  # method, prompt: (FLOPs, result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--metric", default="psnr_db")
    parser.add_argument("--choose", type=Path, help="a model's folder: choose by its profile now")
    parser.add_argument("--speedups", help="columns of the front; all where none are given")
    parser.add_argument("--json", type=Path, help="a file for the values, clip by clip")
    args = parser.parse_args()
    store = Store(args.folder)
    points, missing = read(store)
    if args.choose:
        points["quality"] = chosen(points, store, args.choose)
    if missing:
        print(f"Not run: {', '.join(missing)}.\n")
    if points["speedup"]:
        print(front(points, args.metric, args.speedups), "\n")
    print(contract(points))
    if args.json:
        args.json.write_text(json.dumps(values(points), indent=0) + "\n", encoding="utf-8")


def values(points: Points) -> dict[str, Any]:
    """By setting and prompt: share of the FLOPs, and every metric."""
    rows: dict[str, Any] = defaultdict(dict)
    for runs in points.values():
        for prompt, results in runs.items():
            for spent, result in results:
                scores = {name: round(value(result, name), 5) for name in result["scores"]}
                rows[result["label"]][prompt] = {"flops_kept": round(spent, 4)} | scores
    return rows


def read(store: Store) -> tuple[Points, list[str]]:
    """Finished clips. A method has only prompts with all of its settings; methods without a
    finished clip are left out."""
    points: Points = defaultdict(lambda: defaultdict(list))
    groups = [
        {job.method.label: result for job in group if (result := store.result(job.id))}
        for group in store.spec().groups()
    ]
    labels = {job.method.label for group in store.spec().groups() for job in group}
    made = {label for results in groups for label in results}
    wanted = defaultdict(set)
    for label in made:
        wanted[label.partition(":")[0]].add(label)
    for results in groups:
        if "uncached" not in results:
            continue
        full = sum(results["uncached"]["flops"])
        for name, settings in wanted.items():
            if name != "uncached" and settings <= set(results):
                for label in settings:
                    result = results[label]
                    spent = sum(result["flops"]) / full
                    points[name][result["prompt_id"]].append((spent, {**result, "label": label}))
    return points, sorted(labels - made)


def chosen(points: Points, store: Store, model: Path) -> dict[str, Any]:
    """For each prompt, the finished clip of the plan that a model's profile chooses for its text
    now.

    A plan gives the same clip for a speed and for a quality. Prompts whose plan was not run are
    left out.
    """
    from diffusers import WanPipeline

    from dit_accel.planning.difficulty import pooled
    from dit_accel.planning.lookup import PROFILE_FILE
    from dit_accel.planning.profile import Profile
    from dit_accel.planning.selection import Target, choose

    profile, pipe = Profile.load(model / PROFILE_FILE), WanPipeline.from_pretrained(model)
    length = store.spec().clip.max_sequence_length
    found: dict[str, Any] = defaultdict(list)
    for prompt in store.spec().prompts:
        text = pipe.encode_prompt(
            prompt.prompt, do_classifier_free_guidance=False, max_sequence_length=length
        )[0]
        for wanted in QUALITIES:
            choice = choose(profile, None, Target(wanted), text=pooled(text))
            for spent, result in points["speedup"].get(prompt.id, ()):
                if tuple(result["report"]["planned"]) == choice.plan.computed:
                    report = result["report"] | {"prediction": vars(choice.prediction)}
                    row = {**result, "label": f"quality:{wanted}", "report": report}
                    found[prompt.id].append((spent, row))
                    break
    return found


def value(result: dict[str, Any], metric: str) -> float:
    found = float(result["scores"][metric]["value"] or "inf")
    return min(found, 100.0)


def front(points: Points, metric: str, speedups: str | None = None) -> str:
    rivals = sorted(n for n in points if n not in ("uncached", "speedup", "quality"))
    common = set(points["speedup"]).intersection(*(points[name] for name in rivals))
    ours = {prompt: runs for prompt, runs in points["speedup"].items() if prompt in common}
    labels = sorted({r["label"] for runs in ours.values() for _, r in runs}, key=_number)
    if speedups:
        labels = [f"speedup:{speedup}" for speedup in speedups.split(",")]
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
            theirs = mean([other for _, other in pairs])
            cells.append(f"{_number_of(theirs.value)} ({_interval(gap, '+')})")
        lines.append(f"| {rival} (ours less it) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _at(runs: list[tuple[float, dict[str, Any]]], spent: float, metric: str) -> float:
    """A rival's value at a share of the FLOPs, on the line between its settings; constant
    beyond."""
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
        "| asked for | clips that reach it | steps over computed | by the oracle | share of it | "
        "PSNR, lowest and mean | prediction off by, median | within 2 dB | inside its interval |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    runs = points["quality"]
    for label in sorted({r["label"] for rs in runs.values() for _, r in rs}, key=_number):
        mine = {p: r for p, rs in runs.items() for _, r in rs if r["label"] == label}
        cells = (*_reached(mine, _number(label)), *_oracle(mine, points, _number(label)))
        lines.append(f"| {_number(label):g} dB | " + " | ".join((*cells, *_predicted(mine))) + " |")
    return "\n".join(lines)


def _speed(result: dict[str, Any]) -> float:
    return result["report"]["steps"] / result["report"]["steps_computed"]


def _reached(mine: dict[str, dict[str, Any]], wanted: float) -> tuple[str, str]:
    reached = [value(result, "psnr_db") >= wanted for result in mine.values()]
    speed = statistics.fmean(map(_speed, mine.values()))
    return f"{sum(reached)} of {len(reached)} ({statistics.fmean(reached):.0%})", f"{speed:.2f}×"


def _oracle(mine: dict[str, dict[str, Any]], points: Points, wanted: float) -> tuple[str, str]:
    """For prompts with every plan: the fastest plan that reached the quality, clip by clip."""
    candidates = {p: [r for _, r in points["speedup"][p]] for p in mine if p in points["speedup"]}
    if not candidates or min(map(len, candidates.values())) < MIN_CANDIDATES:
        return "-", "-"
    best = [
        max((_speed(r) for r in plans if value(r, "psnr_db") >= wanted), default=1.0)
        for plans in candidates.values()
    ]
    share = statistics.fmean(_speed(mine[p]) for p in candidates) / statistics.fmean(best)
    return f"{statistics.fmean(best):.2f}× ({len(best)} clips)", f"{share:.0%}"


def _predicted(mine: dict[str, dict[str, Any]]) -> tuple[str, str, str, str]:
    values = [value(result, "psnr_db") for result in mine.values()]
    pairs = [
        (v, predicted)
        for v, result in zip(values, mine.values(), strict=True)
        if (predicted := result["report"]["prediction"]) and predicted["psnr_db"] is not None
    ]
    span = f"{min(values):.1f}, {statistics.fmean(values):.1f}"
    if not pairs:
        return span, "-", "-", "-"
    errors = [abs(v - predicted["psnr_db"]) for v, predicted in pairs]
    inside = [predicted["low_db"] <= v <= predicted["high_db"] for v, predicted in pairs]
    near, within = statistics.fmean(error <= 2 for error in errors), statistics.fmean(inside)
    return span, f"{statistics.median(errors):.1f} dB", f"{near:.0%}", f"{within:.0%}"


def _number(label: str) -> float:
    return float(label.partition(":")[2])


def _number_of(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 2 else f"{value:.3f}"


def _interval(found: Interval, sign: str = "") -> str:
    if found.low is None or found.high is None:
        return f"{found.value:{sign}.1f}"
    digits = 1 if abs(found.value) >= 2 or abs(found.low) >= 2 else 3
    values = (f"{v:{sign}.{digits}f}" for v in (found.value, found.low, found.high))
    return "{} [{}, {}]".format(*values)


if __name__ == "__main__":
    main()
