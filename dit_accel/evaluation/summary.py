"""Makes one row for each method: savings and costs, with intervals, and the noise floor.

In: the results of an evaluation. Out: a table, JSON-able, and paired comparisons of two settings.
Knows: speed is a ratio of summed seconds over the same prompts; fidelity is a mean over prompts.
Each row is compared with the noise floor (the model run again) and with fewer steps at the same
FLOPs. Does not know how the table is drawn.
Source: ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dit_accel.evaluation import statistics
from dit_accel.evaluation.methods.row import UNCACHED, Setting
from dit_accel.evaluation.results import (
    FAILED,
    NO_EFFECT,
    OK,
    PSNR,
    Result,
    Results,
    clock,
    flops_kept,
    steps_computed,
)
from dit_accel.evaluation.statistics import Interval
from dit_accel.metrics import METRICS


@dataclass(frozen=True)
class MethodSummary:
    """One method with its number. Intervals are None if nothing was measured. `rests_on`: the data
    that its plans were made from."""

    label: str
    method: str
    number: float | int | None
    control: bool
    status: dict[str, int]
    errors: tuple[str, ...]
    remarks: tuple[str, ...]
    steps_computed: Interval | None
    flops_kept: Interval | None
    calibration_runs: float | None
    speedup: Interval | None
    speedup_whole: Interval | None
    seconds: Interval | None
    peak_memory_bytes: int | None
    cached_bytes: int | None
    scores: dict[str, Interval | None]
    exact_frames: int
    frames: int
    rests_on: tuple[str, ...] = ()
    in_floor: dict[str, bool] = field(default_factory=dict)
    against_steps: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """The whole table. `floor`: for each metric, the worst rerun and its value."""

    rows: tuple[MethodSummary, ...]
    floor: dict[str, tuple[str, float]]
    jobs: int
    done: int

    @property
    def by_setting(self) -> dict[Setting, MethodSummary]:
        """The rows by their settings."""
        return {Setting(row.method, row.number): row for row in self.rows}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        content: dict[str, Any] = statistics.finite(asdict(self))
        return content


def summarise(results: Results) -> Summary:
    """The table of an evaluation so far."""
    metrics = results.spec.metrics
    rows = [_row(setting, results) for setting in results.pairs]
    floor = _floor(rows, metrics)
    for row, setting in zip(rows, results.pairs, strict=True):
        row.in_floor.update(_in_floor(setting, results, floor))
        row.against_steps.update(_against_steps(setting, results))
    done = sum(result is not None for result in results.by_id.values())
    return Summary(tuple(rows), floor, len(results.by_id), done)


def paired(
    results: Results, one: Setting, other: Setting, metric: str
) -> tuple[Interval, statistics.Verdict]:
    """How much better `one` scores than `other` on the prompts that both have.

    Raises:
        ValueError: there is no prompt that both have.
    """
    a, b = results.scores(one, metric), results.scores(other, metric)
    common = [prompt for prompt in a if prompt in b]
    interval = statistics.difference([a[p] for p in common], [b[p] for p in common])
    return interval, statistics.verdict(interval, METRICS[metric].direction)


def _row(setting: Setting, results: Results) -> MethodSummary:
    jobs = results.jobs(setting)
    made = [result for job in jobs if (result := results.by_id[job.id])]
    scored = [pair.result for pair in results.pairs[setting]]
    status = {name: sum(r["status"] == name for r in made) for name in (OK, NO_EFFECT, FAILED)}
    metrics = results.spec.metrics if setting.method != UNCACHED else ()
    return MethodSummary(
        label=setting.label,
        method=setting.method,
        number=setting.number,
        control=setting.control or setting.method == UNCACHED,
        status={**status, "missing": len(jobs) - len(made)},
        errors=tuple(dict.fromkeys(r["error"] for r in made if r["error"])),
        remarks=tuple(dict.fromkeys(text for r in scored for text in r["remarks"])),
        steps_computed=_mean(results.values(setting, steps_computed)),
        flops_kept=_mean(results.values(setting, flops_kept)),
        calibration_runs=_spent_before(scored),
        speedup=_speedup(setting, results, "denoising_seconds"),
        speedup_whole=_speedup(setting, results, "whole_seconds"),
        seconds=_mean(results.values(setting, clock("denoising_seconds"))),
        peak_memory_bytes=_most(r["clock"]["peak_memory_bytes"] for r in scored),
        cached_bytes=_most((r["report"] or {}).get("cached_bytes") for r in scored),
        scores={name: _mean(results.scores(setting, name)) for name in metrics},
        exact_frames=sum(map(_exact_frames, scored)),
        frames=sum(r["job"]["clip"]["frames"] for r in scored),
        rests_on=tuple(dict.fromkeys(filter(None, map(_rests_on, scored)))),
    )


def _rests_on(result: Result) -> str | None:
    """The data that the plans were made from. Results of earlier versions do not have it."""
    found = ((result["report"] or {}).get("prediction") or {}).get("rests_on")
    return found if isinstance(found, str) else None


def _speedup(setting: Setting, results: Results, name: str) -> Interval | None:
    mine = results.values(setting, clock(name))
    uncached = results.values(setting, clock(name, of_reference=True))
    common = [prompt for prompt in mine if prompt in uncached and mine[prompt] > 0]
    if not common:
        return None
    return statistics.ratio([uncached[p] for p in common], [mine[p] for p in common])


def _floor(rows: Iterable[MethodSummary], metrics: Iterable[str]) -> dict[str, tuple[str, float]]:
    """For each metric, the rerun with the worst score. No cache needs to be better than that."""
    reruns = [row for row in rows if Setting(row.method).is_rerun]
    floor = {}
    for metric in metrics:
        values = [(row.label, s.value) for row in reruns if (s := row.scores.get(metric))]
        if values:
            worst = min if METRICS[metric].direction == "higher" else max
            floor[metric] = worst(values, key=lambda pair: pair[1])
    return floor


def _in_floor(
    setting: Setting, results: Results, floor: Mapping[str, tuple[str, float]]
) -> dict[str, bool]:
    """For each metric, whether the method is as good as the noise floor. Metrics that cannot be
    compared are left out."""
    found: dict[str, bool] = {}
    if setting.method == UNCACHED or setting.is_rerun:
        return found
    for metric, (label, _) in floor.items():
        rerun = next(s for s in results.pairs if s.label == label)
        mine, theirs = results.scores(setting, metric), results.scores(rerun, metric)
        if any(prompt in theirs for prompt in mine):
            found[metric] = paired(results, setting, rerun, metric)[1] != "worse"
    return found


def _against_steps(setting: Setting, results: Results) -> dict[str, dict[str, Any]]:
    """For each metric, the paired difference from fewer steps at the same FLOPs."""
    if setting.control or setting.method == UNCACHED:
        return {}
    found = {}
    for metric in results.spec.metrics:
        interval = _mean(results.minus_steps(setting, metric))
        if interval is not None:
            decided = statistics.verdict(interval, METRICS[metric].direction)
            found[metric] = {**statistics.finite(asdict(interval)), "verdict": decided}
    return found


def digits(metric: str) -> int:
    """The number of decimals that a metric is shown with."""
    return {"psnr_db": 1, "jod": 2, "ssim": 4}.get(metric, 3)


def _mean(values: Mapping[str, float]) -> Interval | None:
    return statistics.mean(list(values.values())) if values else None


def _most(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _spent_before(results: Iterable[Result]) -> float | None:
    """The largest calibration cost of a clip's method, in uncached runs; None if one is unknown."""
    found = [result.get("calibration_runs") for result in results]
    known = [float(runs) for runs in found if isinstance(runs, (int, float))]
    return max(known) if known and len(known) == len(found) else None


def runs_text(runs: float | None) -> str:
    """The calibration cost in uncached runs, as tables print it."""
    if runs is None:
        return "–"
    return f"{runs:.0f}" if runs >= 10 or runs == int(runs) else f"{runs:.1f}"


def _exact_frames(result: Result) -> int:
    entry = (result["scores"] or {}).get(PSNR) or {}
    return int(entry.get("exact_frames") or 0)
