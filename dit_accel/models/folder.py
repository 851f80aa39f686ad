"""Checks a model's folder in the diffusers format, without loading weights.

In: a folder, or its `model_index.json`. Out: a `LoadableModel`; or an error that names what is
missing or not supported.
Knows the files of such a folder, and the table of families; no hub and no device.
Source: ours.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit_accel.models.config_limits import check_limits
from dit_accel.models.families import EXPERTS, FAMILIES, Family
from dit_accel.models.json_file import read_object

_VARIANT = re.compile(r"^[\w-]+\.(?!safetensors)([\w-]+?)(?:-\d+-of-\d+)?\.safetensors$")


class ModelError(ValueError):
    """A model or a device that cannot be used; another one can."""


class ModelLoadError(RuntimeError):
    """A model that should load, but did not."""


@dataclass(frozen=True)
class LoadableModel:
    """A folder in the diffusers format that was checked, but not loaded."""

    name: str
    folder: Path
    index: dict[str, Any]
    family: Family
    variant: str | None = None

    @property
    def denoisers(self) -> tuple[str, ...]:
        """The experts of the model."""
        return tuple(name for name in EXPERTS if _class_of(self.index, name) is not None)


def inspect_folder(folder: Path, *, name: str, whole: bool = True) -> LoadableModel:
    """Check that a folder has a supported pipeline, and if requested, a complete one.

    Raises:
        ModelError: a part is missing or not supported, or a configuration has a number that no
            model has; the message names it.
    """
    index = read_index(folder / "model_index.json", name)
    family = check_family(index, name)
    with _as_model_error(name):
        missing = missing_parts(folder, index) if whole else missing_configs(folder)
        check_limits(folder)
    if missing:
        raise ModelError(f"model is {name!r}, which is incomplete: {', '.join(missing)} missing")
    return LoadableModel(name, folder, index, family)


def missing_parts(folder: Path, index: dict[str, Any]) -> list[str]:
    """The components that the index of a pipeline names and its folder lacks, wholly or partly.

    Raises:
        ValueError: an index of weights is damaged; the message names it.
    """
    missing = []
    for part in index:
        if _class_of(index, part) is None:
            continue
        if not _is_file_name(part) or part.startswith("."):
            raise ValueError(f"model_index.json names the component {part!r:.80}")
        if not (folder / part).is_dir() or not any((folder / part).iterdir()):
            missing.append(f"{part}/")
        elif (folder / part / "config.json").is_file():
            missing += [f"{part}/{file}" for file in _missing_weights(folder / part)]
    return missing


def with_variant(model: LoadableModel, variant: str | None) -> LoadableModel:
    """The model with a variant of its weights; None: with those of no variant.

    Raises:
        ModelError: its files do not have the variant, or only variants.
    """
    if variant is None:
        _check_plain(model)
        return model
    names = {path.name for path in model.folder.glob("*/*.safetensors")}
    found = {part for name in names for part in _VARIANT.findall(name)}
    if variant not in found:
        there = f"its files have {', '.join(sorted(found))}" if found else "its files have none"
        raise ModelError(f"variant is {variant!r}, of model {model.name!r}: {there}")
    return dataclasses.replace(model, variant=variant)


def _check_plain(model: LoadableModel) -> None:
    """Refuse parts whose weights exist only as variants, if no variant was named."""
    for part in model.index:
        names = [path.name for path in (model.folder / part).glob("*.safetensors")]
        found = [_VARIANT.findall(name) for name in names]
        if found and all(found) and not any((model.folder / part).glob("*.bin")):
            there = ", ".join(sorted({variant for one in found for variant in one}))
            raise ModelError(
                f"variant is not given, and {part} of model {model.name!r} has only {there}"
            )


def read_index(source: Path, name: str) -> dict[str, Any]:
    """The content of a `model_index.json`."""
    if not source.is_file():
        raise ModelError(f"model is {name!r}: no diffusers folder, it has no model_index.json")
    with _as_model_error(name):
        return read_object(source)


def check_family(index: dict[str, Any], name: str) -> Family:
    """The family of an index's transformer; refuse one that the command cannot call."""
    kind = _class_of(index, "transformer") or _class_of(index, "transformer_2")
    able = {row.transformer: row for row in FAMILIES.values() if row.by_command}
    if kind not in able:
        families = ", ".join(f"{row.name} ({row.transformer})" for row in able.values())
        found = f"a {kind}" if kind else "no transformer"
        only = ", which only Python code can call, with `accelerate`" if kind in FAMILIES else ""
        raise ModelError(
            f"model is {name!r}, with {found}{only}: supported families are {families}"
        )
    return able[kind]


def _class_of(index: dict[str, Any], part: str) -> str | None:
    """The class name of a component; None if it is absent, or is not a component."""
    entry = index.get(part)
    if isinstance(entry, list) and len(entry) == 2 and entry[0] and entry[1]:
        return str(entry[1])
    return None


def missing_configs(folder: Path) -> list[str]:
    """The configuration files that a folder lacks, of those that are read without weights."""
    found = [(folder / part / "config.json").is_file() for part in EXPERTS]
    missing = [] if any(found) else ["transformer/config.json"]
    return missing if (folder / "vae" / "config.json").is_file() else [*missing, "vae/config.json"]


def _missing_weights(part: Path) -> list[str]:
    indices = sorted(part.glob("*.index.json"))
    if not indices:
        found = any(part.glob("*.safetensors")) or any(part.glob("*.bin"))
        return [] if found else ["*.safetensors"]
    files = read_object(indices[0]).get("weight_map")
    if not isinstance(files, dict) or not all(map(_is_file_name, files.values())):
        raise ValueError(f"weight_map of {indices[0]} is no object of file names")
    return sorted(shard for shard in set(files.values()) if not (part / shard).is_file())


def _is_file_name(value: Any) -> bool:
    """Whether a value is the name of a file in the same folder."""
    return isinstance(value, str) and 0 < len(value) < 256 and not set(value) & set("/\\\0")


@contextlib.contextmanager
def _as_model_error(name: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ModelError(f"model is {name!r}: {error}") from error
