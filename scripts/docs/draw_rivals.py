"""Draws the fronts of all methods on four models, and how metrics agree; prints the numbers.

    python scripts/docs/draw_rivals.py

Goes in: `research/data/rivals-*.json`, which `table_rivals.py` packed. Comes out: `docs/rivals.png`
and `docs/metrics-agree.png`; in print, ours less the best other method prompt by prompt, also
without trained samplers, Spearman's correlations of the metrics over all clips and among the
methods of one prompt, the PSNR from which half and 95 % of the clips have a JOD (isotonic
regression), methods whose JOD is unusual at their PSNR, and how far the shares of CPU-seconds are
from those of FLOPs. Exact clips are left out.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from scipy.stats import spearmanr
from sklearn.isotonic import IsotonicRegression

from dit_accel.evaluation import statistics as intervals

mpl.use("agg")
from matplotlib import pyplot

ROOT = Path(__file__).resolve().parents[2]
MODELS = {  # models and their colours
    "mini-wan": "#0072b2", "mini-cogvideox": "#e69f00", "mini-ltx": "#009e73", "photos": "#cc79a7",
}  # fmt: skip
OURS = "speedup"
SHOWN = {  # colours of Okabe and Ito, which colour-blind people can distinguish
    OURS: ("ours", "#d55e00"), "dpcache": ("DPCache", "#0072b2"), "gits": ("GITS", "#009e73"),
    "ra-cfg-cache": ("RA-CFGCache", "#cc79a7"), "spectrum": ("Spectrum", "#e69f00"),
    "unipc-2": ("UniPC, best shift", "#56b4e9"), "fewer-steps": ("fewer steps", "#000000"),
    "bns": ("BNS, trained", "#7a3e9d"), "bns/grid": ("BNS on the grid, trained", "#7a3e9d"),
    "dyweight": ("DyWeight, trained", "#7a3e9d"),
}  # fmt: skip
TRAINED = {"bns": "--", "bns/grid": "-", "dyweight": ":"}  # by backpropagation, and their lines
CLIPS = 4000  # dots of a model in a panel
TURNS = 20  # dots are drawn in turns, so that no model hides the others
METRICS = {"jod": "JOD", "ssim": "SSIM", "st_lpips": "ST-LPIPS"}
Runs = dict[str, dict[int, dict[str, Any]]]


def main() -> None:
    found = {model: read(model) for model in MODELS}
    fronts(found, ROOT / "docs/rivals.png")
    agreement(found, ROOT / "docs/metrics-agree.png")
    for model, runs in found.items():
        print(f"## {model}, {len(runs)} methods")
        leads(runs)
        if set(TRAINED) & set(runs):
            print("without trained samplers:")
            leads({name: own for name, own in runs.items() if name not in TRAINED})
        seconds(runs)
        correlations(runs)
        seen(runs)
        unusual(runs)


def leads(runs: Runs) -> None:
    """Ours less the best other method of a number of computed steps."""
    for k, ours in sorted(runs[OURS].items(), reverse=True):
        others = {name: found[k] for name, found in runs.items()
                  if name != OURS and k in found
                  and found[k]["steps_computed"] < 1.06 * k}  # fmt: skip
        best = max(others, key=lambda name: mean(others[name], "psnr_db"))
        pairs = zip(ours["scores"]["psnr_db"], others[best]["scores"]["psnr_db"], strict=False)
        lead = intervals.mean([one - other for one, other in pairs])
        print(f"{k} computed: {best}, {lead.value:+.1f} dB [{lead.low:+.1f}, {lead.high:+.1f}]")


def seconds(runs: Runs) -> None:
    """Share of CPU-seconds less share of FLOPs, in points: over all rows, and a method's mean."""
    less = {
        name: [100 * (r["cpu_share"] - r["flops_kept"]) for r in own.values() if "cpu_share" in r]
        for name, own in runs.items()
    }
    every = np.abs([one for own in less.values() for one in own])
    if len(every):
        print(f"CPU-seconds: {np.median(every):.1f} points from the FLOPs in the median, "
              f"at most {every.max():.1f}; {len(every)} rows")  # fmt: skip
        means = sorted(((statistics.fmean(own), name) for name, own in less.items() if own))
        print(", ".join(f"{name} {value:+.1f}" for value, name in reversed(means)))


def correlations(runs: Runs) -> None:
    """Correlations of each two metrics. ST-LPIPS is lower if a clip is better."""
    rows = np.array(list(table(runs)), dtype=float)
    names = ("psnr_db", *METRICS)
    for one in range(4):
        for two in range(one + 1, 4):
            sign = -1 if names[two] == "st_lpips" else 1
            both = rows[np.isfinite(rows[:, [one, two]]).all(1)]
            if len(both):
                prompts = [both[both[:, 4] == prompt] for prompt in np.unique(both[:, 4])]
                among = [spearmanr(own[:, one], own[:, two])[0] for own in prompts]
                whole = spearmanr(both[:, one], both[:, two])[0]
                print(f"{names[one]}, {names[two]}: {sign * whole:.2f} over {len(both)} clips, "
                      f"{sign * np.nanmean(among):.2f} among methods")  # fmt: skip


