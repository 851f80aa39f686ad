"""A layout: shots, the subjects in them, their boxes over time, and where their looks come from.

Coordinates are shares of the frame, x to the right and y down: (x0, y0, x1, y1). Times are shares
of the clip: 0 is its first frame, 1 its last. So a layout fits every size and length of clip.

Everything is checked when it is made, whether it comes from a file or from Python; the error names
the field as the file would: `shots[1].subjects[0].keyframes[2].box`. It reads no file.

Source: IR-Diffusion (arXiv 2411.19261) takes masks from a detector; the file of boxes is ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

Box = tuple[float, float, float, float]

VERSION = 1
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
MOST_SHOTS, MOST_SUBJECTS, MOST_KEYFRAMES = 32, 16, 1024
LONGEST_TEXT = 10_000
REACH_OF_Z = 1_000_000
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_ID_WORDS = "1 to 64 letters, digits, _ and -, a letter or digit first"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
_BOX_WORDS = "[x0, y0, x1, y1] with 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1"


class LayoutError(ValueError):
    """A layout that is not accepted: names the field, its value, and what is.

    Args:
        field: where it is, e.g. `shots[0].id`; empty for the whole layout.
        said: what is wrong with it.
    """

    def __init__(self, field: str, said: str) -> None:
        super().__init__(f"{field} {said}" if field else said)
        self.field = field
        self.said = said

    def inside(self, prefix: str) -> LayoutError:
        """The same, of a field that is part of another."""
        if not prefix:
            return self
        joint = "" if not self.field or self.field.startswith("[") else "."
        return LayoutError(f"{prefix}{joint}{self.field}", self.said)


@dataclass(frozen=True)
class Keyframe:
    """Where a subject is at one moment.

    Args:
        at: share of the clip, in [0, 1].
        box: (x0, y0, x1, y1) in shares of the frame.

    Raises:
        LayoutError: a number is out of range or not finite, or the box is empty.
    """

    at: float
    box: Box

    def __post_init__(self) -> None:
        if not _is_share(self.at):
            raise not_accepted("at", self.at, "a number from 0 to 1")
        box = self.box
        if not isinstance(box, Sequence) or len(box) != 4 or not all(map(_is_share, box)):
            raise not_accepted("box", box, _BOX_WORDS)
        if not (box[0] < box[2] and box[1] < box[3]):
            raise not_accepted("box", box, f"{_BOX_WORDS}; this one is empty")
        object.__setattr__(self, "at", float(self.at))
        object.__setattr__(self, "box", tuple(float(edge) for edge in box))


@dataclass(frozen=True)
class Reference:
    """What a subject shall look like: itself in another shot of the layout, or an image or clip.

    Args:
        shot: id of the other shot; None where it is a file.
        subject: id in that shot; None: as the subject that refers to it.
        file: an image or a clip; None where it is a shot.
        keyframes: where the subject is in the file; empty: it fills the frame, unless there is a
            mask.
        mask: a mask video of the file, white where the subject is.

    Raises:
        LayoutError: it is neither or both of a shot and a file, or says what fits the other only.
    """

    shot: str | None = None
    subject: str | None = None
    file: Path | None = None
    keyframes: tuple[Keyframe, ...] = ()
    mask: Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "keyframes", tuple(self.keyframes))
        if (self.shot is None) == (self.file is None):
            said = "neither" if self.shot is None else "both"
            raise LayoutError("", f"names {said} of shot and file; accepted: one of them")
        if self.shot is not None:
            _check_id("shot", self.shot)
            if self.keyframes or self.mask is not None:
                name = "keyframes" if self.keyframes else "mask"
                raise LayoutError(
                    name, "is given with a shot, which has its own; accepted: with a file only"
                )
        elif self.subject is not None:
            raise LayoutError("subject", "is given with a file; accepted: with a shot only")
        if self.subject is not None:
            _check_id("subject", self.subject)
        if self.file is not None:
            if self.keyframes and self.mask is not None:
                raise LayoutError("mask", "is given beside keyframes; accepted: one of them")
            check_keyframes(self.keyframes)

    def box_at(self, u: float) -> Box:
        """Where the subject is in the file at a share of its clip; the frame if nothing is said."""
        return interpolate(self.keyframes, u) if self.keyframes else WHOLE


@dataclass(frozen=True)
class Subject:
    """One subject in one shot.

    Args:
        id: unique in the shot; the same id in another shot is the same subject.
        prompt: of this subject alone.
        keyframes: at least one, times ascending, unless there is a mask.
        mask: a mask video as long as the clip, white where the subject is; None: boxes say it.
        z: of two subjects that overlap, the higher is in front; of equal ones the later.
        reference: what it shall look like; None: nothing is read.

    Raises:
        LayoutError: a field is not as above.
    """

    id: str
    prompt: str
    keyframes: tuple[Keyframe, ...] = ()
    mask: Path | None = None
    z: int = 0
    reference: Reference | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "keyframes", tuple(self.keyframes))
        _check_id("id", self.id)
        check_text("prompt", self.prompt)
        if isinstance(self.z, bool) or not isinstance(self.z, int) or abs(self.z) > REACH_OF_Z:
            raise not_accepted("z", self.z, f"an integer from -{REACH_OF_Z} to {REACH_OF_Z}")
        if bool(self.keyframes) == (self.mask is not None):
            said = "both" if self.keyframes else "neither"
            raise LayoutError("", f"names {said} of keyframes and mask; accepted: one of them")
        check_keyframes(self.keyframes)

    def box_at(self, u: float) -> Box:
        """Its box at a share of the clip: linear between keyframes, held outside them.

        Args:
            u: in [0, 1].

        Raises:
            ValueError: a mask says where it is, and no box.
        """
        if self.mask is not None:
            raise ValueError(f"subject {self.id!r} has a mask; accepted: a subject with boxes")
        return interpolate(self.keyframes, u)


@dataclass(frozen=True)
class Shot:
    """One clip of a layout.

    Args:
        id: unique in the layout.
        prompt: of the whole picture.
        subjects: at least one, ids unique.

    Raises:
        LayoutError: a field is not as above.
    """

    id: str
    prompt: str
    subjects: tuple[Subject, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "subjects", tuple(self.subjects))
        _check_id("id", self.id)
        check_text("prompt", self.prompt)
        check_count("subjects", len(self.subjects), 1, MOST_SUBJECTS)
        check_unique("subjects", [subject.id for subject in self.subjects])

    def subject(self, id: str) -> Subject:
        """The subject with an id.

        Raises:
            KeyError: there is none.
        """
        return {subject.id: subject for subject in self.subjects}[id]

    @property
    def ids(self) -> list[str]:
        """The subjects' ids, in order."""
        return [subject.id for subject in self.subjects]


