"""Makes tables of an evaluation, of scores and of a profile's candidate plans.

In: a summary, scores or a profile. Out: tables for a terminal, and Markdown.
Knows how numbers are shown. Ours.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.table import Table

from dit_accel.cli.common.errors import as_option
from dit_accel.cli.common.text import counted, plain_console, print_table
from dit_accel.core.document import visible

if TYPE_CHECKING:
    from dit_accel.evaluation.pairs import PairScores
    from dit_accel.evaluation.summary import MethodSummary, Summary
    from dit_accel.metrics.row import Metric
    from dit_accel.metrics.scoring import Score
    from dit_accel.planning.candidate import CandidatePlan
    from dit_accel.planning.profile import Profile

SHOWN = ("psnr_db", "jod", "ssim", "tof")
NOTE = (
    "runs: cost of calibration before the first clip, in uncached runs. "
    "≈: not distinguishable from the noise floor. "
    "▲ ▼: better, worse than fewer steps at equal FLOPs."
)
ALIGNMENT = (
    "Scores measure alignment with the reference, not quality: a sharp clip that is shifted by one "
    "pixel scores below a blurred one."
)
LOW = 0.05  # share of the prompts below "5 % below"
_DIGITS = {"dB": 2, "JOD": 3, "levels": 2, "px": 3}


def summary_table(summary: Summary, metrics: tuple[str, ...]) -> Table:
    """One row for each method: what was computed, what it saved, what it cost in fidelity."""
    shown = [name for name in SHOWN if name in metrics]
    notes = [NOTE, *_sources(summary), *_errors(summary)]
    table = Table(caption="\n".join(notes), caption_justify="left")
    table.add_column("method", no_wrap=True)
    for name in ("clips", "steps", "FLOPs", "speedup", "runs", *shown):
        table.add_column(name, justify="right", no_wrap=True)
    for row in summary.rows:
        table.add_row(*_cells(row, shown))
    return table


def markdown_table(summary: Summary, metrics: tuple[str, ...]) -> str:
    """The same in Markdown, with the noise floor and the errors below it."""
    shown = [name for name in SHOWN if name in metrics]
    heads = ["method", "clips", "steps computed", "FLOPs", "speedup (seconds)", "calibration runs"]
    heads += shown
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    lines += ["| " + " | ".join(_cells(row, shown)) + " |" for row in summary.rows]
    floor = [f"{name} {value:.4g} ({label})" for name, (label, value) in summary.floor.items()]
    notes = [NOTE, *_sources(summary)]
    notes += ["Noise floor: " + ", ".join(floor) + "."] if floor else []
    notes += _errors(summary)
    return "\n".join([*lines, "", *notes]) + "\n"


def _sources(summary: Summary) -> list[str]:
    """The data that plans were made from, with one line for each source."""
    found: dict[str, list[str]] = {}
    for row in summary.rows:
        for source in row.rests_on:
            found.setdefault(source, []).append(row.label)
    return [f"{', '.join(labels)}: planned from {source}." for source, labels in found.items()]


def _errors(summary: Summary) -> list[str]:
    """Why clips failed, with one line for each method and reason."""
    return [visible(f"{row.label}: {error}.") for row in summary.rows for error in row.errors]


def _cells(row: MethodSummary, metrics: list[str]) -> list[str]:
    from dit_accel.evaluation.summary import runs_text

    counts = [f"{row.status['ok']}"]
    counts += [f"{row.status[name]} {name}" for name in ("no effect", "failed") if row.status[name]]
    steps = f"{row.steps_computed.value:.1f}" if row.steps_computed else "–"
    flops = f"{row.flops_kept.value:.0%}" if row.flops_kept else "–"
    speedup = f"{row.speedup.text(2)}×" if row.speedup else "–"
    scores = [_score_cell(row, name) for name in metrics]
    runs = runs_text(row.calibration_runs)
    return [row.label, ", ".join(counts), steps, flops, speedup, runs, *scores]


def _score_cell(row: MethodSummary, metric: str) -> str:
    from dit_accel.evaluation.summary import digits

    interval = row.scores.get(metric)
    if interval is None:
        return "–"
    mark = "≈" if row.in_floor.get(metric) else ""
    verdict = row.against_steps.get(metric, {}).get("verdict")
    mark += {"better": "▲", "worse": "▼"}.get(str(verdict), "")
    return f"{interval.text(digits(metric))} {mark}".rstrip()


def show_scores(rows: dict[str, Metric], scored: list[PairScores], mean: dict[str, Any]) -> None:
    """Print the scores on stdout."""
    console = plain_console()
    one = len(scored) == 1
    print_table(_pair_table(rows, scored[0]) if one else _folder_table(rows, scored, mean))
    for name, row in rows.items():
        unit = f" [{row.unit}]" if row.unit else ""
        meaning = f"{name:<15} {row.direction} is better{unit}: {row.convention}"
        console.print(meaning, soft_wrap=True, style="dim")
    for line in _reasons(scored):
        console.print(line, soft_wrap=True)
    console.print(ALIGNMENT, style="dim", soft_wrap=True)


def value_text(value: float | str | None, unit: str) -> str:
    """A score with the number of digits for its unit; "exact" for identical clips."""
    if value is None:
        return "–"
    number = float(value)
    return "exact" if math.isinf(number) else f"{number:.{_DIGITS.get(unit, 5)}f}"


def _pair_table(rows: dict[str, Metric], scored: PairScores) -> Table:
    frames = counted(scored.frames, "frame")
    table = Table(box=SIMPLE, title=frames, title_justify="left")
    table.add_column("metric", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    for name in ("unit", "better", "frames"):
        table.add_column(name)
    for name, row in rows.items():
        score = scored.scores[name]
        value = value_text(score.value, row.unit)
        table.add_row(name, value, row.unit, row.direction, _range(score, row.unit))
    return table


def _folder_table(rows: dict[str, Metric], scored: list[PairScores], mean: dict[str, Any]) -> Table:
    table = Table("clip", "frames", box=SIMPLE)
    table.columns[1].justify = "right"
    for name in rows:
        table.add_column(name, justify="right", no_wrap=True)
    for clip in scored:
        values = [value_text(clip.scores[name].value, row.unit) for name, row in rows.items()]
        table.add_row(clip.pair.id, str(clip.frames), *values)
    table.add_section()
    means = [_mean_cell(mean[name], row.unit, len(scored)) for name, row in rows.items()]
    table.add_row(f"mean of {len(scored)}", "", *means, style="bold")
    return table


def _mean_cell(mean: dict[str, Any], unit: str, clips: int) -> str:
    """A mean, and the number of clips that have a score, if some have none."""
    value = value_text(mean["value"], unit)
    return value if mean["clips"] in (0, clips) else f"{value} (of {mean['clips']})"


def _range(score: Score, unit: str) -> str:
    """The least and largest score of the frames, and the number of exact frames."""
    if score.frames and score.exact_frames == len(score.frames):
        return "all exact"
    parts = []
    if score.frames:
        low, high = (value_text(pick(score.frames), unit) for pick in (min, max))
        parts.append(f"{low} to {high}")
    if score.exact_frames:
        parts.append(f"{score.exact_frames} exact")
    return ", ".join(parts)


def _reasons(scored: list[PairScores]) -> list[str]:
    """The reasons why metrics have no score, each once."""
    reasons = (
        f"{name}: not measured, {as_option(score.reason or '')}"
        for clip in scored
        for name, score in clip.scores.items()
        if score.value is None
    )
    return list(dict.fromkeys(reasons))


def candidate_rows(profile: Profile) -> list[dict[str, Any]]:
    """One row for each plan, from slow to fast; JSON-able."""
    return [_candidate_row(candidate, profile) for candidate in profile.candidates]


def candidate_table(profile: Profile) -> Table:
    """The same for a terminal."""
    key = profile.key
    table = Table(
        title=f"{key.pipeline}, {key.steps} steps, guidance {key.guidance:g}, "
        f"{key.width}x{key.height}, {key.frames} frames",
        title_justify="left",
        box=SIMPLE,
    )
    for name in ("speedup", "steps computed", "PSNR, mean", "5 % below", "worst", "prompts"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in candidate_rows(profile):
        psnr = (f"{row[name]:.1f} dB" for name in ("mean_db", "low_db", "worst_db"))
        computed = f"{len(row['computed'])} of {key.steps}"
        table.add_row(f"{row['speedup']:.2f}x", computed, *psnr, str(row["prompts"]))
    return table


def _candidate_row(candidate: CandidatePlan, profile: Profile) -> dict[str, Any]:
    psnr = candidate.psnr_db.double()
    return {
        "kind": "plan",
        "speedup": profile.sampler.num_steps / len(candidate.computed),
        "computed": list(candidate.computed),
        "mean_db": float(psnr.mean()),
        "low_db": float(psnr.quantile(LOW)),
        "worst_db": float(psnr.min()),
        "prompts": len(psnr),
    }
