"""One row a method: what it saved and what that cost, with intervals, beside the noise floor.

A row's speed is the ratio of summed seconds over the same prompts, its fidelity the mean over
prompts. Two comparisons tell whether that is worth anything: with the noise floor (is it more than
running the model again?), and with fewer steps at the same FLOPs (is it better than the plainest
thing to do?), interpolated for each prompt between the step counts that were run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dit_accel.evaluation import statistics
from dit_accel.evaluation.jobs import EvaluationSpec, Job
from dit_accel.evaluation.methods import METHODS, UNCACHED, Setting
from dit_accel.evaluation.runner import FAILED, NO_EFFECT, OK
from dit_accel.evaluation.statistics import Interval
from dit_accel.evaluation.store import Result, Store
from dit_accel.metrics import METRICS

PSNR_CAP = 100.0
FEWER_STEPS_METHOD = "fewer-steps"
RERUN_METHOD = "rerun"


@dataclass(frozen=True)
class PairedClips:
    """Clips of one method, by prompt id: a list over the seeds, each with its uncached twin."""

    by_prompt: Mapping[str, list[tuple[Result, Result]]]

    def mean(self, value: Any) -> dict[str, float]:
        """`value(result, twin)` averaged over the seeds of a prompt; prompts without it are out."""
        found = {}
        for prompt, pairs in self.by_prompt.items():
            values = [value(result, twin) for result, twin in pairs]
            if values and all(v is not None and math.isfinite(v) for v in values):
                found[prompt] = sum(values) / len(values)
        return found


@dataclass(frozen=True)
class MethodSummary:
    """One method with its number. Intervals are None where nothing was measured."""

    label: str
    method: str
    number: float | int | None
    control: bool
    status: dict[str, int]
    errors: tuple[str, ...]
    remarks: tuple[str, ...]
    steps_computed: Interval | None
    flops_kept: Interval | None
    speedup: Interval | None
    speedup_whole: Interval | None
    seconds: Interval | None
    peak_memory_bytes: int | None
    kept_bytes: int | None
    scores: dict[str, Interval | None]
    exact_frames: int
    frames: int
    in_floor: dict[str, bool] = field(default_factory=dict)
    against_steps: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """The whole table. `floor`: by metric, the worst of the reruns and its value."""

    rows: tuple[MethodSummary, ...]
    floor: dict[str, tuple[str, float]]
    jobs: int
    done: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        content: dict[str, Any] = _jsonable(asdict(self, dict_factory=dict))
        return content


def summarise(store: Store, plan: EvaluationSpec | None = None) -> Summary:
    """The table of an evaluation, as far as it is done.

    Raises:
        StoreError: a result cannot be read.
    """
    plan = plan or store.plan()
    groups = plan.groups()
    results = {job.id: store.result(job.id) for group in groups for job in group}
    clips = {
        setting: _clips(setting, groups, results)
        for setting in dict.fromkeys((Setting(UNCACHED), *plan.methods))
    }
    rows = [_row(setting, clips[setting], groups, results, plan) for setting in clips]
    floor = _floor(rows, plan.metrics)
    control = [c for s, c in clips.items() if s.method == FEWER_STEPS_METHOD]
    for row, setting in zip(rows, clips, strict=True):
        row.in_floor.update(_in_floor(setting, clips, floor))
        row.against_steps.update(_against_steps(setting, clips[setting], control, plan.metrics))
    done = sum(result is not None for result in results.values())
    return Summary(tuple(rows), floor, len(results), done)


def paired(
    store: Store, plan: EvaluationSpec, one: Setting, other: Setting, metric: str
) -> tuple[Interval, statistics.Verdict]:
    """How much better `one` scores than `other` on the prompts that both have.

    Raises:
        ValueError: they have no prompt in common.
    """
    groups = plan.groups()
    results = {job.id: store.result(job.id) for group in groups for job in group}
    a = _clips(one, groups, results).mean(score(metric))
    b = _clips(other, groups, results).mean(score(metric))
    common = [prompt for prompt in a if prompt in b]
    interval = statistics.difference([a[p] for p in common], [b[p] for p in common])
    return interval, statistics.verdict(interval, METRICS[metric].direction)


def score(metric: str) -> Any:
    """A function that reads a metric out of a result; exact clips count as 100 dB."""

    def read(result: Result, twin: Result) -> float | None:
        if result is twin:
            return PSNR_CAP if metric.startswith("psnr") else None
        entry = (result["scores"] or {}).get(metric)
        if entry is None or entry["value"] is None:
            return None
        value = float(entry["value"])
        return min(value, PSNR_CAP) if metric.startswith("psnr") else value

    return read


def flops_kept(result: Result, twin: Result) -> float | None:
    """Share of the uncached clip's FLOPs."""
    if not result["flops"] or not twin["flops"]:
        return None
    return sum(result["flops"]) / sum(twin["flops"])


def steps_computed(result: Result, twin: Result) -> float:
    """Computed calls of all places, in steps of the uncached clip."""
    full = sum(map(sum, twin["computed"].values()))
    steps = len(next(iter(twin["computed"].values())))
    return steps * sum(map(sum, result["computed"].values())) / full


