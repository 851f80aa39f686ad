"""Everything that the page tells of, read once from the folder of an evaluation."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from dit_accel.evaluation import statistics
from dit_accel.evaluation.jobs import EvaluationSpec, Job
from dit_accel.evaluation.methods import METHODS, UNCACHED, Setting
from dit_accel.evaluation.runner import FAILED, OK
from dit_accel.evaluation.store import Result, Store
from dit_accel.evaluation.summary import (
    FEWER_STEPS_METHOD,
    PSNR_CAP,
    RERUN_METHOD,
    MethodSummary,
    PairedClips,
    Summary,
    flops_kept,
    score,
    summarise,
)

Values = npt.NDArray[np.float64]
PSNR = "psnr_db"
HUES = 8
_EDGES = {"begin", "end"}


@dataclass(frozen=True)
class ScoredPair:
    """A clip of a method and its uncached twin."""

    setting: Setting
    prompt: str
    job: Job
    result: Result
    twin: Result


@dataclass(frozen=True)
class Journal:
    """How the work went: jobs that began and did not end, processes, first and last time (UTC)."""

    begun: int
    ended: int
    open: int
    processes: int
    first: str | None
    last: str | None


@dataclass(frozen=True)
class Evidence:
    """The plan, the table, and every result."""

    plan: EvaluationSpec
    summary: Summary
    groups: list[tuple[Job, ...]]
    results: Mapping[str, Result | None]
    pairs: Mapping[Setting, list[ScoredPair]]
    journal: Journal

    @property
    def rows(self) -> dict[Setting, MethodSummary]:
        """The table's rows by their settings."""
        return {Setting(row.method, row.number): row for row in self.summary.rows}

    def clips(self, setting: Setting) -> PairedClips:
        """The clips of a setting as the summary takes them."""
        found: dict[str, list[tuple[Result, Result]]] = {}
        for pair in self.pairs[setting]:
            found.setdefault(pair.prompt, []).append((pair.result, pair.twin))
        return PairedClips(found)

    def drawn(self) -> list[Setting]:
        """What the plots show: all that changed a clip, without the uncached clips and reruns."""
        return [
            setting
            for setting in self.pairs
            if setting.method != UNCACHED
            and not is_floor(setting)
            and any(pair.result["status"] == OK for pair in self.pairs[setting])
        ]

    def accelerated(self) -> list[Setting]:
        """Those of the drawn that are no controls."""
        return [setting for setting in self.drawn() if not METHODS[setting.method].control]

    def families(self) -> dict[str, list[Setting]]:
        """The drawn settings by method, each in the order of its numbers."""
        found: dict[str, list[Setting]] = {}
        for setting in self.drawn():
            found.setdefault(setting.method, []).append(setting)
        return {
            name: sorted(settings, key=lambda s: s.number if s.number is not None else 0)
            for name, settings in found.items()
        }

    def slots(self) -> dict[str, int]:
        """A place in the palette for every method; -1 for controls, which are drawn in grey."""
        names = list(dict.fromkeys(s.method for s in self.plan.methods if s.method != UNCACHED))
        ours = [name for name in names if not METHODS[name].control]
        return {name: ours.index(name) if name in ours else -1 for name in names}

    def by_prompt(self, setting: Setting, metric: str) -> dict[str, float]:
        """A score for each prompt, averaged over its seeds."""
        return self.clips(setting).mean(score(metric))

    def minus_steps(self, setting: Setting, metric: str) -> dict[str, float]:
        """By prompt, the score less that of fewer steps at the same FLOPs, where that is known."""
        control = [self.clips(s) for s in self.pairs if s.method == FEWER_STEPS_METHOD]
        places = [clips.mean(flops_kept) for clips in control]
        curves = [clips.mean(score(metric)) for clips in control]
        kept, mine = self.clips(setting).mean(flops_kept), self.by_prompt(setting, metric)
        found = {}
        for prompt in (prompt for prompt in mine if prompt in kept):
            known = [
                (place[prompt], curve[prompt])
                for place, curve in zip(places, curves, strict=True)
                if prompt in place and prompt in curve
            ]
            at = statistics.interpolate(kept[prompt], *zip(*known, strict=True)) if known else None
            if at is not None:
                found[prompt] = mine[prompt] - at
        return found

    def frame_scores(self, setting: Setting, metric: str) -> Values | None:
        """Frame scores `(prompts, frames)`, averaged over seeds; None where there are none."""
        by_prompt: dict[str, list[list[float]]] = {}
        for pair in self.pairs[setting]:
            entry = (pair.result["scores"] or {}).get(metric) or {}
            frames = entry.get("frames")
            if frames and all(value is not None for value in frames):
                values = [_number(value, metric) for value in frames]
                by_prompt.setdefault(pair.prompt, []).append(values)
        if len({len(frames) for seeds in by_prompt.values() for frames in seeds}) != 1:
            return None
        return np.array([np.mean(seeds, axis=0) for seeds in by_prompt.values()])

    def machines(self) -> list[dict[str, Any]]:
        """What the seconds were measured on, each once."""
        found: dict[str, dict[str, Any]] = {}
        for result in filter(None, self.results.values()):
            clock = result.get("clock") or {}
            told = {name: clock[name] for name in _MACHINE if name in clock}
            found.setdefault(json.dumps(told, sort_keys=True), told)
        return [found[key] for key in sorted(found)]


