"""The folder of an evaluation: a manifest and one file a job, each written whole or not at all.

In: a spec, results, clips and latents. Out: the same, checked; or a `StoreError` that names the
file and the way out.

    manifest.json      the spec: model, settings, prompts, seeds, methods, versions
    jobs/<id>.json     a result; the job is done if and only if this file is there
    clips/<id>.mkv     its frames, bit-exact (FFV1)
    latents/<id>.npy   its last latents, for the latent metrics
    calibration/       what other packages' methods measured before their first run
    profiles/          the profile that the plans are from
    journal.jsonl      when each job began and ended
    summary.json, .md  the table, as it was when the command last ended

Knows: files only. Only `clock` of a result depends on time and machine.
Source: ours.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dit_accel.core import video
from dit_accel.core.generation import ClipSpec
from dit_accel.evaluation.jobs import MANIFEST_FORMAT, EvaluationSpec, ModelSpec
from dit_accel.evaluation.methods import parse
from dit_accel.evaluation.prompts import EvaluationPrompt
from dit_accel.evaluation.results import Result, Results

_SHARED = ("model", "clip", "dtype", "device", "versions")
_PLANNED = ("static", "cache_memory")  # shared as well, where both have methods with a profile
_EVENTS = ("begin", "end")


class StoreError(Exception):
    """The folder holds something that this evaluation must not touch or cannot use."""


@dataclass(frozen=True)
class Journal:
    """Jobs that began, ended, and began without an end; processes; first and last time (UTC)."""

    begun: int
    ended: int
    open: int
    processes: int
    first: str | None
    last: str | None


class Store:
    """Reads and writes the folder of one evaluation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    # the spec

    def spec(self) -> EvaluationSpec:
        """The evaluation that the manifest describes.

        Raises:
            StoreError: there is none, or it is not of this version.
        """
        path = self.folder / "manifest.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise StoreError(f"{self.folder} holds no evaluation: no manifest.json") from None
        except ValueError as error:
            raise StoreError(f"{path} is not JSON: {error}") from error
        if not isinstance(content, dict) or content.get("format") != MANIFEST_FORMAT:
            found = content.get("format") if isinstance(content, dict) else content
            raise StoreError(f"{path} is of format {found!r}; this version reads {MANIFEST_FORMAT}")
        return _spec(content)

    def open(self, spec: EvaluationSpec) -> EvaluationSpec:
        """Begin or resume an evaluation: new prompts, seeds, methods and metrics are added.

        Raises:
            StoreError: the folder holds an evaluation with other settings; each is named.
        """
        if (self.folder / "manifest.json").exists():
            before = self.spec()
            shared = _SHARED + (_PLANNED if before.profiled and spec.profiled else ())
            differing = [name for name in shared if getattr(before, name) != getattr(spec, name)]
            if differing:
                raise StoreError(
                    f"{self.folder} holds an evaluation with another "
                    + "; another ".join(_difference(before, spec, name) for name in differing)
                    + ": choose another folder"
                )
            spec = _merged(before, spec)
        for name in ("jobs", "clips", "latents", "calibration", "profiles"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._write(
            "manifest.json",
            _as_json(
                {"format": MANIFEST_FORMAT, **dataclasses.asdict(spec)}
                | {"methods": [m.label for m in spec.methods]}
            ),
        )
        return spec

    # results

    def result(self, job: str) -> Result | None:
        """A result, or None where the job is not done.

        Raises:
            StoreError: its file cannot be read, or is of another version.
        """
        path = self.folder / "jobs" / f"{job}.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise StoreError(f"{path} is not JSON ({error}): delete it, and resume") from error
        if not isinstance(found, dict) or found.get("format") != MANIFEST_FORMAT:
            raise StoreError(
                f"{path} is not of format {MANIFEST_FORMAT}: made by another version; choose "
                f"another folder"
            )
        return found

    def results(self, spec: EvaluationSpec | None = None) -> Results:
        """All results of an evaluation, as far as it is done.

        Raises:
            StoreError: a result cannot be read.
        """
        spec = spec or self.spec()
        groups = spec.groups()
        return Results(
            spec, groups, {job.id: self.result(job.id) for group in groups for job in group}
        )

    def done(self, job: str) -> bool:
        """Whether the job has a result."""
        return (self.folder / "jobs" / f"{job}.json").exists()

    def write_result(self, job: str, result: Result) -> None:
        """Write a result; from then on the job is done."""
        self._write(f"jobs/{job}.json", _as_json({"format": MANIFEST_FORMAT, **result}))

    def forget(self, job: str) -> None:
        """Delete a result, so that its job is run again."""
        (self.folder / "jobs" / f"{job}.json").unlink(missing_ok=True)

    # clips and arrays

    def clip_path(self, job: str) -> Path:
        """Where the frames of a job lie, if they were stored."""
        return self.folder / "clips" / f"{job}.mkv"

    def write_clip(self, job: str, frames: video.Frames, fps: float) -> None:
        """Write frames bit-exactly."""
        video.write_video(self.clip_path(job), frames, fps=fps)

    def read_clip(self, job: str, sha256: str) -> video.Frames:
        """Frames of a job, checked against their hash.

        Raises:
            StoreError: they are missing, or are not those that the result names.
        """
        path = self.clip_path(job)
        try:
            frames, _ = video.read_video(path)
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} cannot be read ({error}): {_again(job)}") from error
        if frames_hash(frames) != sha256:
            raise StoreError(f"{path} does not hold the frames of its result: {_again(job)}")
        return frames

    def write_latents(self, job: str, latents: npt.NDArray[np.float32]) -> None:
        """Write the last latents of a clip."""
        with placed(self.folder / "latents" / f"{job}.npy") as path, path.open("wb") as file:
            np.save(file, latents)

    def read_latents(self, job: str) -> npt.NDArray[np.float32]:
        """The last latents of a clip.

        Raises:
            StoreError: they are missing or broken.
        """
        path = self.folder / "latents" / f"{job}.npy"
        try:
            return np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise StoreError(f"{path} cannot be read ({error}): {_again(job)}") from error

    # the rest

    def calibration(self, name: str) -> Any:
        """What a method measured under a name, or None."""
        path = self.folder / "calibration" / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def write_calibration(self, name: str, value: Any) -> None:
        """Write what a method measured."""
        self._write(f"calibration/{name}.json", _as_json(value))

    def profile_path(self, name: str) -> Path:
        """Where a profile lies, by its hash."""
        return self.folder / "profiles" / f"{name}.safetensors"

    def keep_profile(self, name: str, source: Path) -> None:
        """Copy it here, so that every process and every resume uses the same."""
        if not self.profile_path(name).exists():
            with placed(self.profile_path(name)) as path:
                shutil.copyfile(source, path)

    def write_summary(self, content: Any, markdown: str) -> None:
        """Write the table as it is now."""
        self._write("summary.json", _as_json(content))
        self._write("summary.md", markdown.rstrip())

    def note(self, event: str, job: str) -> None:
        """A line in the journal; lines of several processes do not mix."""
        line = json.dumps({"event": event, "job": job, "time": time.time(), "pid": os.getpid()})
        with (self.folder / "journal.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def journal(self) -> Journal:
        """How the work went so far."""
        path = self.folder / "journal.jsonl"
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        entries = [entry for line in text.splitlines() if (entry := _event(line)) is not None]
        begun, ended = (
            [entry["job"] for entry in entries if entry["event"] == event] for event in _EVENTS
        )
        times = sorted(float(entry["time"]) for entry in entries)
        return Journal(
            begun=len(begun),
            ended=len(ended),
            open=len(set(begun) - set(ended)),
            processes=len({entry.get("pid") for entry in entries}),
            first=_utc(times[0]) if times else None,
            last=_utc(times[-1]) if times else None,
        )

    def _write(self, name: str, text: str) -> None:
        with placed(self.folder / name) as path:
            path.write_text(text + "\n", encoding="utf-8")


@contextlib.contextmanager
def placed(target: Path) -> Iterator[Path]:
    """A path to write to; the file takes the target's place when it is whole and on the disk."""
    scratch = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        yield scratch
        with scratch.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)


