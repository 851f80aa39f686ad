"""Measures how well each method's drafts rank the seeds of a prompt, by every choice.

In: the results of an evaluation, and the seeds' scores. Out: one row for each method and choice.
Knows: a prompt counts if at least two seeds have both the draft and the uncached clip. If a choice
has a wanted clip, every seed's uncached clip is the wanted one in turn, and the other seeds are
ranked. The prompt's value is the mean. Intervals are over prompts. Source: ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dit_accel.evaluation import statistics
from dit_accel.evaluation.jobs import Job
from dit_accel.evaluation.methods.row import UNCACHED, Setting
from dit_accel.evaluation.ranking.agreement import FEWEST, Agreement, agree
from dit_accel.evaluation.ranking.choices import CHOICES, sign
from dit_accel.evaluation.ranking.seed_scores import SeedScores, pixel_metrics
from dit_accel.evaluation.results import Results
from dit_accel.evaluation.statistics import Interval

Scores = Mapping[str, SeedScores]
Read = Callable[[SeedScores], float | None]  # the score of a clip by a choice


@dataclass(frozen=True)
class RankingRow:
    """One method and one choice. Intervals are None if no prompt could be ranked.

    Attributes:
        label: the method with its number.
        choice: a name of `CHOICES`, or of a metric.
        spearman: rank correlation with the uncached clips.
        first: share of prompts for which the best seed of the drafts is the best seed of the
            uncached clips.
        gain: how far the score of the drafts' best seed lies above the mean, as a share of the lead
            of the best seed.
        by_chance: the value of `first` by chance.
    """

    label: str
    choice: str
    spearman: Interval | None
    first: Interval | None
    gain: Interval | None
    by_chance: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        content: dict[str, Any] = statistics.finite(asdict(self))
        return content


def ranking(results: Results, scores: Scores) -> tuple[RankingRow, ...]:
    """The table, in the order of the methods and of the choices; empty if nothing was scored."""
    settings = [setting for setting in results.pairs if setting.method != UNCACHED]
    choices = [*CHOICES, *pixel_metrics(results.spec.metrics)] if scores else []
    return tuple(_row(results, scores, s, choice) for s in settings for choice in choices)


def _row(results: Results, scores: Scores, setting: Setting, choice: str) -> RankingRow:
    by_prompt: dict[str, list[Job]] = {}
    for pair in results.pairs[setting]:
        by_prompt.setdefault(pair.job.prompt_id, []).append(pair.job)
    found = [_prompt(jobs, scores, choice) for jobs in by_prompt.values()]
    ranked = [prompt for prompt in found if prompt]
    return RankingRow(
        label=setting.label,
        choice=choice,
        spearman=_over_prompts(ranked, lambda each: each.spearman),
        first=_over_prompts(ranked, lambda each: each.first),
        gain=_over_prompts(ranked, lambda each: each.gain),
        by_chance=_mean([_mean([1 / seeds for seeds, _ in prompt]) for prompt in ranked]),
    )


def _prompt(jobs: list[Job], scores: Scores, choice: str) -> list[tuple[int, Agreement]]:
    """The seeds and the agreement of each ranking of a prompt. There is one ranking, or one for
    every wanted clip."""
    reads = [_alone(choice)] if choice in CHOICES else [_close(choice, j.reference) for j in jobs]
    found = []
    for read in reads:
        seeds = list(_seeds(jobs, scores, read))
        if len(seeds) >= FEWEST:
            final, draft = zip(*seeds, strict=True)
            found.append((len(seeds), agree(final, draft)))
    return found


def _seeds(jobs: list[Job], scores: Scores, read: Read) -> Iterator[tuple[float, float]]:
    """The final and the draft scores of the seeds that have both."""
    for job in jobs:
        if job.id in scores and job.reference.id in scores:
            final, draft = read(scores[job.reference.id]), read(scores[job.id])
            if final is not None and draft is not None:
                yield final, draft


def _alone(choice: str) -> Read:
    return lambda clip: clip.alone.get(choice)


def _close(metric: str, wanted: Job) -> Read:
    def read(clip: SeedScores) -> float | None:
        value = clip.closest.get(metric, {}).get(wanted.id)
        return None if value is None else sign(metric) * value

    return read


def _over_prompts(
    ranked: list[list[tuple[int, Agreement]]], value: Callable[[Agreement], float | None]
) -> Interval | None:
    means = [_mean([value(agreement) for _, agreement in prompt]) for prompt in ranked]
    known = [mean for mean in means if mean is not None]
    return statistics.mean(known) if known else None


def _mean(values: list[float | None] | list[float]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
