"""All results of an evaluation in memory, and the values that tables and plots show.

In: the spec, its jobs and their results. Out: scores, FLOPs and computed steps by setting and
prompt, and the differences from fewer steps at the same FLOPs.
Knows: which results count, and that values are averaged over a prompt's seeds first. Does not know
files (`store`), intervals (`summary`) or pictures (`html`).
Source: ours.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from dit_accel.evaluation import statistics
from dit_accel.evaluation.jobs import EvaluationSpec, Job
from dit_accel.evaluation.methods.row import FEWER_STEPS, UNCACHED, Setting
from dit_accel.evaluation.result_file import CLOCKED_MACHINE, FAILED, NO_EFFECT, OK, Result
from dit_accel.metrics.psnr import EXACT_DB

Value = Callable[[Result, Result], float | None]  # from a result and its uncached reference
FrameValues = npt.NDArray[np.float64]
PSNR = "psnr_db"


@dataclass(frozen=True)
class ScoredPair:
    """A clip of a method and its uncached reference."""

    job: Job
    result: Result
    reference: Result

    @property
    def psnr_db(self) -> float | None:
        """PSNR in dB; 100 for an exact clip; None if it was not measured."""
        value = score(PSNR)(self.result, self.reference)
        return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class Results:
    """The spec, its jobs in groups, and their results by id. A result is None if its job is not
    done."""

    spec: EvaluationSpec
    groups: list[tuple[Job, ...]]
    by_id: Mapping[str, Result | None]

    @cached_property
    def pairs(self) -> dict[Setting, list[ScoredPair]]:
        """The clips that did not fail, by setting; the uncached setting is first."""
        found: dict[Setting, list[ScoredPair]] = {Setting(UNCACHED): []}
        found |= {setting: [] for setting in self.spec.methods}
        for group in self.groups:
            reference = self.by_id[group[0].id]
            for job in group:
                result = self.by_id[job.id]
                if result and reference and FAILED not in (result["status"], reference["status"]):
                    found[job.method].append(ScoredPair(job, result, reference))
        return found

    def jobs(self, setting: Setting) -> list[Job]:
        """The jobs of a setting, done or not."""
        return [job for group in self.groups for job in group if job.method == setting]

    def values(self, setting: Setting, value: Value) -> dict[str, float]:
        """A value by prompt, averaged over its seeds. Prompts with a missing value are left out."""
        by_prompt: dict[str, list[float]] = {}
        for pair in self.pairs[setting]:
            found = value(pair.result, pair.reference)
            known = math.nan if found is None else found
            by_prompt.setdefault(pair.job.prompt_id, []).append(known)
        means = {prompt: sum(seeds) / len(seeds) for prompt, seeds in by_prompt.items()}
        return {prompt: mean for prompt, mean in means.items() if math.isfinite(mean)}

    def scores(self, setting: Setting, metric: str) -> dict[str, float]:
        """A score by prompt, averaged over its seeds."""
        return self.values(setting, score(metric))

    def minus_steps(self, setting: Setting, metric: str) -> dict[str, float]:
        """By prompt, the score minus that of fewer steps at the same FLOPs, if that is known."""
        control = [s for s in self.pairs if s.method == FEWER_STEPS]
        flops = [self.values(s, flops_kept) for s in control]
        curves = [self.scores(s, metric) for s in control]
        shares, mine = self.values(setting, flops_kept), self.scores(setting, metric)
        found = {}
        for prompt in (prompt for prompt in mine if prompt in shares):
            known = [
                (at[prompt], curve[prompt])
                for at, curve in zip(flops, curves, strict=True)
                if prompt in at and prompt in curve
            ]
            same = statistics.interpolate(
                shares[prompt], [at for at, _ in known], [value for _, value in known]
            )
            if same is not None:
                found[prompt] = mine[prompt] - same
        return found

    def drawn(self) -> list[Setting]:
        """The settings in plots: all that changed a clip, without uncached clips and reruns."""
        return [
            setting
            for setting, pairs in self.pairs.items()
            if setting.method != UNCACHED
            and not setting.is_rerun
            and any(pair.result["status"] == OK for pair in pairs)
        ]

    def accelerated(self) -> list[Setting]:
        """The drawn settings that are not controls."""
        return [setting for setting in self.drawn() if not setting.control]

    def families(self) -> dict[str, list[Setting]]:
        """The drawn settings by method, in the order of their numbers."""
        found: dict[str, list[Setting]] = {}
        for setting in self.drawn():
            found.setdefault(setting.method, []).append(setting)
        return {name: sorted(some, key=lambda s: s.number or 0) for name, some in found.items()}

    def slots(self) -> dict[str, int]:
        """The place of every method in the palette; -1 for controls, which are drawn in grey."""
        methods = [setting for setting in self.spec.methods if setting.method != UNCACHED]
        hues = list(dict.fromkeys(setting.method for setting in methods if not setting.control))
        return {s.method: -1 if s.control else hues.index(s.method) for s in methods}

    def frame_scores(self, setting: Setting, metric: str) -> FrameValues | None:
        """Frame scores `(prompts, frames)`, averaged over seeds; None if there are none."""
        by_prompt: dict[str, list[list[float]]] = {}
        for pair in self.pairs[setting]:
            frames = ((pair.result["scores"] or {}).get(metric) or {}).get("frames")
            if frames and all(value is not None for value in frames):
                values = [_capped(float(value), metric) for value in frames]  # "inf" is a text
                by_prompt.setdefault(pair.job.prompt_id, []).append(values)
        if len({len(frames) for seeds in by_prompt.values() for frames in seeds}) != 1:
            return None
        return np.array([np.mean(seeds, axis=0) for seeds in by_prompt.values()])

    def machines(self) -> list[dict[str, Any]]:
        """The machines on which the seconds were measured, each once."""
        found: dict[str, dict[str, Any]] = {}
        for result in filter(None, self.by_id.values()):
            clock = result.get("clock") or {}
            machine = {name: clock[name] for name in CLOCKED_MACHINE if name in clock}
            found.setdefault(json.dumps(machine, sort_keys=True), machine)
        return [found[key] for key in sorted(found)]


def score(metric: str) -> Value:
    """The value of a metric; exact clips count as 100 dB."""

    def read(result: Result, reference: Result) -> float | None:
        if result is reference:
            return EXACT_DB if metric.startswith("psnr") else None
        entry = (result["scores"] or {}).get(metric)
        if entry is None or entry["value"] is None:
            return None
        return _capped(float(entry["value"]), metric)

    return read


def flops_kept(result: Result, reference: Result) -> float | None:
    """Share of the uncached clip's FLOPs."""
    full = sum(reference["flops"] or ())
    return float(sum(result["flops"]) / full) if result["flops"] and full else None


def steps_computed(result: Result, reference: Result) -> float:
    """Computed calls of all places, in steps of the uncached clip."""
    full = sum(map(sum, reference["computed"].values()))
    steps = len(next(iter(reference["computed"].values())))
    return float(steps * sum(map(sum, result["computed"].values())) / full)


def clock(name: str, *, of_reference: bool = False) -> Value:
    """Seconds of a clip, or of its uncached reference."""
    return lambda result, reference: (reference if of_reference else result)["clock"][name]


def _capped(value: float, metric: str) -> float:
    return min(value, EXACT_DB) if metric.startswith("psnr") else value


__all__ = [
    "FAILED", "NO_EFFECT", "OK", "PSNR", "Result", "Results", "ScoredPair", "Value",
    "clock", "flops_kept", "score", "steps_computed",
]  # fmt: skip
