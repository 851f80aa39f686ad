"""Compares how JOD, ST-LPIPS, SSIM and PSNR rank the clips of an evaluation.

    dit-accel evaluate prompts.jsonl --output runs/a --metrics psnr_db,jod,st_lpips,ssim ...
    python scripts/experiments/table_metrics.py runs/a --figure metrics.png
    python scripts/experiments/table_metrics.py runs/a --distances 0.19     # four times as near

The output is Markdown tables; the last line is JSON. A clip counts if it is not exact and has all
scores. The signs of rank correlations are such that 1 means: both metrics agree on which clips are
better. "Among methods" is the mean over prompts and seeds of the correlation over the methods'
clips of one prompt and seed: the content is the same, and only the methods differ.

"PSNR at JOD 9.5": the share of clips that reach it is fitted as a function of PSNR that never falls
(isotonic regression). The table has the PSNRs at which it passes a half and 95 %. "–": it does not;
"≤": the clip of least PSNR is there already. `--distances` scores the stored clips again, seen from
these distances in metres.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dit_accel.evaluation.results import OK, Results, ScoredPair, score
from dit_accel.evaluation.statistics import finite
from dit_accel.evaluation.store import Store
from dit_accel.metrics import METRICS, jod

NAMES = ("psnr_db", "jod", "st_lpips", "ssim")
GOALS = (9.5, 9.0)
SHARES = (0.5, 0.95)
SHOWN = 5  # clips on which two metrics disagree most


@dataclass(frozen=True)
class Clip:
    """One clip's scores; higher is better in all of `signed`."""

    prompt: str
    seed: int
    method: str
    control: bool
    scores: Mapping[str, float]

    def signed(self, metric: str) -> float:
        """The score, negated if less is better."""
        return self.scores[metric] * (1 if METRICS[metric].direction == "higher" else -1)


def main() -> None:
    asked = _arguments()
    store = Store(asked.run)
    results = store.results()
    names = [name for name in NAMES if name in results.spec.metrics]
    clips = clips_of(results, names)
    if len(clips) < 3 or len(names) < 2:
        raise SystemExit(f"{asked.run} has {len(clips)} clips with scores by {', '.join(names)}")
    record = {
        "clips": len(clips),
        "methods": len({clip.method for clip in clips}),
        "over_clips": correlations(clips, names),
        "among_methods": among_methods(clips, names),
        "psnr_at": {"own": psnr_at_goals(clips, [clip.scores["jod"] for clip in clips])}
        if "jod" in names
        else {},
    }
    for distance in asked.distances:
        near = seen_from(store, results, clips, distance)
        record["psnr_at"][f"{distance:g} m"] = psnr_at_goals(clips, near)
    print(tables(record, clips, names))
    if asked.figure is not None and "jod" in names:
        draw(clips, names, record["psnr_at"]["own"], asked.figure)
    print(json.dumps(finite(record)))


def clips_of(results: Results, names: Sequence[str]) -> list[Clip]:
    """The clips that are not exact and have all of these scores."""
    found = []
    for setting, pair in _pairs(results):
        scores = {name: score(name)(pair.result, pair.reference) for name in names}
        if all(value is not None for value in scores.values()) and pair.result["status"] == OK:
            exact = pair.result["frames_sha256"] == pair.reference["frames_sha256"]
            if not exact:
                job = pair.job
                found.append(
                    Clip(job.prompt_id, job.clip.seed, setting.label, setting.control, scores)
                )
    return found