def _clips(
    setting: Setting, groups: list[tuple[Job, ...]], results: Mapping[str, Result | None]
) -> PairedClips:
    found: dict[str, list[tuple[Result, Result]]] = {}
    for group in groups:
        job = next(job for job in group if job.method == setting)
        result, twin = results[job.id], results[group[0].id]
        if result and twin and FAILED not in (result["status"], twin["status"]):
            found.setdefault(job.prompt_id, []).append((result, twin))
    return PairedClips(found)


def _row(
    setting: Setting,
    clips: PairedClips,
    groups: list[tuple[Job, ...]],
    results: Mapping[str, Result | None],
    plan: EvaluationSpec,
) -> MethodSummary:
    jobs = [job for group in groups for job in group if job.method == setting]
    made = [result for job in jobs if (result := results[job.id])]
    pairs = [pair for prompt in clips.by_prompt.values() for pair in prompt]
    status = {name: sum(r["status"] == name for r in made) for name in (OK, NO_EFFECT, FAILED)}
    return MethodSummary(
        label=setting.label,
        method=setting.method,
        number=setting.number,
        control=METHODS[setting.method].control or setting.method == UNCACHED,
        status={**status, "missing": len(jobs) - len(made)},
        errors=tuple(dict.fromkeys(r["error"] for r in made if r["error"])),
        remarks=tuple(dict.fromkeys(text for r, _ in pairs for text in r["remarks"])),
        steps_computed=_mean(clips.mean(steps_computed)),
        flops_kept=_mean(clips.mean(flops_kept)),
        speedup=_speedup(clips, "denoising_seconds"),
        speedup_whole=_speedup(clips, "whole_seconds"),
        seconds=_mean(clips.mean(lambda r, _: r["clock"]["denoising_seconds"])),
        peak_memory_bytes=_most(r["clock"]["peak_memory_bytes"] for r, _ in pairs),
        kept_bytes=_most((r["report"] or {}).get("kept_bytes") for r, _ in pairs),
        scores={name: _mean(clips.mean(score(name))) for name in plan.metrics}
        if setting.method != UNCACHED
        else {},
        exact_frames=sum(_exact(r) for r, _ in pairs),
        frames=sum(r["job"]["clip"]["frames"] for r, _ in pairs),
    )


def _speedup(clips: PairedClips, clock: str) -> Interval | None:
    mine = clips.mean(lambda result, _: result["clock"][clock])
    twin = clips.mean(lambda _, twin: twin["clock"][clock])
    common = [prompt for prompt in mine if prompt in twin and mine[prompt] > 0]
    if not common:
        return None
    return statistics.ratio([twin[p] for p in common], [mine[p] for p in common])


def _floor(rows: Iterable[MethodSummary], metrics: Iterable[str]) -> dict[str, tuple[str, float]]:
    """By metric, the rerun that scores worst: what no cache can be asked to beat."""
    reruns = [row for row in rows if row.method.split("/")[0] == RERUN_METHOD]
    floor = {}
    for metric in metrics:
        values = [(row.label, s.value) for row in reruns if (s := row.scores.get(metric))]
        if values:
            worst = min if METRICS[metric].direction == "higher" else max
            floor[metric] = worst(values, key=lambda pair: pair[1])
    return floor


def _in_floor(
    setting: Setting, clips: Mapping[Setting, PairedClips], floor: Mapping[str, tuple[str, float]]
) -> dict[str, bool]:
    """By metric, whether the method cannot be told apart from the noise floor, or is better."""
    told: dict[str, bool] = {}
    if setting.method == UNCACHED or setting.method.split("/")[0] == RERUN_METHOD:
        return told
    for metric, (label, _) in floor.items():
        mine = clips[setting].mean(score(metric))
        theirs = next(c for s, c in clips.items() if s.label == label).mean(score(metric))
        common = [prompt for prompt in mine if prompt in theirs]
        if common:
            gap = statistics.difference([mine[p] for p in common], [theirs[p] for p in common])
            told[metric] = statistics.verdict(gap, METRICS[metric].direction) != "worse"
    return told


def _against_steps(
    setting: Setting, clips: PairedClips, control: list[PairedClips], metrics: Iterable[str]
) -> dict[str, dict[str, Any]]:
    """By metric, the paired difference to fewer steps at the same FLOPs."""
    if METHODS[setting.method].control or setting.method == UNCACHED:
        return {}
    told = {}
    kept = clips.mean(flops_kept)
    places = [fewer.mean(flops_kept) for fewer in control]
    for metric in metrics:
        mine, curves = clips.mean(score(metric)), [fewer.mean(score(metric)) for fewer in control]
        pairs = []
        for prompt in (prompt for prompt in mine if prompt in kept):
            x = [place[prompt] for place in places if prompt in place]
            y = [curve[prompt] for curve in curves if prompt in curve]
            at = statistics.interpolate(kept[prompt], x, y) if len(x) == len(y) else None
            if at is not None:
                pairs.append((mine[prompt], at))
        if pairs:
            interval = statistics.difference(*zip(*pairs, strict=True))
            decided = statistics.verdict(interval, METRICS[metric].direction)
            told[metric] = {**interval.to_dict(), "verdict": decided}
    return told


def _mean(values: Mapping[str, float]) -> Interval | None:
    return statistics.mean(list(values.values())) if values else None


def _most(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _exact(result: Result) -> int:
    entry = (result["scores"] or {}).get("psnr_db") or {}
    return int(entry.get("exact_frames") or 0)


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