_MACHINE = ("device", "device_name", "threads", "cpus", "platform", "python")


def gather(store: Store, plan: EvaluationSpec) -> Evidence:
    """Read the folder of an evaluation.

    Raises:
        StoreError: a result cannot be read.
    """
    groups = plan.groups()
    results = {job.id: store.result(job.id) for group in groups for job in group}
    pairs: dict[Setting, list[ScoredPair]] = {
        setting: [] for setting in dict.fromkeys((Setting(UNCACHED), *plan.methods))
    }
    for group in groups:
        twin = results[group[0].id]
        for job in group:
            result = results[job.id]
            if result and twin and FAILED not in (result["status"], twin["status"]):
                pairs[job.method].append(ScoredPair(job.method, job.prompt_id, job, result, twin))
    return Evidence(plan, summarise(store, plan), groups, results, pairs, _journal(store))


def is_floor(setting: Setting) -> bool:
    """Whether it is the uncached model run again."""
    return setting.method.split("/")[0] == RERUN_METHOD


def psnr_of(pair: ScoredPair) -> float | None:
    """PSNR of a clip in dB, exact clips as 100; None where it was not measured."""
    value = score(PSNR)(pair.result, pair.twin)
    return None if value is None or not math.isfinite(value) else float(value)


def share_computed(pairs: Sequence[ScoredPair]) -> dict[str, Values] | None:
    """By place, how much of the uncached clip's calls was computed at each step, mean over clips.

    None where the steps are not those of the uncached clip.
    """
    found: dict[str, list[Values]] = {}
    for pair in pairs:
        mine, full = pair.result["computed"], pair.twin["computed"]
        for place, calls in full.items():
            if len(mine.get(place, ())) != len(calls):
                return None
            ratio = np.divide(mine[place], np.maximum(calls, 1), dtype=np.float64)
            found.setdefault(place, []).append(ratio)
    return {place: np.mean(values, axis=0) for place, values in found.items()} or None


def _number(value: Any, metric: str) -> float:
    """Infinite scores are written as a text."""
    number = float(value)
    return min(number, PSNR_CAP) if metric.startswith("psnr") else number


def _journal(store: Store) -> Journal:
    entries = [entry for entry in _lines(store) if entry.get("event") in _EDGES]
    begun = [entry["job"] for entry in entries if entry["event"] == "begin"]
    ended = [entry["job"] for entry in entries if entry["event"] == "end"]
    times = sorted(float(entry["time"]) for entry in entries)
    return Journal(
        begun=len(begun),
        ended=len(ended),
        open=len(set(begun) - set(ended)),
        processes=len({entry.get("pid") for entry in entries}),
        first=_utc(times[0]) if times else None,
        last=_utc(times[-1]) if times else None,
    )


def _lines(store: Store) -> Iterator[dict[str, Any]]:
    """The journal's lines; one that was cut off is left out."""
    path = store.folder / "journal.jsonl"
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and {"event", "job", "time"} <= set(entry):
            yield entry


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
