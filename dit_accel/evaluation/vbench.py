"""Writes the clips of an evaluation as VBench's tool looks for them: `<prompt>-<index>.mp4`.

In: the store. Out: a folder for each method. The index is the seed's place in the evaluation.
Knows: VBench finds a clip by its prompt, and scores the videos of one folder. Its tool needs
versions that do not work with a current diffusers, so it runs in another environment. Clips are
encoded again, because VBench reads no lossless container.
Source: VBench, arXiv 2311.17982, and its repository.
"""

from __future__ import annotations

import re
from pathlib import Path

from dit_accel.core import video
from dit_accel.core.generation import FALLBACK_FPS
from dit_accel.evaluation.jobs import EvaluationSpec
from dit_accel.evaluation.methods.row import Setting
from dit_accel.evaluation.results import FAILED
from dit_accel.evaluation.store import Store

LONGEST_NAME = 255  # bytes, on the usual file systems


def export(store: Store, spec: EvaluationSpec, out: Path) -> dict[str, int]:
    """Write every stored clip under VBench's name, in one folder for each method.

    Args:
        out: made if it does not exist. Existing clips stay as they are.

    Returns:
        The number of clips in each folder.

    Raises:
        ValueError: some prompts cannot be file names. They are listed, and nothing is written.
        StoreError: a clip is missing or cannot be read.
        OSError: a clip cannot be written.
    """
    _check_names(spec)
    counts: dict[str, int] = {}
    for job in spec.jobs():
        result = store.result(job.id)
        if result is None or result["status"] == FAILED:
            continue
        folder = out / folder_name(job.method)
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / file_name(job.clip.prompt, spec.seeds.index(job.clip.seed))
        if not target.exists():
            frames = store.read_clip(job.id, result["frames_sha256"])
            video.write_video(target, frames, fps=job.clip.fps or FALLBACK_FPS)
        counts[folder.name] = counts.get(folder.name, 0) + 1
    return counts


def file_name(prompt: str, index: int) -> str:
    """The name under which VBench's tool looks for a clip."""
    return f"{prompt}-{index}.mp4"


def folder_name(setting: Setting) -> str:
    """The name of the folder of a method with its number."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", setting.label)


def _check_names(spec: EvaluationSpec) -> None:
    last = len(spec.seeds) - 1
    names = {prompt.id: file_name(prompt.prompt, last) for prompt in spec.prompts}
    bad = [id for id, name in names.items() if "/" in name or len(name.encode()) > LONGEST_NAME]
    if bad:
        raise ValueError(
            f"prompts {', '.join(bad[:5])}{' and others' if len(bad) > 5 else ''} cannot be file "
            f"names, as VBench needs; accepted: up to {LONGEST_NAME - 6} bytes without /"
        )
