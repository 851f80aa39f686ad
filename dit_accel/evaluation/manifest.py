"""Reads and writes the manifest of an evaluation, its spec as JSON, and merges two specs.

In: a spec; or the manifest's content. Out: the same in the other form; or a `DocumentError` that
names the field.
Knows: the accepted values of every field. Does not know where the file is stored (`store`).
Source: ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from dit_accel.core import generation
from dit_accel.core.document import DocumentError, Field
from dit_accel.evaluation import prompts
from dit_accel.evaluation.jobs import MANIFEST_FORMAT, EvaluationSpec, ModelSpec
from dit_accel.evaluation.methods.row import Setting
from dit_accel.evaluation.prompts import EvaluationPrompt
from dit_accel.evaluation.result_file import HASH
from dit_accel.metrics import METRICS
from dit_accel.models.setup import Setup

_SHARED = ("setup", "model", "clip", "dtype", "device", "versions", "no_learn")
_PLANNED = ("static", "cache_memory")  # must be the same too, if both have methods with a profile
_FIELDS = ("format", *(field.name for field in dataclasses.fields(EvaluationSpec)))


class OtherEvaluation(ValueError):
    """The evaluation in a folder and the requested one do not fit together."""


def content_of(spec: EvaluationSpec) -> dict[str, Any]:
    """The manifest, JSON-able."""
    labels = {"methods": [method.label for method in spec.methods], "clip": spec.clip.to_dict()}
    content = {"format": MANIFEST_FORMAT, **dataclasses.asdict(spec)} | labels
    del content["setup"]
    setup = spec.setup.to_dict()
    # without it, the folder is like those of earlier versions
    return content | ({"setup": setup} if setup else {})


def spec_of(content: Field, parse: Callable[[str], Setting]) -> EvaluationSpec:
    """The evaluation that a manifest describes.

    Args:
        parse: returns the method with a label; raises a ValueError if there is none.

    Raises:
        DocumentError: a field is missing or not accepted; the error names the field.
    """
    content.check_format(MANIFEST_FORMAT)
    content.only(_FIELDS)
    static, keep = content.find("static"), content.at("keep_clips").flag()
    profile, memory = content.find("profile"), content.find("cache_memory")
    learned, no_learn = content.find("learned"), content.find("no_learn")
    return EvaluationSpec(
        model=_model(content.at("model")),
        clip=generation.clip_of(content.at("clip")),
        dtype=content.at("dtype").text(),
        device=content.at("device").text(),
        prompts=_prompts(content.at("prompts")),
        seeds=tuple(_once(content.at("seeds"), _seed)),
        methods=_methods(content.at("methods"), parse),
        metrics=tuple(_once(content.at("metrics"), lambda name: name.one_of(METRICS))),
        versions=texts_of(content.at("versions")),
        keep_clips=keep,
        profile=profile.text(HASH) if profile else None,  # becomes part of a path
        static=static.flag() if static else False,
        cache_memory=memory.whole(1) if memory else None,
        setup=_setup(content.find("setup")),
        learned=learned.text(HASH) if learned else None,
        no_learn=no_learn.flag() if no_learn else False,
    )


def _setup(field: Field | None) -> Setup:
    if field is None:
        return Setup()
    kinds = {one.name: one.default for one in dataclasses.fields(Setup)}
    field.only(list(kinds))
    found: dict[str, Any] = {}
    for name, value in field.fields().items():
        if name == "lora":
            found[name] = tuple(entry.text() for entry in value.entries())
        else:
            found[name] = value.flag() if isinstance(kinds[name], bool) else value.text()
    try:
        return Setup(**found)
    except ValueError as error:
        raise DocumentError(f"{field.place}: {error}") from error


def texts_of(field: Field) -> dict[str, str]:
    """An object whose values are texts."""
    return {name: value.text() for name, value in field.fields().items()}


def _model(field: Field) -> ModelSpec:
    names = [one.name for one in dataclasses.fields(ModelSpec)]
    return ModelSpec(**{name: field.only(names).at(name).text() for name in names})


def _prompts(field: Field) -> tuple[EvaluationPrompt, ...]:
    found = []
    for entry in field.entries(1):
        entry.only(prompts.KEYS)
        negative = entry.find("negative")
        found.append(
            EvaluationPrompt(
                id=entry.at("id").text(prompts.ID_PATTERN),
                prompt=entry.at("prompt").text(),
                negative=negative.text() if negative else None,
            )
        )
    _once(field, lambda entry: entry.at("id").value)
    return tuple(found)


def _seed(field: Field) -> int:
    return field.whole(0, generation.LARGEST_SEED)


def _methods(field: Field, parse: Callable[[str], Setting]) -> tuple[Setting, ...]:
    found = []
    for entry in field.entries(1):
        label = entry.text()
        try:
            found.append(parse(label))
        except ValueError as error:
            raise DocumentError(f"{entry.place}: {error}") from error
    return tuple(dict.fromkeys(found))


def _once(field: Field, read: Any) -> list[Any]:
    """The entries of a list, which must have at least one and none twice."""
    found: dict[Any, None] = {}
    for entry in field.entries(1):
        value = read(entry)
        if value in found:
            raise DocumentError(f"{entry.place} has {value!s:.60} again; accepted: each once")
        found[value] = None
    return list(found)


def merged(before: EvaluationSpec, now: EvaluationSpec) -> EvaluationSpec:
    """The spec with the folder's prompts, seeds, methods and metrics first, and the new ones after
    them.

    Raises:
        OtherEvaluation: they differ in a setting that must be the same; the error names each one.
    """
    shared = _SHARED + (_PLANNED if before.profiled and now.profiled else ())
    differing = [name for name in shared if getattr(before, name) != getattr(now, name)]
    if differing:
        raise OtherEvaluation(
            "another "
            + "; another ".join(_difference(before, now, name) for name in differing)
            + ": choose another folder"
        )
    by_id = {prompt.id: prompt for prompt in before.prompts}
    ids = {(prompt.prompt, prompt.negative): prompt.id for prompt in before.prompts}
    for prompt in now.prompts:
        if by_id.setdefault(prompt.id, prompt) != prompt:
            raise OtherEvaluation(f"another prompt {prompt.id!r}: choose another folder")
        known = ids.get((prompt.prompt, prompt.negative), prompt.id)
        if known != prompt.id:  # one clip would count as two
            raise OtherEvaluation(
                f"the prompt {prompt.id!r} under the id {known!r}: give it that id, or choose "
                "another folder"
            )
    profiled = now if now.profiled else before
    return dataclasses.replace(
        now,
        prompts=tuple(by_id.values()),
        seeds=tuple(dict.fromkeys(before.seeds + now.seeds)),
        methods=tuple(dict.fromkeys(before.methods + now.methods)),
        metrics=tuple(dict.fromkeys(before.metrics + now.metrics)),
        profile=now.profile or before.profile,
        # runs learn from the clips of this folder, too
        learned=(before if before.profiled else now).learned,
        **{name: getattr(profiled, name) for name in _PLANNED},
    )


def _difference(before: EvaluationSpec, now: EvaluationSpec, name: str) -> str:
    old, new = getattr(before, name), getattr(now, name)
    if name == "setup":
        old, new = old.to_dict(), new.to_dict()
    if name in ("clip", "model"):
        old, new = dataclasses.asdict(old), dataclasses.asdict(new)
    if isinstance(old, dict):
        keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        return ", ".join(
            f"{name} {key} ({old.get(key)} before, {new.get(key)} now)" for key in keys
        )
    return f"{name} ({old} before, {new} now)"
