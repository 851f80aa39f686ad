"""Reads a layout file, JSON or YAML, in the format of `layout.schema.json` in this folder.

A path or bytes come in; a `Layout` goes out, or an error that names the field. `model.py` checks
fields and their relations. This module checks keys, types of containers and paths. After links are
resolved, a file outside the layout's folder is refused, unless it is allowed. The files are not
opened.
Source: ours.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from dit_accel.layout import errors, model
from dit_accel.layout.errors import LayoutError, not_accepted
from dit_accel.layout.model import Keyframe, Layout, Reference, Shot, Subject
from dit_accel.layout.parse import LARGEST_BYTES, document

SUFFIXES = (".yaml", ".yml", ".json")
CLIPS = (".mp4", ".mkv", ".npy", ".avi", ".mov", ".webm")  # `video.READABLE` without cv2
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_T = TypeVar("_T")


def load(path: str | os.PathLike[str], *, outside: bool = False) -> Layout:
    """Read a layout file.

    Args:
        path: ends in one of `SUFFIXES`.
        outside: whether the file may name files outside its own folder.

    Raises:
        LayoutError: the layout is not accepted; the error names the field.
        FileNotFoundError: the file does not exist.
        OSError: the file cannot be read.
    """
    source = Path(path)
    if source.suffix.lower() not in SUFFIXES:
        accepted = f"a name that ends in {', '.join(SUFFIXES)}"
        raise not_accepted("the file's name", source.name, accepted)
    if not source.is_file():
        raise FileNotFoundError(f"no layout at {source}")
    with source.open("rb") as file:
        content = file.read(LARGEST_BYTES + 1)
    json_only = source.suffix.lower() == ".json"
    return parse(content, source.parent, json_only=json_only, outside=outside)


def parse(
    content: bytes, folder: Path, *, json_only: bool = False, outside: bool = False
) -> Layout:
    """Read the content of a layout file.

    Args:
        content: UTF-8, at most 512 KiB.
        folder: the folder that its paths are relative to.
        json_only: whether it is JSON; else it is YAML.
        outside: whether it may name files outside that folder.

    Raises:
        LayoutError: the layout is not accepted; the error names the field.
    """
    found = document(content, json_only=json_only)
    return _Reader(folder.absolute(), outside).layout(found)


@dataclass(frozen=True)
class _Reader:
    folder: Path
    outside: bool

    def layout(self, found: Any) -> Layout:
        keys = ("version", "negative_prompt", "subjects", "shots")
        fields = _fields(found, keys, needed=("version", "shots"))
        errors.check_version(fields["version"])
        cast = self._cast(fields.get("subjects"))
        shots = _each("shots", fields["shots"], model.MOST_SHOTS, partial(self.shot, cast=cast))
        placed = {subject.id for shot in shots for subject in shot.subjects}
        for index, id in enumerate(cast):
            if id not in placed:
                raise LayoutError(f"subjects[{index}].id", f"is {id!r}, which is in no shot")
        return Layout(shots, fields.get("negative_prompt"), fields["version"])

    def shot(self, found: Any, cast: dict[str, str]) -> Shot:
        names = ("id", "prompt", "subjects")
        fields = _fields(found, names, needed=names)
        read = partial(self.subject, cast=cast)
        subjects = _each("subjects", fields["subjects"], model.MOST_SUBJECTS, read)
        return Shot(fields["id"], fields["prompt"], subjects)

    def subject(self, found: Any, cast: dict[str, str]) -> Subject:
        known = ("id", "prompt", "box", "keyframes", "mask", "z", "reference")
        fields = _fields(found, known, needed=("id",))
        id = fields["id"]
        errors.check_id("id", id)
        prompts = {**cast, id: fields["prompt"]} if "prompt" in fields else cast
        if id not in prompts:
            raise LayoutError(
                "prompt", "is missing; accepted: a text here, or in the list of subjects at the top"
            )
        reference = None
        if "reference" in fields:
            with _field("reference"):
                reference = self.reference(fields["reference"])
        keyframes, mask = self._where(fields)
        return Subject(id, prompts[id], keyframes, mask, fields.get("z", 0), reference)

    def reference(self, found: Any) -> Reference:
        known = ("shot", "subject", "file", "box", "keyframes", "mask")
        fields = _fields(found, known, needed=())
        file = self.path("file", fields["file"], IMAGES + CLIPS) if "file" in fields else None
        keyframes, mask = self._where(fields)
        return Reference(fields.get("shot"), fields.get("subject"), file, keyframes, mask)

    def path(self, field: str, value: Any, suffixes: tuple[str, ...]) -> Path:
        """An existing file inside the folder, links resolved."""
        errors.check_text(field, value)
        if Path(value).suffix.lower() not in suffixes:
            raise not_accepted(field, value, f"a file that ends in {', '.join(suffixes)}")
        try:
            path = (self.folder / value).resolve()
            if not self.outside and not path.is_relative_to(self.folder.resolve()):
                raise not_accepted(field, value, "a file inside the layout's folder")
            is_there = path.is_file()
        except (OSError, RuntimeError) as error:  # a name too long, links in a circle
            raise not_accepted(field, value, "a file that can be found") from error
        if not is_there:
            raise LayoutError(field, f"is {errors.shown(value)}; there is no such file")
        return path

    def _where(self, fields: dict[str, Any]) -> tuple[tuple[Keyframe, ...], Path | None]:
        """Keyframes and mask. A `box` becomes one keyframe. Both may be absent here."""
        if "box" in fields and "keyframes" in fields:
            raise LayoutError("box", "is given beside keyframes; accepted: one of them")
        keyframes: tuple[Keyframe, ...] = ()
        if "box" in fields:
            keyframes = (Keyframe(0.0, fields["box"]),)
        elif "keyframes" in fields:
            keyframes = _each("keyframes", fields["keyframes"], model.MOST_KEYFRAMES, _keyframe)
        mask = self.path("mask", fields["mask"], CLIPS) if "mask" in fields else None
        return keyframes, mask

    def _cast(self, found: Any) -> dict[str, str]:
        """The prompts of the subjects at the top of the file, by id."""
        if found is None:
            return {}

        def member(one: Any) -> Subject:
            fields = _fields(one, ("id", "prompt"), needed=("id", "prompt"))
            return Subject(fields["id"], fields["prompt"], (Keyframe(0, (0, 0, 1, 1)),))

        members = _each("subjects", found, model.MOST_SUBJECTS * model.MOST_SHOTS, member)
        errors.check_unique("subjects", [one.id for one in members])
        return {one.id: one.prompt for one in members}


def _keyframe(found: Any) -> Keyframe:
    fields = _fields(found, ("at", "box"), needed=("at", "box"))
    return Keyframe(fields["at"], fields["box"])


def _fields(found: Any, known: tuple[str, ...], needed: tuple[str, ...]) -> dict[str, Any]:
    """A mapping with all needed keys and only known ones."""
    if not isinstance(found, dict):
        raise not_accepted("", found, f"a mapping with {', '.join(known)}")
    for key in found:
        if key not in known:
            raise LayoutError("", f"has the key {errors.shown(key)}; accepted: {', '.join(known)}")
    for key in needed:
        if key not in found:
            raise LayoutError(key, "is missing")
    return found


def _each(field: str, found: Any, most: int, read: Callable[[Any], _T]) -> tuple[_T, ...]:
    """Read every entry of a list; errors name the entry."""
    if not isinstance(found, list):
        raise not_accepted(field, found, "a list")
    errors.check_count(field, len(found), 1, most)
    entries = []
    for index, one in enumerate(found):
        with _field(f"{field}[{index}]"):
            entries.append(read(one))
    return tuple(entries)


@contextmanager
def _field(prefix: str) -> Iterator[None]:
    try:
        yield
    except LayoutError as error:
        raise error.inside(prefix) from error
