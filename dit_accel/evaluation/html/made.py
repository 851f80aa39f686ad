"""Says how an evaluation was made, and with which command it can be made again.

In: a spec. Out: settings as texts, a command line, and the text of the prompts' file.
Knows: the options of `dit-accel evaluate`.
Source: ours.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from typing import Any

from dit_accel.evaluation.jobs import EvaluationSpec
from dit_accel.models import miniature

EMBEDDED = "embedded miniature"
_OPTIONS = ("steps", "guidance", "height", "width", "frames", "fps", "negative")


def settings(spec: EvaluationSpec) -> list[tuple[str, str]]:
    """(name, value) of each setting that all clips share, and of versions."""
    clip = spec.clip
    found = [
        ("model", spec.model.name),
        ("pipeline", spec.model.pipeline),
        ("fingerprint of the weights", spec.model.fingerprint),
        ("clip", f"{clip.frames} frames of {clip.width} × {clip.height} pixels"),
        ("steps", f"{clip.steps}"),
        ("guidance", f"{clip.guidance:g}"),
        ("negative prompt", clip.negative or "none"),
        ("seeds", ", ".join(map(str, spec.seeds))),
        ("dtype, device", f"{spec.dtype}, {spec.device}"),
    ]
    if clip.fps:
        found.insert(4, ("frames per second", f"{clip.fps:g}"))
    if spec.static:
        found.append(("plans", "static: every run does the same, without a guard"))
    if spec.cache_memory is not None:
        found.append(("cached values of plans", f"at most {spec.cache_memory} bytes"))
    return [*found, *((name, version) for name, version in spec.versions.items())]


def command(spec: EvaluationSpec) -> str:
    """The command that makes this evaluation, given its prompts as `prompts.jsonl`."""
    clip = spec.clip
    own = spec.model.name not in (EMBEDDED, miniature.MINIATURE_NAME)
    options: list[tuple[str, Any]] = [
        ("--model", spec.model.name if own else None),
        ("--methods", ",".join(setting.label for setting in spec.methods)),
        ("--metrics", ",".join(spec.metrics)),
        ("--seeds", ",".join(map(str, spec.seeds))),
        *((f"--{name}", getattr(clip, name)) for name in _OPTIONS),
        ("--dtype", spec.dtype),
        ("--device", spec.device),
        ("--cache-memory", spec.cache_memory),
        ("--out", "runs/again"),
    ]
    parts = ["dit-accel evaluate prompts.jsonl"]
    for name, value in options:
        if value is not None and (name != "--negative" or value):
            text = f"{value:g}" if isinstance(value, float) else str(value)
            parts.append(f"{name} {shlex.quote(text)}")
    if spec.static:
        parts.append("--deterministic")
    if spec.no_learn:
        parts.append("--no-learn")
    if not spec.keep_clips:
        parts.append("--no-keep-clips")
    return " \\\n  ".join(parts)


def prompts_file(spec: EvaluationSpec) -> str:
    """The text of `prompts.jsonl`."""
    lines = (
        {key: value for key, value in dataclasses.asdict(prompt).items() if value is not None}
        for prompt in spec.prompts
    )
    return "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
