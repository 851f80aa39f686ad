"""Scores the stored clips of each prompt's seeds by every choice, and stores the scores.

In: the folder of an evaluation. Out: `ranking/<job>.json` in it, and `SeedScores` by job.
Knows: a clip is scored alone, and against the uncached clip of every *other* seed of its prompt.
Each of these is the wanted clip in turn. Its own uncached clip is left out: that would be the
metric itself, and a user does not have it while choosing. Existing scores are not computed again,
unless the clip or a metric's version has changed. Does not know what the scores mean (`agreement`,
`table`).
Source: ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from dit_accel.core.document import DocumentError, Field, read_document
from dit_accel.core.files import placed
from dit_accel.evaluation.jobs import EvaluationSpec, Job
from dit_accel.evaluation.ranking.choices import CHOICES, at_a_glance
from dit_accel.evaluation.ranking.seed_scores import SeedScores, pixel_metrics
from dit_accel.evaluation.results import FAILED, Result
from dit_accel.evaluation.store import Store, StoreError
from dit_accel.metrics import METRICS
from dit_accel.metrics.clips import Clip
from dit_accel.metrics.psnr import EXACT_DB
from dit_accel.metrics.scoring import score_clips

FOLDER = "ranking"
FORMAT = 1
Made = tuple[Job, Result]


def score_seeds(
    store: Store, spec: EvaluationSpec, on_clip: Callable[[Job], None] = lambda job: None
) -> int:
    """Score all finished clips that lack scores. Returns the number of clips.

    Args:
        on_clip: called after each clip that has its scores, also if it had them before.

    Raises:
        StoreError: a clip is missing or cannot be read.
    """
    count = 0
    for made in _by_prompt(store, spec).values():
        uncached: dict[str, Clip] = {}  # decoded when the first clip needs them
        for job, result in made:
            if not _up_to_date(store, job, result, spec, made):
                uncached = uncached or _clips(store, [m for m in made if _is_uncached(m[0])])
                _write(store, job, _score(store, job, result, spec, uncached))
                count += 1
            on_clip(job)
    return count


def read_scores(store: Store, spec: EvaluationSpec) -> dict[str, SeedScores]:
    """The existing scores, by job.

    Raises:
        StoreError: a file of scores is damaged.
    """
    jobs = spec.jobs() if _folder(store).is_dir() else []
    found = {job.id: _read(store, job) for job in jobs}
    return {job: scores for job, scores in found.items() if scores is not None}


def _by_prompt(store: Store, spec: EvaluationSpec) -> dict[str, list[Made]]:
    """The finished jobs of each prompt, also the uncached ones."""
    found: dict[str, list[Made]] = {}
    for job in spec.jobs():
        result = store.result(job.id)
        if result is not None and result["status"] != FAILED:
            found.setdefault(job.prompt_id, []).append((job, result))
    return found


def _up_to_date(
    store: Store, job: Job, result: Result, spec: EvaluationSpec, made: list[Made]
) -> bool:
    known = _read(store, job)
    wanted = [other.id for other, _ in made if _is_wanted(other, job)]
    return (
        known is not None
        and known.frames_sha256 == result["frames_sha256"]
        and known.alone.keys() == CHOICES.keys()
        and known.has(pixel_metrics(spec.metrics), wanted)
    )


def _is_uncached(job: Job) -> bool:
    return job.id == job.reference.id


def _is_wanted(other: Job, job: Job) -> bool:
    """Whether the other job's clip may be the wanted one: it is uncached, and has another seed."""
    return _is_uncached(other) and other.clip.seed != job.clip.seed


def _clips(store: Store, made: Iterable[Made]) -> dict[str, Clip]:
    return {
        job.id: at_a_glance(store.read_clip(job.id, result["frames_sha256"]))
        for job, result in made
    }


def _score(
    store: Store, job: Job, result: Result, spec: EvaluationSpec, uncached: dict[str, Clip]
) -> SeedScores:
    clip = uncached.get(job.id)
    if clip is None:
        (clip,) = _clips(store, [(job, result)]).values()
    names = pixel_metrics(spec.metrics)
    closest: dict[str, dict[str, float]] = {name: {} for name in names}
    for wanted, reference in uncached.items():
        if wanted != job.reference.id:
            scores = score_clips(reference, clip, data_range=255, metrics=names, fps=job.clip.fps)
            for name, score in scores.items():
                if score.value is not None:
                    closest[name][wanted] = _finite(score.value)
    return SeedScores(
        frames_sha256=result["frames_sha256"],
        alone={name: choice.score(clip) for name, choice in CHOICES.items()},
        closest=closest,
        versions={name: METRICS[name].version for name in names},
    )


def _finite(value: float) -> float:
    """The score as a finite number. Only the PSNR of equal clips is infinite; it counts as 100 dB,
    as everywhere."""
    return min(value, EXACT_DB) if value > 0 else value


# the files


def _folder(store: Store) -> Path:
    return store.folder / FOLDER


def _write(store: Store, job: Job, scores: SeedScores) -> None:
    _folder(store).mkdir(exist_ok=True)
    content: dict[str, Any] = {
        "format": FORMAT,
        "frames_sha256": scores.frames_sha256,
        "alone": scores.alone,
        "closest": scores.closest,
        "versions": scores.versions,
    }
    with placed(_folder(store) / f"{job.id}.json") as path:
        path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _read(store: Store, job: Job) -> SeedScores | None:
    path = _folder(store) / f"{job.id}.json"
    try:
        return _checked(read_document(path))
    except FileNotFoundError:
        return None
    except DocumentError as error:
        text = str(error).removeprefix(f"{path} ")
        raise StoreError(f"{path} is damaged: {text}; delete it, and rank again") from error


def _checked(content: Field) -> SeedScores:
    content.at("format").whole(FORMAT, FORMAT)
    versions = {name: at.whole(1) for name, at in content.at("versions").fields().items()}
    closest = {name: dict(_numbers(at)) for name, at in content.at("closest").fields().items()}
    if versions.keys() - closest.keys():
        raise content.at("closest").error("an object with the metrics of versions")
    return SeedScores(
        frames_sha256=content.at("frames_sha256").text(),
        alone=dict(_numbers(content.at("alone"))),
        closest=closest,
        versions=versions,
    )


def _numbers(content: Field) -> Iterator[tuple[str, float]]:
    return ((name, at.number()) for name, at in content.fields().items())
