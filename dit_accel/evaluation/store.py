"""The folder of an evaluation: a manifest and one file for each job, written whole or not at all.

In: a spec, results, clips and latents. Out: the same, checked; or a `StoreError` that names the
file and a remedy.

    manifest.json      the spec: model, settings, prompts, seeds, methods, versions
    jobs/<id>.json     a result; the job is done if and only if this file is there
    clips/<id>.mkv     its frames, bit-exact (FFV1)
    latents/<id>.npy   its last latents, for the latent metrics
    calibration/       what other packages' methods measured before their first run
    profiles/          the profile, or what was learnt, that the plans are from
    ranking/<id>.json  scores of a clip among the seeds of its prompt (`ranking/scores`)
    claims/<id>        which process is making a job now
    journal.jsonl      when each job began and ended
    summary.json, .md  the table, as it was when the command last ended

Knows: files only. Only `clock` of a result depends on time and machine.
Source: ours.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dit_accel.core import video
from dit_accel.core.document import DocumentError, Field, read_document
from dit_accel.core.files import placed
from dit_accel.evaluation import journal, manifest, result_file
from dit_accel.evaluation.claims import Claims
from dit_accel.evaluation.jobs import EvaluationSpec
from dit_accel.evaluation.journal import Journal
from dit_accel.evaluation.methods import parse
from dit_accel.evaluation.results import Result, Results

FOLDERS = ("jobs", "clips", "latents", "calibration", "profiles", "claims")
JOURNAL = "journal.jsonl"


class StoreError(Exception):
    """The folder has a file that this evaluation must not touch or cannot use."""


class Store:
    """Reads and writes the folder of one evaluation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.claims = Claims(folder / "claims")

    # the spec

    @property
    def is_planned(self) -> bool:
        """Whether the folder has an evaluation with methods that plan. Then the source of their
        plans is fixed.

        Raises:
            StoreError: see `spec`.
        """
        return (self.folder / "manifest.json").exists() and bool(self.spec().profiled)

    def spec(self) -> EvaluationSpec:
        """The evaluation that the manifest describes.

        Raises:
            StoreError: there is no manifest, or it is of another version.
        """
        path = self.folder / "manifest.json"
        try:
            with _named(path, "choose another folder"):
                return manifest.spec_of(read_document(path), parse)
        except FileNotFoundError:
            problem = "has no evaluation: manifest.json is missing"
            raise StoreError(f"{self.folder} {problem}") from None

    def open(self, spec: EvaluationSpec, known: Collection[bytes] = ()) -> EvaluationSpec:
        """Begin or resume an evaluation: new prompts, seeds, methods and metrics are added.

        Args:
            known: contents of the files that the spec names by `name_of`; they are copied here.

        Raises:
            StoreError: the folder has an evaluation with other settings; the error names each.
        """
        if not (self.folder / "manifest.json").exists() and self.folder.is_dir():
            found = {path.name for path in self.folder.iterdir()} - {*FOLDERS}
            # scratch files of `placed`
            others = sorted(name for name in found if not name.startswith("."))
            if others:
                more = " and more" if len(others) > 1 else ""
                raise StoreError(
                    f"{self.folder} has other files ({others[0]}{more}) and no evaluation: "
                    "choose another folder"
                )
        with self.claims.locked():
            return self._opened(spec, known)

    def _opened(self, spec: EvaluationSpec, known: Collection[bytes]) -> EvaluationSpec:
        if (self.folder / "manifest.json").exists():
            before = self.spec()
            try:
                spec = manifest.merged(before, spec)
            except manifest.OtherEvaluation as error:
                raise StoreError(f"{self.folder} has an evaluation with {error}") from error
        for name in FOLDERS:
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._keep(spec, known)  # before another process reads the manifest
        self._write("manifest.json", _as_json(manifest.content_of(spec)))
        return spec

    # results

    def result(self, job: str) -> Result | None:
        """A result; None if the job is not done.

        Raises:
            StoreError: the file cannot be read, or is of another version.
        """
        path = self.folder / "jobs" / f"{job}.json"
        try:
            with _named(path, "delete it, and resume"):
                return result_file.checked(read_document(path), job)
        except FileNotFoundError:
            return None

    def results(self, spec: EvaluationSpec | None = None) -> Results:
        """All results of an evaluation so far.

        Raises:
            StoreError: a result cannot be read.
        """
        spec = spec or self.spec()
        return Results(spec, spec.groups(), {job.id: self.result(job.id) for job in spec.jobs()})

    def done(self, job: str) -> bool:
        """Whether the job has a result."""
        return (self.folder / "jobs" / f"{job}.json").exists()

    def write_result(self, job: str, result: Result) -> None:
        """Write a result; from then on the job is done."""
        self._write(f"jobs/{job}.json", _as_json({"format": result_file.RESULT_FORMAT, **result}))

    def forget(self, job: str) -> None:
        """Delete a result, so that its job is run again."""
        (self.folder / "jobs" / f"{job}.json").unlink(missing_ok=True)

    # clips and arrays

    def clip_path(self, job: str) -> Path:
        """Where the frames of a job are, if they were stored."""
        return self.folder / "clips" / f"{job}.mkv"

    def write_clip(self, job: str, frames: video.Frames, fps: float) -> None:
        """Write frames bit-exactly."""
        video.write_video(self.clip_path(job), frames, fps=fps)

    def read_clip(self, job: str, sha256: str) -> video.Frames:
        """The frames of a job, checked against their hash.

        Raises:
            StoreError: they are missing, or their hash is not the one in the result.
        """
        path = self.clip_path(job)
        try:
            frames, _ = video.read_video(path)
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} cannot be read ({error}): {_again(job)}") from error
        if frames_hash(frames) != sha256:
            raise StoreError(f"{path} does not have the frames of its result: {_again(job)}")
        return frames

    def write_latents(self, job: str, latents: npt.NDArray[np.float32]) -> None:
        """Write the last latents of a clip."""
        content = io.BytesIO()  # numpy hides the reason if a file cannot be written
        np.save(content, latents, allow_pickle=False)
        with placed(self.folder / "latents" / f"{job}.npy") as path:
            path.write_bytes(content.getbuffer())

    def read_latents(self, job: str) -> npt.NDArray[np.float32]:
        """The last latents of a clip.

        Raises:
            StoreError: they are missing or damaged.
        """
        path = self.folder / "latents" / f"{job}.npy"
        try:
            found = np.load(path, mmap_mode="r", allow_pickle=False)
            if not isinstance(found, np.ndarray) or found.dtype != np.float32 or found.ndim < 2:
                raise ValueError("not a float32 array of (B, ...)")  # LTX packs: (B, L, C)
            return np.array(found)
        except (OSError, ValueError, EOFError, TypeError, SyntaxError, OverflowError) as error:
            raise StoreError(f"{path} cannot be read ({error}): {_again(job)}") from error

    # the rest

    def calibration(self, name: str) -> Any:
        """What a method measured and stored under a name: numbers and texts, in lists and objects;
        or None.

        Raises:
            StoreError: the file has other content.
        """
        path = self.folder / "calibration" / f"{name}.json"
        try:
            with _named(path, "delete it, and resume"):
                document = read_document(path)
                _check_plain(document)
                return document.value
        except FileNotFoundError:
            return None

    def write_calibration(self, name: str, value: Any) -> None:
        """Write the measurements of a method."""
        self._write(f"calibration/{name}.json", _as_json(value))

    def profile_path(self, name: str | None) -> Path | None:
        """The path of a profile, or of what was learnt, by its hash."""
        return None if name is None else self.folder / "profiles" / f"{name}.safetensors"

    def _keep(self, spec: EvaluationSpec, known: Collection[bytes]) -> None:
        """Write the files that plans are made from, so that every process and every resume uses the
        same."""
        for content in known:
            path = self.profile_path(name_of(content))
            if path is not None and path.stem in (spec.profile, spec.learned):
                with placed(path) as scratch:
                    scratch.write_bytes(content)

    def write_summary(self, content: Any, markdown: str) -> None:
        """Write the table as it is now."""
        self._write("summary.json", _as_json(content))
        self._write("summary.md", markdown.rstrip())

    def note(self, event: str, job: str) -> None:
        """Write a line in the journal."""
        journal.note(self.folder / JOURNAL, event, job)

    def journal(self) -> Journal:
        """How the work went so far."""
        return journal.read(self.folder / JOURNAL)

    def _write(self, name: str, text: str) -> None:
        with placed(self.folder / name) as path:
            path.write_text(text + "\n", encoding="utf-8")


