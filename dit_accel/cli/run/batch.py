"""Many prompts with one load of the model: the clips of `--prompt-file`, done or not.

In: a prompt file, a folder and settings. Out: a `Clip` for each prompt.
Knows that a clip is done if its sidecar has the same settings, weights and input files, and its
files the sizes with which they were written; makes no clip. Ours.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_accel.cli.common.errors import BadInput
from dit_accel.cli.common.files import Files, check_files, name_files
from dit_accel.cli.run.request import slug
from dit_accel.core.files import reason_of
from dit_accel.core.generation import INPUT_FILES

if TYPE_CHECKING:
    from dit_accel.cli.run.settings import Settings
    from dit_accel.evaluation.prompts import EvaluationPrompt
    from dit_accel.models.folder import LoadableModel


@dataclass(frozen=True)
class Clip:
    """One clip of a batch.

    Args:
        key: the hash of all its settings.
    """

    settings: Settings
    files: Files
    key: str


def clips_of(
    prompts: Sequence[EvaluationPrompt], folder: Path, model: LoadableModel, settings: Settings
) -> list[Clip]:
    """A clip for each prompt, done or not; writes nothing."""
    from dit_accel.evaluation.jobs import fingerprint

    inputs = [getattr(settings, name) for name in INPUT_FILES]
    shown = [_digest(Path(path)) for path in inputs if path is not None]
    weights = fingerprint(model.folder, settings.setup)
    clips = []
    for prompt in prompts:
        negative = settings.negative if prompt.negative is None else prompt.negative
        one = dataclasses.replace(settings, prompt=prompt.prompt, negative=negative)
        path = folder / f"{slug(prompt.prompt, longest=40)}-{prompt.id}.mp4"
        asked = json.dumps([one.to_dict(), weights, shown], sort_keys=True, default=str)
        key = hashlib.sha256(asked.encode()).hexdigest()[:20]
        clips.append(Clip(one, name_files(path, compare=settings.compare), key))
    return clips


def open_ones(clips: Sequence[Clip], *, overwrite: bool) -> list[Clip]:
    """The clips that are not made yet, or damaged. Existing files with other settings are
    refused."""
    found = [clip for clip in clips if not is_done(clip)]
    for clip in found:
        if clip.files.video.parent.exists():
            again = overwrite or _is_ours(clip)
            check_files(clip.files, overwrite=again, option="--output-dir")
    return found


def make_folder(clips: Sequence[Clip]) -> None:
    """Make the folder for the clips."""
    folder = clips[0].files.video.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--output-dir is {str(folder)!r}: {reason_of(error)}") from error


def is_done(clip: Clip) -> bool:
    """Whether all files of a clip exist in full, and were made with the same settings."""
    files = clip.files.present().values()
    if not _is_ours(clip) or not all(path.is_file() for path in files):
        return False
    written = _sidecar(clip).get("bytes", {})  # earlier versions did not store the sizes
    return {path.name: path.stat().st_size for path in files}.items() >= written.items()


def _is_ours(clip: Clip) -> bool:
    """Whether there is a sidecar of the same settings."""
    content = _sidecar(clip)
    return content.get("asked") == clip.key and isinstance(content.get("bytes", {}), dict)


def _sidecar(clip: Clip) -> dict[str, Any]:
    """The content of a clip's sidecar; empty if there is none that can be read."""
    try:
        content: Any = json.loads(clip.files.sidecar.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:20]
