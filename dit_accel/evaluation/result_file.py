"""Reads the file of a result, and checks every field.

In: the content of `jobs/<id>.json`. Out: the result; or a `DocumentError` that names the field.
Knows: the fields that tables, pages and the runner use. The hash shows that the job is the one in
the file's name.
Source: ours.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from dit_accel.core.document import DocumentError, Field
from dit_accel.core.generation import clip_of
from dit_accel.evaluation.methods.row import UNCACHED
from dit_accel.evaluation.prompts import ID_PATTERN

Result = dict[str, Any]
RESULT_FORMAT = 1
OK, NO_EFFECT, FAILED = "ok", "no effect", "failed"
CLOCKED_MACHINE = ("device", "device_name", "threads", "cpus", "platform", "python")  # in `clock`
HASH = "[0-9a-f]{1,64}"

_COSTS = ("denoising_seconds", "whole_seconds")
_LARGEST = 1e18  # of a count


def checked(content: Field, job: str) -> Result:
    """A result, checked.

    Args:
        job: the id in the file's name.

    Raises:
        DocumentError: a field is missing or not accepted; the error names the field.
    """
    content.check_format(RESULT_FORMAT)
    if content.at("id").text() != job:
        raise content.at("id").error(f"{job}, as the file's name")
    _check_job(content.at("job"), job)
    content.at("prompt_id").text(ID_PATTERN)
    _text_or_none(content, "reference")
    _text_or_none(content, "error")
    _check_machine(content.at("clock"))
    if content.at("status").one_of((OK, NO_EFFECT, FAILED)) != FAILED:
        _check_made(content)
    found: Result = content.value
    return found


def _check_job(field: Field, job: str) -> None:
    """Check that the settings are those of the job: they decide its id."""
    clip_of(field.at("clip"))
    field.at("method").text()
    text = json.dumps(field.value, sort_keys=True, ensure_ascii=True)
    if hashlib.sha256(text.encode()).hexdigest()[:20] != job:
        raise DocumentError(f"{field.place} is not the job with the hash {job}")


def _check_machine(clock: Field) -> None:
    for name in CLOCKED_MACHINE:
        entry = clock.find(name)
        if entry is not None and name in ("threads", "cpus"):
            entry.whole(0, 1_000_000)
        elif entry is not None:
            entry.text()


def _check_made(content: Field) -> None:
    """Check the fields of a clip that was made."""
    for remark in content.at("remarks").entries():
        remark.text()
    content.at("frames_sha256").text(HASH)
    flops = content.at("flops")
    for step in flops.entries() if flops.value is not None else ():
        step.number(0, _LARGEST)
    _check_computed(content)
    runs = content.find("calibration_runs")  # older results do not have it
    if runs is not None:
        runs.number(0, 1e12)
    clock = content.at("clock")
    for name in _COSTS:
        clock.at(name).number(0, 1e12)
    _count(clock, "peak_memory_bytes")
    report = content.at("report")
    if report.value is not None:
        _count(report, "cached_bytes", needed=False)
    scores = content.at("scores")
    for score in scores.fields().values() if scores.value is not None else ():
        _check_score(score)


def _check_computed(content: Field) -> None:
    computed = content.at("computed")
    calls = {name: rows.entries(1) for name, rows in computed.fields().items()}
    counts = [step.whole(0, 2**31) for rows in calls.values() for step in rows]
    if len({len(rows) for rows in calls.values()}) > 1:
        raise DocumentError(f"{computed.place} has lists of several lengths; accepted: one length")
    if content.at("job").at("method").value == UNCACHED and not any(counts):
        raise DocumentError(f"{computed.place} has no computed step; accepted: at least one")


def _check_score(score: Field) -> None:
    value = score.at("value")
    _check_value(None if value.value is None else value)
    frames = score.find("frames")
    for frame in frames.entries() if frames is not None else ():
        _check_value(None if frame.value is None else frame)
    if "reason" in score.fields():
        _text_or_none(score, "reason")
    _count(score, "exact_frames", needed=False)
    version = score.find("version")
    if version is not None and not isinstance(version.value, str):
        version.whole(0)


def _check_value(field: Field | None) -> None:
    """Check a number. Infinity is a text, because JSON does not have it."""
    if field is not None and field.value not in ("inf", "-inf"):
        field.number(-1e15, 1e15)


def _text_or_none(content: Field, name: str) -> None:
    field = content.at(name)
    if field.value is not None:
        field.text()


def _count(content: Field, name: str, *, needed: bool = True) -> None:
    """Check a count, or null. It may be missing only if it is not needed."""
    field = content.at(name) if needed else content.find(name)
    if field is not None and field.value is not None:
        field.whole(0)
