"""The table of an evaluation: for a terminal, and as Markdown for documents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from dit_accel.evaluate.statistics import Interval
    from dit_accel.evaluate.summary import Row, Summary

SHOWN = ("psnr_db", "ssim", "tof")
NOTE = (
    "≈: cannot be told apart from the noise floor. "
    "▲ ▼: better, worse than fewer steps at equal FLOPs."
)


def summary_table(summary: Summary, metrics: tuple[str, ...]) -> Table:
    """One row a method: what was computed, what it saved, what it cost in fidelity."""
    shown = [name for name in SHOWN if name in metrics]
    table = Table(caption=NOTE, caption_justify="left", title_justify="left")
    table.add_column("method", no_wrap=True)
    for name in ("clips", "steps", "FLOPs", "speedup", *shown):
        table.add_column(name, justify="right")
    for row in summary.rows:
        cells = [row.label, _clips(row), *_costs(row)]
        table.add_row(*cells, *(_score(row, name) for name in shown))
    return table


def markdown_table(summary: Summary, metrics: tuple[str, ...]) -> str:
    """The same, with the floor and the errors named below it."""
    shown = [name for name in SHOWN if name in metrics]
    heads = ["method", "clips", "steps computed", "FLOPs kept", "speedup (seconds)", *shown]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in summary.rows:
        scores = [_score(row, name) for name in shown]
        lines.append("| " + " | ".join([row.label, _clips(row), *_costs(row), *scores]) + " |")
    floor = [f"{name} {value:.4g} ({label})" for name, (label, value) in summary.floor.items()]
    notes = [NOTE, *(["Noise floor: " + ", ".join(floor) + "."] if floor else [])]
    notes += [f"{row.label}: {error}." for row in summary.rows for error in row.errors]
    return "\n".join([*lines, "", *notes]) + "\n"


def _clips(row: Row) -> str:
    counts = [f"{row.status['ok']}"]
    counts += [f"{row.status[name]} {name}" for name in ("no effect", "failed") if row.status[name]]
    return ", ".join(counts)


def _costs(row: Row) -> list[str]:
    steps = f"{row.steps_computed.value:.1f}" if row.steps_computed else "–"
    flops = f"{row.flops_kept.value:.0%}" if row.flops_kept else "–"
    speedup = f"{interval_text(row.speedup, 2)}×" if row.speedup else "–"
    return [steps, flops, speedup]


def _score(row: Row, metric: str) -> str:
    interval = row.scores.get(metric)
    if interval is None:
        return "–"
    digits = {"psnr_db": 1, "ssim": 4}.get(metric, 3)
    mark = "≈" if row.in_floor.get(metric) else ""
    verdict = row.against_steps.get(metric, {}).get("verdict")
    mark += {"better": "▲", "worse": "▼"}.get(str(verdict), "")
    return f"{interval_text(interval, digits)} {mark}".rstrip()


def interval_text(interval: Interval, digits: int) -> str:
    """`31.2 [30.1, 32.4]`."""
    if interval.low is None or interval.high is None:
        return f"{interval.value:.{digits}f}"
    return f"{interval.value:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"