@dataclass(frozen=True)
class Layout:
    """Shots that belong together.

    Args:
        shots: at least one, ids unique; references between them form no circle.
        negative_prompt: of all shots; None: the pipeline's own.
        version: of the format.

    Raises:
        LayoutError: a field is not as above, or a reference leads nowhere.
    """

    shots: tuple[Shot, ...]
    negative_prompt: str | None = None
    version: int = VERSION

    def __post_init__(self) -> None:
        object.__setattr__(self, "shots", tuple(self.shots))
        check_version(self.version)
        if self.negative_prompt is not None:
            check_text("negative_prompt", self.negative_prompt, least=0)
        check_count("shots", len(self.shots), 1, MOST_SHOTS)
        check_unique("shots", [shot.id for shot in self.shots])
        self._check_references()

    @property
    def prompts(self) -> list[str]:
        """The prompt of every shot, in order."""
        return [shot.prompt for shot in self.shots]

    def shot(self, id: str) -> Shot:
        """The shot with an id.

        Raises:
            KeyError: there is none.
        """
        return {shot.id: shot for shot in self.shots}[id]

    def source(self, subject: Subject) -> tuple[int, int] | None:
        """Which shot and which subject of it one refers to, by index; None: no shot."""
        reference = subject.reference
        if reference is None or reference.shot is None:
            return None
        shot = [shot.id for shot in self.shots].index(reference.shot)
        return shot, self.shots[shot].ids.index(reference.subject or subject.id)

    def _check_references(self) -> None:
        by_id = {shot.id: shot for shot in self.shots}
        for i, shot in enumerate(self.shots):
            for j, subject in enumerate(shot.subjects):
                reference = subject.reference
                if reference is None or reference.shot is None:
                    continue
                field = f"shots[{i}].subjects[{j}].reference"
                if reference.shot not in by_id:
                    raise not_accepted(f"{field}.shot", reference.shot, _listed(by_id))
                wanted, ids = reference.subject or subject.id, by_id[reference.shot].ids
                if wanted not in ids:
                    raise not_accepted(f"{field}.subject", wanted, _listed(ids))
        circle = _circle({shot.id: _sources(shot) for shot in self.shots})
        if circle:
            i = [shot.id for shot in self.shots].index(circle[0])
            j = next(j for j, s in enumerate(self.shots[i].subjects) if _reads(s) == circle[1])
            raise LayoutError(
                f"shots[{i}].subjects[{j}].reference.shot",
                f"closes a circle: {' -> '.join(circle)}; accepted: shots that do not read, by "
                "whatever way, from the shot that reads them",
            )