def _event(line: str) -> dict[str, Any] | None:
    """An entry of the journal; None for a line that was cut off or is of another kind."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(entry, dict) and {"event", "job", "time"} <= set(entry)
    return entry if whole and entry["event"] in _EVENTS else None


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def frames_hash(frames: video.Frames) -> str:
    """A hash of the frames themselves, whatever file they lie in."""
    shape = repr(frames.shape).encode()
    return hashlib.sha256(shape + np.ascontiguousarray(frames).tobytes()).hexdigest()


def _again(job: str) -> str:
    return f"delete jobs/{job}.json, and resume"


def _as_json(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False, sort_keys=True)


def _spec(content: dict[str, Any]) -> EvaluationSpec:
    return EvaluationSpec(
        model=ModelSpec(**content["model"]),
        clip=ClipSpec(**content["clip"]),
        dtype=content["dtype"],
        device=content["device"],
        prompts=tuple(EvaluationPrompt(**prompt) for prompt in content["prompts"]),
        seeds=tuple(content["seeds"]),
        methods=tuple(parse(label) for label in content["methods"]),
        metrics=tuple(content["metrics"]),
        versions=content["versions"],
        keep_clips=content["keep_clips"],
        profile=content.get("profile"),
        static=content.get("static", False),
        cache_memory=content.get("cache_memory"),
    )


def _merged(before: EvaluationSpec, now: EvaluationSpec) -> EvaluationSpec:
    """What the folder has, and after it what is new."""
    prompts = {prompt.id: prompt for prompt in before.prompts}
    for prompt in now.prompts:
        if prompts.setdefault(prompt.id, prompt) != prompt:
            raise StoreError(f"prompt {prompt.id!r} is another one in this folder's manifest")
    profiled = now if now.profiled else before
    return dataclasses.replace(
        now,
        prompts=tuple(prompts.values()),
        seeds=tuple(dict.fromkeys(before.seeds + now.seeds)),
        methods=tuple(dict.fromkeys(before.methods + now.methods)),
        metrics=tuple(dict.fromkeys(before.metrics + now.metrics)),
        profile=now.profile or before.profile,
        **{name: getattr(profiled, name) for name in _PLANNED},
    )


def _difference(before: EvaluationSpec, now: EvaluationSpec, name: str) -> str:
    old, new = getattr(before, name), getattr(now, name)
    if name in ("clip", "model"):
        old, new = dataclasses.asdict(old), dataclasses.asdict(new)
    if isinstance(old, dict):
        keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        return ", ".join(
            f"{name} {key} ({old.get(key)} before, {new.get(key)} now)" for key in keys
        )
    return f"{name} ({old} before, {new} now)"
