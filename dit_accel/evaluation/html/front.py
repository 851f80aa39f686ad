"""Draws speed against fidelity: one curve for each method, the Pareto front, and the noise floor.

In: results and their summary. Out: SVG in two widths, for a desktop and for a phone.
Source: ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dit_accel.evaluation.html import figures, svg
from dit_accel.evaluation.html.figures import NARROW, WIDE, end_at, shown_at
from dit_accel.evaluation.html.labels import Label, Points, place
from dit_accel.evaluation.html.svg import Look, Size
from dit_accel.evaluation.methods.row import Setting
from dit_accel.evaluation.results import Results
from dit_accel.evaluation.statistics import Interval
from dit_accel.evaluation.summary import MethodSummary, Summary, digits
from dit_accel.metrics import METRICS


@dataclass(frozen=True)
class Axis:
    """A way to count savings."""

    key: str
    title: str
    value: Callable[[MethodSummary], Interval | None]


@dataclass(frozen=True)
class Point:
    """A setting in the plot of speed against fidelity."""

    setting: Setting
    x: Interval
    y: Interval
    front: bool


def _flops_saved(row: MethodSummary) -> Interval | None:
    share = row.flops_kept
    if share is None or share.value <= 0:
        return None
    low, high = (1 / end if end else None for end in (share.high, share.low))
    return Interval(1 / share.value, low, high, share.n)


AXES = (
    Axis("flops", "FLOPs saved (uncached ÷ method)", _flops_saved),
    Axis("seconds", "speedup in seconds (uncached ÷ method)", lambda row: row.speedup),
)


def points(results: Results, summary: Summary, axis: Axis, metric: str) -> list[Point]:
    """All drawn settings that have both values. A setting is on the front if no other is better in
    both."""
    rows = summary.by_setting
    found = []
    for setting in results.drawn():
        x, y = axis.value(rows[setting]), rows[setting].scores.get(metric)
        if x is not None and y is not None and math.isfinite(y.value):
            found.append((setting, x, y))
    sign = 1 if METRICS[metric].direction == "higher" else -1
    return [
        Point(
            s, x, y,
            not any(
                a.value >= x.value and sign * b.value >= sign * y.value and (a, b) != (x, y)
                for _, a, b in found
            ),
        )
        for s, x, y in found
    ]  # fmt: skip


def front(results: Results, summary: Summary, axis: Axis, metric: str) -> tuple[str, str] | None:
    """The plot of speed against fidelity, (wide, narrow); None if there is nothing to draw."""
    shown = points(results, summary, axis, metric)
    if not shown:
        return None
    sizes = Size(WIDE[0], 500, WIDE[1]), Size(NARROW[0], 360, NARROW[1])
    wide, narrow = (_front(results, summary, axis, metric, shown, size) for size in sizes)
    return wide, narrow


def _front(
    results: Results, summary: Summary, axis: Axis, metric: str, shown: list[Point], size: Size
) -> str:
    slots = results.slots()
    tips: dict[str, str] = {}
    with svg.drawing(size) as figure:
        axes = figure.add_axes(figures.margins(size, left=62 if not size.narrow else 44, bottom=52))
        families = {
            name: [p for s in settings for p in shown if p.setting == s]
            for name, settings in results.families().items()
        }
        for name, family in families.items():
            style = svg.look(slots[name])
            axes.plot(
                [p.x.value for p in family], [shown_at(metric, p.y.value) for p in family],
                color=style.colour, linestyle=style.dashes, zorder=3,
            )  # fmt: skip
            for point in family:
                gid = f"{svg.TIP}{len(tips)}"
                tips[gid] = _tip(point, axis, metric)
                _point(axes, point, style, gid, metric)
        _limits(axes, shown, metric)
        _draw_floor(axes, summary, metric, size)
        axes.set_xlabel(axis.title)
        axes.set_title(
            figures.title(metric), loc="left", fontsize=size.font, color=svg.CSS_MUTED, pad=10
        )
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
        _write_labels(axes, families, slots, size, metric)
        alt = f"{figures.title(metric)} against {axis.title}, one curve a method: " + "; ".join(
            tips[key] for key in tips
        )
        return svg.to_svg(figure, f"f-{axis.key}-{metric}-{figures.kind(size)}", alt, tips)


def _point(axes: Any, point: Point, style: Look, gid: str, metric: str) -> None:
    at = shown_at(metric, point.y.value)
    for bar in _bars(point, metric):
        axes.plot(*bar.T, color=style.colour, linewidth=1, alpha=0.75, zorder=2)
    axes.plot(
        [point.x.value], [at], marker=style.marker, markersize=8.5,
        color=style.colour, markerfacecolor=style.colour if point.front else svg.CSS_PAPER,
        markeredgecolor=style.colour, markeredgewidth=1.6, zorder=4, gid=gid, clip_on=False,
    )  # fmt: skip


def _limits(axes: Any, shown: list[Point], metric: str) -> None:
    ends = [v for p in shown for v in (p.y.value, p.y.low, p.y.high)]
    ys = [shown_at(metric, v) for v in ends if v is not None]
    xs = [v for p in shown for v in (p.x.value, p.x.low, p.x.high) if v is not None]
    margin = 0.1 * (max(ys) - min(ys)) or 0.05 * abs(max(ys)) or 1.0
    axes.set_ylim(min(ys) - margin, max(ys) + margin)
    figures.score_ticks(axes.yaxis, metric)
    right = max(xs) + 0.06 * (max(xs) - min(1.0, *xs)) + 0.02
    axes.set_xlim(min(1.0, *xs) - 0.03 * (right - 1), right)
    if METRICS[metric].direction == "lower":
        axes.invert_yaxis()


def _draw_floor(axes: Any, summary: Summary, metric: str, size: Size) -> None:
    """Draw a band from the floor to the better side, or a note at the edge if it is out of
    sight."""
    if metric not in summary.floor:
        return
    name, value = summary.floor[metric]
    higher = METRICS[metric].direction == "higher"
    low, high = sorted(axes.get_ylim())
    text = f"noise floor: {name} {value:.{digits(metric)}f}"
    near = value <= high + 0.35 * (high - low) if higher else value >= low - 0.35 * (high - low)
    if near:
        reach = 0.07 * (high - low)
        high, low = (max(high, value + reach), low) if higher else (high, min(low, value - reach))
        axes.set_ylim((low, high) if higher else (high, low))
        axes.axhspan(
            value, high if higher else low, color=svg.CSS_FLOOR, alpha=0.13, linewidth=0, zorder=0
        )
        axes.axhline(value, color=svg.CSS_FLOOR, linewidth=1.3, linestyle=(0, (5, 3)), zorder=1)
        text, at = f"{text}, no difference above" if not size.narrow else text, value
    else:
        text, at = f"{text} ↑ above this plot" if higher else f"{text} ↑ beyond", axes.get_ylim()[1]
    axes.annotate(
        text, (1, at), xycoords=("axes fraction", "data"), xytext=(-4, 4),
        textcoords="offset points", ha="right", va="bottom", color=svg.CSS_FLOOR,
        fontsize=size.font - 1, annotation_clip=False,
    )  # fmt: skip


def _write_labels(
    axes: Any, families: dict[str, list[Point]], slots: dict[str, int], size: Size, metric: str
) -> None:
    """Write names beside the curves if there is room. On a phone, the key is above."""
    lines = [
        np.array([(p.x.value, shown_at(metric, p.y.value)) for p in family])
        for family in families.values()
    ]
    bars = [bar for family in families.values() for p in family for bar in _bars(p, metric)]
    names, numbers = [], []
    for name, family in families.items():
        if not family:
            continue
        colour = svg.look(slots[name]).colour
        end = max(family, key=lambda p: p.x.value)
        single = len(family) == 1
        names.append(
            Label(
                end.x.value, shown_at(metric, end.y.value), end.setting.label if single else name,
                colour if slots[name] >= 0 else svg.CSS_MUTED, size.font, bold=True,
            )
        )  # fmt: skip
        numbers += [
            Label(p.x.value, shown_at(metric, p.y.value), f"{p.setting.number:g}",
                  svg.CSS_MUTED, size.font - 2.5, optional=True)
            for p in family
            if p.setting.number is not None and not single
        ]  # fmt: skip
    place(axes, [*([] if size.narrow else names), *numbers], [*lines, *bars])


def _bars(point: Point, metric: str) -> list[Points]:
    """Draw the point's intervals as lines."""
    x, y = point.x, point.y
    at, low, high = shown_at(metric, y.value), end_at(metric, y.low), end_at(metric, y.high)
    found = []
    if x.low is not None and x.high is not None:
        found.append(np.array([(x.low, at), (x.high, at)]))
    if low is not None and high is not None:
        found.append(np.array([(x.value, low), (x.value, high)]))
    return found


def _tip(point: Point, axis: Axis, metric: str) -> str:
    saved = f"{point.x.value:.2f}× {'FLOPs saved' if axis.key == 'flops' else 'in seconds'}"
    reached = f"{point.y.text(digits(metric))} {METRICS[metric].unit}".rstrip()
    return f"{point.setting.label}: {reached}, {saved}"