def interpolate(keyframes: Sequence[Keyframe], u: float) -> Box:
    """The box at a share of the clip: linear between keyframes, held before and after them."""
    first, last = keyframes[0], keyframes[-1]
    if u <= first.at:
        return first.box
    if u >= last.at:
        return last.box
    after = next(i for i, keyframe in enumerate(keyframes) if keyframe.at >= u)
    left, right = keyframes[after - 1], keyframes[after]
    share = (u - left.at) / (right.at - left.at)
    edges = [a + (b - a) * share for a, b in zip(left.box, right.box, strict=True)]
    return edges[0], edges[1], edges[2], edges[3]


def check_version(version: object) -> None:
    """Raises LayoutError for a version of the format that is not known."""
    if type(version) is not int or version != VERSION:
        raise not_accepted("version", version, str(VERSION))


def check_keyframes(keyframes: Sequence[Keyframe]) -> None:
    """Raises LayoutError for too many of them, or times that do not ascend."""
    check_count("keyframes", len(keyframes), 0, MOST_KEYFRAMES)
    for i in range(1, len(keyframes)):
        if not keyframes[i].at > keyframes[i - 1].at:
            accepted = f"above {keyframes[i - 1].at:g}, the keyframe before it"
            raise not_accepted(f"keyframes[{i}].at", keyframes[i].at, accepted)


def check_text(field: str, value: object, least: int = 1) -> None:
    """Raises LayoutError for what is no text, is blank, too long, or has control characters."""
    if not isinstance(value, str):
        raise not_accepted(field, value, "text")
    if len(value) > LONGEST_TEXT:
        raise LayoutError(field, f"has {len(value)} characters; accepted: up to {LONGEST_TEXT}")
    if len(value.strip()) < least:
        raise not_accepted(field, value, "text that is not blank")
    if _CONTROL.search(value):
        raise not_accepted(field, value, "text without control characters and lone surrogates")


def check_count(field: str, count: int, least: int, most: int) -> None:
    """Raises LayoutError where there are too few or too many."""
    if not least <= count <= most:
        raise LayoutError(field, f"has {count} entries; accepted: {least} to {most}")


def check_unique(field: str, ids: Sequence[str]) -> None:
    """Raises LayoutError for an id that was there before."""
    for i, id in enumerate(ids):
        if id in ids[:i]:
            raise LayoutError(
                f"{field}[{i}].id",
                f"is {id!r}, as {field}[{ids.index(id)}].id; accepted: an id of its own",
            )


def not_accepted(field: str, value: object, accepted: str) -> LayoutError:
    """`FIELD is VALUE; accepted: ...`, long values shortened."""
    return LayoutError(field, f"is {shown(value)}; accepted: {accepted}")


def shown(value: object) -> str:
    """A value in a message: short, printable, and never expensive to write out."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return "a whole number of many digits"
    if isinstance(value, str):
        return ascii(value[:60]) if _CONTROL.search(value) else repr(value[:60])
    if isinstance(value, (list, tuple)):
        parts = [shown(part) for part in value[:4]] + (["..."] if len(value) > 4 else [])
        text = f"[{', '.join(parts)}]"
    elif isinstance(value, dict):
        text = f"a mapping of {len(value)} keys"
    elif value is None:
        text = "null"
    else:
        text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _is_share(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return 0 <= value <= 1  # so neither NaN nor infinite


def _check_id(field: str, value: object) -> None:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise not_accepted(field, value, _ID_WORDS)


def _reads(subject: Subject) -> str | None:
    return subject.reference.shot if subject.reference is not None else None


def _sources(shot: Shot) -> list[str]:
    return [source for source in map(_reads, shot.subjects) if source is not None]


def _circle(reads: dict[str, list[str]]) -> list[str]:
    """Shots of which each reads the next and the last is the first; empty where there are none."""
    done: set[str] = set()

    def search(id: str, way: list[str]) -> list[str]:
        if id in way:
            return [*way[way.index(id) :], id]
        if id not in done:
            for source in reads[id]:
                if found := search(source, [*way, id]):
                    return found
            done.add(id)
        return []

    return next((found for id in reads if (found := search(id, []))), [])


def _listed(ids: Iterable[str]) -> str:
    return ", ".join(ids)