def seen(runs: Runs) -> None:
    """The PSNR from which on clips reach a JOD."""
    pairs, levels = np.array(clips(runs, "jod")), np.linspace(10, 70, 601)
    for goal in (9.5, 9.0):
        reach = IsotonicRegression(out_of_bounds="clip").fit(pairs[:, 0], pairs[:, 1] >= goal)
        shares = reach.predict(levels)
        half, most = (levels[np.argmax(shares >= share)] for share in (0.5, 0.95))
        print(f"JOD {goal}: half of the clips from {half:.1f} dB on, 95 % from {most:.1f}")


def unusual(runs: Runs) -> None:
    """Methods whose JOD differs from the usual one at their PSNR, from 20 to 55 dB."""
    pairs = {name: np.array(clips({name: found}, "jod")) for name, found in runs.items()}
    pairs = {n: p[(p[:, 0] > 20) & (p[:, 0] < 55)] for n, p in pairs.items() if len(p)}
    every = np.concatenate(list(pairs.values()))
    usual = IsotonicRegression(out_of_bounds="clip").fit(every[:, 0], every[:, 1])
    for name, own in pairs.items():
        if (
            len(own) > 20
            and abs(less := float((own[:, 1] - usual.predict(own[:, 0])).mean())) > 0.2
        ):
            print(f"{name}: {less:+.2f} JOD at its PSNR, {len(own)} clips")


def table(runs: Runs) -> Iterator[tuple[float | None, ...]]:
    """PSNR, JOD, SSIM, ST-LPIPS and the prompt's number of all clips that are not exact."""
    for result in (result for found in runs.values() for result in found.values()):
        scores = result["scores"]
        for prompt, psnr in enumerate(scores["psnr_db"]):
            if psnr is not None and psnr < 99:
                yield psnr, *(scores[m][prompt] if m in scores else None for m in METRICS), prompt


def read(model: str) -> Runs:
    """Results by method and number of computed steps."""
    content = json.loads((ROOT / f"research/data/rivals-{model}.json").read_text(encoding="utf-8"))
    found: Runs = {}
    for result in content["results"]:
        if "scores" in result:
            found.setdefault(result["method"], {})[result["k"]] = result
    return found


def fronts(models: dict[str, Runs], target: Path) -> None:
    figure, panels = pyplot.subplots(1, len(models), figsize=(13, 4.2), sharey=True)
    for axes, (model, runs) in zip(panels, models.items(), strict=True):
        for method in sorted(runs, key=lambda name: name in SHOWN):
            points = sorted(
                (r["steps_computed"], mean(r, "psnr_db")) for r in runs[method].values()
            )
            label, colour = SHOWN.get(method, ("others", "#c8c8c8"))
            wide = 2.4 if method == OURS else 1.4 if method in SHOWN else 0.8
            style = TRAINED.get(method, "-")
            axes.plot(*zip(*points, strict=True), style, color=colour, lw=wide, label=label)
        axes.set(title=model, xlabel="computed steps of 50", xlim=(7, 27), ylim=(10, 66))
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("PSNR to the uncached clip, dB")
    handles = dict(zip(*reversed(panels[1].get_legend_handles_labels()), strict=True))
    names = [*(label for label, _ in SHOWN.values()), "others"]
    figure.legend([handles[n] for n in names], names, ncols=6, loc="lower center", fontsize=8)
    figure.tight_layout(rect=(0, 0.11, 1, 1))
    figure.savefig(target, dpi=110)


def agreement(models: dict[str, Runs], target: Path) -> None:
    figure, panels = pyplot.subplots(1, len(METRICS), figsize=(11, 3.8))
    for axes, (metric, label) in zip(panels, METRICS.items(), strict=True):
        shown = {model: clips(runs, metric) for model, runs in models.items()}
        shown = {model: pairs[:: max(1, len(pairs) // CLIPS)] for model, pairs in shown.items()}
        for turn in range(TURNS):
            for model, pairs in shown.items():
                if own := pairs[turn::TURNS]:
                    axes.plot(*zip(*own, strict=True), ".", ms=1.6, alpha=0.35, rasterized=True,
                              color=MODELS[model], label=None if turn else model)  # fmt: skip
        axes.set(xlabel="PSNR, dB", ylabel=label, xlim=(10, 65))
        axes.grid(alpha=0.25)
    panels[0].axhline(9.5, color="black", lw=0.8, ls="--")
    panels[0].text(11, 9.55, "9.5", fontsize=8, va="bottom")
    panels[0].set_ylim(-3, 10.6)
    panels[2].set_yscale("log")
    panels[2].set_ylim(1e-4, 1)
    panels[0].legend(markerscale=6, fontsize=8.5, loc="lower right")
    figure.tight_layout()
    figure.savefig(target, dpi=110)


def clips(runs: Runs, metric: str) -> Sequence[tuple[float, float]]:
    """PSNR and another score of all clips that have both, and are not exact."""
    found = []
    for by_steps in runs.values():
        for result in by_steps.values():
            scores = result["scores"]
            others = scores.get(metric, [None] * len(scores["psnr_db"]))
            found += [(p, o) for p, o in zip(scores["psnr_db"], others, strict=True)
                      if o is not None and p < 99]  # fmt: skip
    return found


def mean(result: dict[str, Any], metric: str) -> float:
    return statistics.fmean(v for v in result["scores"][metric] if v is not None)


if __name__ == "__main__":
    main()