@contextlib.contextmanager
def _named(path: Path, way_out: str) -> Iterator[None]:
    """Turn an error of a document into one of the store, with the file's name."""
    try:
        yield
    except DocumentError as error:
        text = str(error).removeprefix(f"{path} ")
        damaged = "" if text.startswith("is ") else "is damaged: "
        raise StoreError(f"{path} {damaged}{text}; {way_out}") from error


def name_of(content: bytes) -> str:
    """The name of a file that plans are made from."""
    return hashlib.sha256(content).hexdigest()[:20]


def frames_hash(frames: video.Frames) -> str:
    """A hash of the frames themselves; it does not depend on their file."""
    shape = repr(frames.shape).encode()
    return hashlib.sha256(shape + np.ascontiguousarray(frames).tobytes()).hexdigest()


def _again(job: str) -> str:
    return f"delete jobs/{job}.json, and resume"


def _as_json(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False, sort_keys=True)


def _check_plain(field: Field) -> None:
    """Refuse a value that is not a finite number, a text, or a list or an object of these."""
    if isinstance(field.value, dict):
        for entry in field.fields().values():
            _check_plain(entry)
    elif isinstance(field.value, list):
        for entry in field.entries():
            _check_plain(entry)
    elif isinstance(field.value, str):
        field.text()
    else:
        field.number()
