"""Draws how close clips are to the uncached ones, over the number of runs that were spent before.

python scripts/docs/draw_knowledge.py --out docs/knowledge.png

Goes in: measurements of `mini-cogvideox` by table_knowledge.py and table_rivals.py, in
research/data. Comes out: a picture with a panel for each number of computed steps. Each other
method is a point at its own cost. Methods below 20 dB are left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

DATA = Path(__file__).parents[2] / "research" / "data"
MODEL, COUNTS = "mini-cogvideox", (20, 13)
WAYS = {  # by a part of the names of states in knowledge.jsonl
    "prior": "no run", "reference": "uncached references",
    "calibrated": "calibrate, few clips", "own clips": "profile of 32 clips",
}  # fmt: skip
COLOURS = ("#22262b", "#6f58b5", "#b0457f", "#2f9e6e")
NAMED = {"bns": "BNS", "dyweight": "DyWeight", "dpcache": "DPCache", "cem": "CEM",
         "oss/unipc": "OSS, UniPC", "l2p": "L2P", "fewer-steps": "fewer steps",
         "spectrum": "Spectrum", "budcache": "BudCache"}  # fmt: skip
OWN_RUNS = 164.0  # cost of the profile, as stated in it
FAINT, SHOWN_DB = "#8a9099", 20.0


def ours(count: int) -> dict[str, list[tuple[float, float]]]:
    """By way: uncached runs that were spent, and the mean PSNR."""
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for line in (DATA / "knowledge.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["model"] == MODEL and row["target"] == f"speedup {50 / count:.4g}":
            spent = OWN_RUNS if row["source"] == "own clips" else row["runs"]
            (way,) = (way for way in WAYS if way in row["source"])
            found[way].append((spent, statistics.fmean(row["psnr_db"])))
    return found


def rivals(count: int) -> dict[str, tuple[float, float]]:
    """The same by method."""
    results: list[dict[str, Any]] = json.loads((DATA / f"rivals-{MODEL}.json").read_text())[
        "results"
    ]
    made = (one for one in results if one["k"] == count and one["method"] != "speedup")
    return {
        one["method"]: (one["calibration_runs"], statistics.fmean(one["scores"]["psnr_db"]))
        for one in made if one.get("steps_computed", count + 1) <= count + 0.5
    }  # fmt: skip


def panel(axes: Axes, count: int) -> None:
    """Draw the panel of one number of computed steps."""
    for name, (spent, psnr) in rivals(count).items():
        if psnr >= SHOWN_DB:
            axes.plot(spent, psnr, "o", color=FAINT, markersize=3.5)
        if name in NAMED and psnr >= SHOWN_DB:
            axes.annotate(
                NAMED[name], (spent, psnr), (5, -3), textcoords="offset points", fontsize=7,
                color=FAINT,
            )  # fmt: skip
    for (way, points), colour in zip(ours(count).items(), COLOURS, strict=True):
        spent, psnr = zip(*sorted(points), strict=True)
        axes.plot(spent, psnr, "o-", color=colour, markersize=5, label=WAYS[way])
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(-0.15, 80_000)
    ticks = [0, 1, 2, 5, 16, 50, 164, 1000, 6000]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set_title(f"{count} of 50 steps computed", fontsize=9)
    axes.set_xlabel("uncached runs spent before the first clip", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(color="#e6e8ea", linewidth=0.6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/knowledge.png"))
    given = parser.parse_args()
    figure, panels = plt.subplots(1, len(COUNTS), figsize=(9.0, 4.0), layout="constrained")
    for axes, count in zip(panels, COUNTS, strict=True):
        panel(axes, count)
    panels[0].set_ylabel("PSNR to the uncached clip, dB", fontsize=8)
    shown = panels[0].get_legend_handles_labels()
    title = "ours; grey: other methods"
    figure.legend(
        *shown, loc="outside lower center", ncols=5, fontsize=8, frameon=False, title=title
    )
    figure.savefig(given.out, dpi=130)


if __name__ == "__main__":
    main()
