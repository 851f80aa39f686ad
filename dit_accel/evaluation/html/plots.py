"""Draws the scores by prompt and by frame.

In: results and their summary. Out: SVG in two widths, for a desktop and for a phone.
Source: ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from dit_accel.evaluation.html import figures, svg
from dit_accel.evaluation.html.figures import NARROW, WIDE, end_at, shown_at
from dit_accel.evaluation.html.svg import Look, Size
from dit_accel.evaluation.methods.row import Setting
from dit_accel.evaluation.results import FrameValues, Results
from dit_accel.evaluation.statistics import Interval
from dit_accel.evaluation.summary import Summary

DOTS = 80
_PATTERNS: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)))
Lines = list[tuple[Setting, FrameValues]]


def prompts(results: Results, summary: Summary, metric: str) -> tuple[str, str] | None:
    """The plot of every prompt's score for every method, (wide, narrow); None if there are no
    scores."""
    shown = [s for s in results.drawn() if results.scores(s, metric)]
    if not shown:
        return None
    sizes = (
        Size(WIDE[0], 60 + 24 * len(shown), WIDE[1]),
        Size(NARROW[0], 60 + 34 * len(shown), NARROW[1]),
    )
    wide, narrow = (_prompts(results, summary, metric, shown, size) for size in sizes)
    return wide, narrow


def _prompts(
    results: Results, summary: Summary, metric: str, shown: list[Setting], size: Size
) -> str:
    slots, longest = results.slots(), max(len(setting.label) for setting in shown)
    left = 12 if size.narrow else 24 + 0.56 * size.font * longest
    with svg.drawing(size) as figure:
        axes = figure.add_axes(figures.margins(size, left=left, bottom=44, top=8))
        for row, setting in enumerate(shown):
            values = results.scores(setting, metric).values()
            score = summary.by_setting[setting].scores[metric]
            _dots(axes, row, values, score, svg.look(slots[setting.method]), metric)
            if size.narrow:
                axes.annotate(
                    setting.label, (0, row), xycoords=("axes fraction", "data"),
                    xytext=(0, 7), textcoords="offset points", fontsize=size.font - 0.5,
                )  # fmt: skip
        axes.set_ylim(len(shown) - 0.5, -0.75 if size.narrow else -0.5)
        axes.set_yticks([] if size.narrow else range(len(shown)))
        if not size.narrow:
            axes.set_yticklabels([setting.label for setting in shown], color=svg.CSS_INK)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        if metric in summary.floor:
            _floor(axes, *summary.floor[metric], len(shown) - 0.55, size)
        name = figures.title(metric)
        axes.set_xlabel(name)
        figures.score_ticks(axes.xaxis, metric)
        alt = f"{name} of every prompt, one row a method; the means are in the table"
        return svg.to_svg(figure, f"p-{metric}-{figures.kind(size)}", alt)


def _dots(
    axes: Any, row: int, values: Iterable[float], score: Interval | None, style: Look, metric: str
) -> None:
    """The scores of a setting in its row, with their mean and its interval."""
    dots = thinned([shown_at(metric, value) for value in values])
    axes.plot(dots, [row] * len(dots), "o", markersize=6, alpha=0.6, color=style.colour,
              markeredgewidth=0, zorder=2)  # fmt: skip
    if score is None:
        return
    ends = [end_at(metric, end) for end in (score.low, score.high)]
    if None not in ends:
        axes.plot(ends, (row, row), color=svg.CSS_INK, linewidth=1.6, zorder=3)
    axes.plot([shown_at(metric, score.value)], [row], "|", markersize=13, markeredgewidth=2.4,
              color=svg.CSS_INK, zorder=4)  # fmt: skip


def _floor(axes: Any, name: str, floor: float, bottom: float, size: Size) -> None:
    """The noise floor, if it is among the scores."""
    low, high = axes.get_xlim()
    if not low <= floor <= high:
        return
    axes.axvline(floor, color=svg.CSS_FLOOR, linestyle=(0, (5, 3)), linewidth=1.3, zorder=1)
    side = "right" if floor > (low + high) / 2 else "left"
    axes.text(floor, bottom, f" {name} ", color=svg.CSS_FLOOR, ha=side, va="bottom",
              fontsize=size.font - 2)  # fmt: skip


def thinned(values: Sequence[float]) -> list[float]:
    """All values, sorted. Of more than `DOTS` values, `DOTS` at even ranks, with both ends."""
    ordered = sorted(values)
    if len(ordered) <= DOTS:
        return ordered
    ranks = np.linspace(0, len(ordered) - 1, DOTS).round().astype(int)
    return [ordered[rank] for rank in ranks]


# frames


def frames(results: Results, metric: str) -> tuple[str, str] | None:
    """The plot of a metric over the frames, one panel for each method, (wide, narrow); None if
    there are no scores."""
    panels = {
        name: found
        for name, settings in results.families().items()
        if (found := [
            (s, values) for s in settings
            if (values := results.frame_scores(s, metric)) is not None
        ])
    }  # fmt: skip
    if not panels:
        return None
    wide = min(3, len(panels))
    narrow = 1 if len(panels) < 3 else 2
    tall, short = math.ceil(len(panels) / wide), math.ceil(len(panels) / narrow)
    return (
        _frames(results, metric, panels, Size(WIDE[0], 34 + 210 * tall, 12.5), wide),
        _frames(results, metric, panels, Size(NARROW[0], 34 + 168 * short, 11), narrow),
    )


def _frames(
    results: Results, metric: str, panels: dict[str, Lines], size: Size, columns: int
) -> str:
    slots = results.slots()
    rows = math.ceil(len(panels) / columns)
    with svg.drawing(size) as figure:
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        figure.subplots_adjust(
            left=(44 if not size.narrow else 34) / size.width, right=1 - 30 / size.width,
            top=1 - 24 / size.height, bottom=44 / size.height,
            hspace=0.3 if not size.narrow else 0.34, wspace=0.16 if not size.narrow else 0.22,
        )  # fmt: skip
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes, (name, settings) in zip(grid.flat, panels.items(), strict=False):
            _panel(axes, name, settings, svg.look(slots[name]), size, metric)
        last = len(panels) - columns
        for index, axes in enumerate(grid.flat[: len(panels)]):
            if index >= last:
                axes.tick_params(labelbottom=True)
                axes.set_xlabel("frame")
        alt = f"{figures.title(metric)} over the frames, one panel a method, one line a setting"
        return svg.to_svg(figure, f"t-{metric}-{figures.kind(size)}", alt)


def _panel(axes: Any, name: str, settings: Lines, style: Look, size: Size, metric: str) -> None:
    ends = []
    for index, (setting, scores) in enumerate(settings):
        values = np.minimum(scores, figures.CEILING.get(metric, math.inf))
        x = np.arange(values.shape[1])
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75), axis=0)
        strength = 1 - 0.5 * index / max(1, len(settings) - 1)
        axes.fill_between(x, low, high, color=style.colour, alpha=0.13, linewidth=0)
        dashes = _PATTERNS[index % len(_PATTERNS)]
        axes.plot(x, middle, color=style.colour, alpha=strength, linewidth=1.8, linestyle=dashes)
        if setting.number is not None:
            ends.append((middle[-1], x[-1], f"{setting.number:g}"))
    axes.set_title(
        name, loc="left", fontsize=size.font, color=style.colour, fontweight="bold", pad=6
    )
    for y, x, text in ends:
        axes.annotate(
            text, (x, y), xytext=(4, 0), textcoords="offset points", va="center",
            fontsize=size.font - 2.5, color=svg.CSS_MUTED, annotation_clip=False,
        )  # fmt: skip
    axes.xaxis.get_major_locator().set_params(integer=True, nbins=5)
    figures.score_ticks(axes.yaxis, metric)