def correlations(clips: Sequence[Clip], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Spearman's rank correlation of each two metrics."""
    values = {name: [clip.signed(name) for clip in clips] for name in names}
    return {
        one: {other: float(spearmanr(values[one], values[other])[0]) for other in names}
        for one in names
    }


def among_methods(clips: Sequence[Clip], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """The mean over prompts and seeds of the correlation over the methods' clips of each."""
    groups: dict[tuple[str, int], list[Clip]] = {}
    for clip in clips:
        groups.setdefault((clip.prompt, clip.seed), []).append(clip)
    found = [correlations(group, names) for group in groups.values() if len(group) >= 3]
    return {
        one: {other: _nanmean(each[one][other] for each in found) for other in names}
        for one in names
    }


def psnr_at_goals(clips: Sequence[Clip], jods: Sequence[float]) -> dict[str, Any]:
    """For each goal of JOD: how many clips reach it, and the PSNRs from which on shares do."""
    psnr = [clip.scores["psnr_db"] for clip in clips]
    return {
        f"{goal:g}": {"reach": int(sum(value >= goal for value in jods))}
        | {f"{share:g}": psnr_at(psnr, jods, goal, share) for share in SHARES}
        for goal in GOALS
    }


def psnr_at(
    psnr: Sequence[float], jods: Sequence[float], goal: float, share: float
) -> float | None:
    """The least PSNR at which the given share of clips reaches the goal.

    Args:
        psnr: PSNR of the clips.
        jods: JOD of the same clips.
        goal: the JOD to reach.
        share: in (0, 1).

    Returns:
        None if the share is not reached; the least PSNR of all if the worst clip reaches it.
    """
    from sklearn.isotonic import IsotonicRegression

    reached = (np.asarray(jods) >= goal).astype(float)
    curve = IsotonicRegression(y_min=0, y_max=1).fit(psnr, reached)
    grid = np.linspace(min(psnr), max(psnr), 2001)
    above = np.flatnonzero(curve.predict(grid) >= share)
    return float(grid[above[0]]) if len(above) else None


def seen_from(
    store: Store, results: Results, clips: Sequence[Clip], distance: float
) -> list[float]:
    """JOD of the stored clips from another distance, in the order of `clips`."""
    pairs = {
        (pair.job.prompt_id, pair.job.clip.seed, setting.label): pair
        for setting, pair in _pairs(results)
    }
    found = []
    for clip in clips:
        pair = pairs[clip.prompt, clip.seed, clip.method]
        reference = store.read_clip(pair.job.reference.id, pair.reference["frames_sha256"])
        test = store.read_clip(pair.job.id, pair.result["frames_sha256"])
        fps = {} if pair.job.clip.fps is None else {"fps": pair.job.clip.fps}
        found.append(jod(reference, test, data_range=255, distance_m=distance, **fps))
    return found


def disagreements(clips: Sequence[Clip], one: str, other: str) -> list[tuple[Clip, float]]:
    """The clips that `one` ranks better than `other` does, the largest difference first.

    Returns:
        The clip, and the difference of its ranks as a share of all clips, above 0.
    """
    from scipy.stats import rankdata

    ranks = [rankdata([clip.signed(name) for clip in clips]) / len(clips) for name in (one, other)]
    order = np.argsort(ranks[1] - ranks[0], kind="stable")
    found = [(clips[at], float(ranks[0][at] - ranks[1][at])) for at in order]
    return [(clip, by) for clip, by in found if by > 0][:SHOWN]


def tables(record: Mapping[str, Any], clips: Sequence[Clip], names: Sequence[str]) -> str:
    """All tables in Markdown."""
    parts = [f"{record['clips']} clips of {record['methods']} settings."]
    for title, key in (("Over all clips", "over_clips"), ("Among methods", "among_methods")):
        rows = [[one, *(f"{record[key][one][other]:.2f}" for other in names)] for one in names]
        parts.append(_table([title, *names], rows))
    if record["psnr_at"]:
        least = min(clip.scores["psnr_db"] for clip in clips)
        heads = ["seen from", "JOD at least", "clips", *(f"PSNR, {s:.0%}" for s in SHARES)]
        rows = [
            [
                where,
                goal,
                str(found["reach"]),
                *(_db(found[f"{share:g}"], least) for share in SHARES),
            ]
            for where, goals in record["psnr_at"].items()
            for goal, found in goals.items()
        ]
        parts.append(_table(heads, rows))
        for better, worse in (("jod", "psnr_db"), ("psnr_db", "jod")):
            parts.append(_disagreement(clips, names, better, worse))
    return "\n\n".join(parts)


def _disagreement(clips: Sequence[Clip], names: Sequence[str], better: str, worse: str) -> str:
    rows = [
        [clip.method, clip.prompt, str(clip.seed), f"{by:.0%}"]
        + [f"{clip.scores[name]:.4g}" for name in names]
        for clip, by in disagreements(clips, better, worse)
    ]
    title = f"better by {better} than by {worse}"
    return _table([title, "prompt", "seed", "ranks apart", *names], rows)


def draw(clips: Sequence[Clip], names: Sequence[str], goals: Mapping[str, Any], path: Path) -> None:
    """Draw JOD of every clip over its other scores, with one panel for each metric."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    others = [name for name in names if name != "jod"]
    figure, panels = plt.subplots(
        1, len(others), figsize=(4.2 * len(others), 3.8), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    families = list(dict.fromkeys(clip.method.split(":")[0] for clip in clips))
    for axes, name in zip(panels[0], others, strict=True):
        for index, family in enumerate(families):
            some = [clip for clip in clips if clip.method.split(":")[0] == family]
            colour = "0.6" if some[0].control else f"C{index % 10}"
            x, y = ([clip.scores[metric] for clip in some] for metric in (name, "jod"))
            axes.scatter(x, y, s=12, alpha=0.6, color=colour, label=family, linewidths=0)
        for goal in GOALS:
            axes.axhline(goal, color="0.7", linewidth=0.8)
        axes.set_xlabel(f"{name} ({METRICS[name].direction} is better)")
    panels[0][0].set_ylabel("JOD (10: no visible difference)")
    for found in goals.values():
        if name_at := found[f"{SHARES[-1]:g}"]:
            panels[0][0].axvline(name_at, color="0.7", linewidth=0.8, linestyle=":")
    panels[0][0].legend(fontsize=7)
    if "st_lpips" in others:
        panels[0][others.index("st_lpips")].set_xscale("log")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _pairs(results: Results) -> Iterable[tuple[Any, ScoredPair]]:
    for setting in results.drawn():
        for pair in results.pairs[setting]:
            yield setting, pair


def _nanmean(values: Iterable[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def _db(value: float | None, least: float) -> str:
    if value is None:
        return "–"
    return f"{'≤ ' if value <= least else ''}{value:.1f} dB"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder of an evaluation")
    parser.add_argument("--figure", type=Path, help="a picture, .png or .svg")
    parser.add_argument("--distances", type=float, nargs="*", default=[], metavar="METRES")
    return parser.parse_args()


if __name__ == "__main__":
    main()
