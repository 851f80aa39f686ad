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

from dit_accel.core.generation import INPUTS
from dit_accel.evaluation.jobs import EvaluationSpec
from dit_accel.models import miniature

EMBEDDED = "embedded miniature"
_RARE = ("guidance_2", *INPUTS)  # settings of a clip that few clips have
_CLIP = ("steps", "guidance", "height", "width", "frames", "fps", "negative", *_RARE)


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
    rare = {name: getattr(clip, name) for name in _RARE} | spec.setup.to_dict()
    found += [(name.replace("_", " "), _text(one)) for name, one in rare.items() if one is not None]
    if spec.static:
        found.append(("plans", "static: every run does the same, without a guard"))
    if spec.cache_memory is not None:
        found.append(("cached values of plans", f"at most {spec.cache_memory} bytes"))
    return [*found, *((name, version) for name, version in spec.versions.items())]


def command(spec: EvaluationSpec) -> str:
    """The command that makes this evaluation, given its prompts as `prompts.jsonl`."""
    clip = spec.clip
    own = spec.model.name not in (EMBEDDED, miniature.MINIATURE_NAME)
    options: dict[str, Any] = {
        "model": spec.model.name if own else None,
        "methods": ",".join(setting.label for setting in spec.methods),
        "metrics": ",".join(spec.metrics),
        "seeds": ",".join(map(str, spec.seeds)),
        **{name: getattr(clip, name) for name in _CLIP},
        **spec.setup.to_dict(),
        "dtype": spec.dtype,
        "device": spec.device,
        "cache_memory": spec.cache_memory,
        "output": "runs/again",
        "deterministic": spec.static,
        "no_learn": spec.no_learn,
        "no_keep_clips": not spec.keep_clips,
    }
    parts = ["dit-accel evaluate prompts.jsonl"]
    for name, value in options.items():
        for one in value if isinstance(value, list) else [value]:
            flag = f"--{name.replace('_', '-')}"
            if one is True:
                parts.append(flag)
            elif one not in (None, "") and one is not False:
                parts.append(f"{flag} {shlex.quote(_text(one))}")
    return " \\\n  ".join(parts)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def prompts_file(spec: EvaluationSpec) -> str:
    """The text of `prompts.jsonl`."""
    lines = (
        {key: value for key, value in dataclasses.asdict(prompt).items() if value is not None}
        for prompt in spec.prompts
    )
    return "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
