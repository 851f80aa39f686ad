"""The tables of `score`: for one pair a row a metric, for many a row a clip."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from dit_accel.metrics.row import Metric
    from dit_accel.metrics.scoring import Score
    from dit_accel.pairing import PairScores

ALIGNMENT = (
    "Scores measure alignment with the reference, not quality: a sharp clip that is shifted by one "
    "pixel scores below a blurred one."
)
_DIGITS = {"dB": 2, "levels": 2, "px": 3}


def show(rows: dict[str, Metric], scored: list[PairScores], mean: dict[str, Any]) -> None:
    """Print the scores on stdout."""
    console = Console(highlight=False)
    if len(scored) == 1:
        console.print(_one(rows, scored[0]))
    else:
        console.print(_many(rows, scored, mean))
    for name, row in rows.items():
        console.print(f"{name:<15} {_meaning(row)}", soft_wrap=True, markup=False, style="dim")
    for line in _reasons(scored):
        console.print(line, soft_wrap=True, markup=False)
    console.print(ALIGNMENT, style="dim")


def value_text(value: float | str | None, unit: str) -> str:
    """A score with the digits that its unit is worth; exact clips in words."""
    if value is None:
        return "–"
    number = float(value)
    return "exact" if math.isinf(number) else f"{number:.{_DIGITS.get(unit, 5)}f}"


def _one(rows: dict[str, Metric], scored: PairScores) -> Table:
    table = Table(box=SIMPLE, title=f"{scored.frames} frames", title_justify="left")
    table.add_column("metric", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    for name in ("unit", "better", "frames"):
        table.add_column(name)
    for name, row in rows.items():
        score = scored.scores[name]
        table.add_row(
            name,
            value_text(score.value, row.unit),
            row.unit,
            row.direction,
            _spread(score, row.unit),
        )
    return table


def _many(rows: dict[str, Metric], scored: list[PairScores], mean: dict[str, Any]) -> Table:
    table = Table("clip", "frames", box=SIMPLE)
    table.columns[1].justify = "right"
    for name in rows:
        table.add_column(name, justify="right", no_wrap=True)
    for clip in scored:
        values = [value_text(clip.scores[name].value, row.unit) for name, row in rows.items()]
        table.add_row(clip.pair.id, str(clip.frames), *values)
    table.add_section()
    means = [value_text(mean[name]["value"], row.unit) for name, row in rows.items()]
    table.add_row(f"mean of {len(scored)}", "", *means, style="bold")
    return table


def _meaning(row: Metric) -> str:
    unit = f" [{row.unit}]" if row.unit else ""
    return f"{row.direction} is better{unit}: {row.convention}"


def _spread(score: Score, unit: str) -> str:
    """The least and largest of the frames, and how many are exact."""
    if score.frames and score.exact_frames == len(score.frames):
        return "all exact"
    told = []
    if score.frames:
        low, high = (value_text(pick(score.frames), unit) for pick in (min, max))
        told.append(f"{low} to {high}")
    if score.exact_frames:
        told.append(f"{score.exact_frames} exact")
    return ", ".join(told)


def _reasons(scored: list[PairScores]) -> list[str]:
    """Why a metric has no score, once each."""
    reasons = (
        f"{name}: not measured, {score.reason}"
        for clip in scored
        for name, score in clip.scores.items()
        if score.value is None
    )
    return list(dict.fromkeys(reasons))
