"""The data of a layout: shots, their subjects, boxes over time, and references.

Fields come in, from a file or from Python; validated frozen dataclasses go out. Boxes are fractions
of the frame, x to the right and y down: (x0, y0, x1, y1). Times are fractions of the clip, so a
layout fits every size and length. An error names the field as in a file:
`shots[1].subjects[0].keyframes[2].box`. It reads no file.
Source: ours; IR-Diffusion (arXiv 2411.19261) takes masks from a detector instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dit_accel.layout import errors
from dit_accel.layout.errors import VERSION, LayoutError, not_accepted

Box = tuple[float, float, float, float]

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
MOST_SHOTS, MOST_SUBJECTS, MOST_KEYFRAMES = 32, 16, 1024
MAX_Z = 1_000_000
_BOX_ACCEPTED = "[x0, y0, x1, y1] with 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1"


@dataclass(frozen=True)
class Keyframe:
    """Where a subject is at one moment.

    Args:
        at: time, in [0, 1].
        box: (x0, y0, x1, y1), in [0, 1].

    Raises:
        LayoutError: a number is out of range or not finite, or the box is empty.
    """

    at: float
    box: Box

    def __post_init__(self) -> None:
        if not errors.is_share(self.at):
            raise not_accepted("at", self.at, "a number from 0 to 1")
        box = self.box
        if not isinstance(box, Sequence) or len(box) != 4 or not all(map(errors.is_share, box)):
            raise not_accepted("box", box, _BOX_ACCEPTED)
        if not (box[0] < box[2] and box[1] < box[3]):
            raise not_accepted("box", box, f"{_BOX_ACCEPTED}; this one is empty")
        object.__setattr__(self, "at", float(self.at))
        object.__setattr__(self, "box", tuple(float(edge) for edge in box))


@dataclass(frozen=True)
class Reference:
    """What a subject should look like: a subject of another shot, or an image or clip.

    Args:
        shot: id of the other shot; None for a file.
        subject: id in that shot; None: the id of the subject that refers to it.
        file: an image or a clip; None for a shot.
        keyframes: where the subject is in the file; if empty and without a mask, the subject fills
            the frame.
        mask: a mask video for the file, white where the subject is.

    Raises:
        LayoutError: shot and file are both given or both missing, or a field belongs to the other
            one.
    """

    shot: str | None = None
    subject: str | None = None
    file: Path | None = None
    keyframes: tuple[Keyframe, ...] = ()
    mask: Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "keyframes", tuple(self.keyframes))
        if (self.shot is None) == (self.file is None):
            count = "neither" if self.shot is None else "both"
            raise LayoutError("", f"names {count} of shot and file; accepted: one of them")
        if self.shot is not None:
            errors.check_id("shot", self.shot)
            if self.keyframes or self.mask is not None:
                name = "keyframes" if self.keyframes else "mask"
                raise LayoutError(
                    name, "is given with a shot, which has its own; accepted: with a file only"
                )
        elif self.subject is not None:
            raise LayoutError("subject", "is given with a file; accepted: with a shot only")
        if self.subject is not None:
            errors.check_id("subject", self.subject)
        if self.file is not None:
            if self.keyframes and self.mask is not None:
                raise LayoutError("mask", "is given beside keyframes; accepted: one of them")
            check_keyframes(self.keyframes)

    def box_at(self, u: float) -> Box:
        """The subject's box in the file at a time in [0, 1]; without keyframes, the whole frame."""
        return interpolate(self.keyframes, u) if self.keyframes else WHOLE


@dataclass(frozen=True)
class Subject:
    """One subject in one shot.

    Args:
        id: unique in the shot; the same id in another shot is the same subject.
        prompt: the prompt of this subject alone.
        keyframes: at least one, times ascending, unless there is a mask.
        mask: a mask video as long as the clip, white where the subject is; None: use keyframes.
        z: of overlapping subjects, the one with the highest z is in front; of equal ones, the later
            one.
        reference: what it should look like; None: no reference.

    Raises:
        LayoutError: a field is not accepted.
    """

    id: str
    prompt: str
    keyframes: tuple[Keyframe, ...] = ()
    mask: Path | None = None
    z: int = 0
    reference: Reference | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "keyframes", tuple(self.keyframes))
        errors.check_id("id", self.id)
        errors.check_text("prompt", self.prompt)
        if isinstance(self.z, bool) or not isinstance(self.z, int) or abs(self.z) > MAX_Z:
            raise not_accepted("z", self.z, f"an integer from -{MAX_Z} to {MAX_Z}")
        if bool(self.keyframes) == (self.mask is not None):
            count = "both" if self.keyframes else "neither"
            raise LayoutError("", f"names {count} of keyframes and mask; accepted: one of them")
        check_keyframes(self.keyframes)

    def box_at(self, u: float) -> Box:
        """The subject's box at a time in [0, 1].

        Raises:
            ValueError: the subject has a mask instead of boxes.
        """
        if self.mask is not None:
            raise ValueError(f"subject {self.id!r} has a mask; accepted: a subject with boxes")
        return interpolate(self.keyframes, u)


@dataclass(frozen=True)
class Shot:
    """One clip of a layout.

    Args:
        id: unique in the layout.
        prompt: the prompt of the whole clip.
        subjects: at least one, ids unique.

    Raises:
        LayoutError: a field is not accepted.
    """

    id: str
    prompt: str
    subjects: tuple[Subject, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "subjects", tuple(self.subjects))
        errors.check_id("id", self.id)
        errors.check_text("prompt", self.prompt)
        errors.check_count("subjects", len(self.subjects), 1, MOST_SUBJECTS)
        errors.check_unique("subjects", [subject.id for subject in self.subjects])

    def subject(self, id: str) -> Subject:
        """The subject with an id, else KeyError."""
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
        negative_prompt: the negative prompt of all shots; None: the pipeline's own.
        version: the version of the format.

    Raises:
        LayoutError: a field is not accepted, or the target of a reference does not exist.

    Example:
        >>> cat = Subject("cat", "a grey cat", (Keyframe(0, (0, 0, 0.5, 1)),))
        >>> Layout((Shot("one", "a room", (cat,)),)).prompts
        ['a room']
    """

    shots: tuple[Shot, ...]
    negative_prompt: str | None = None
    version: int = VERSION

    def __post_init__(self) -> None:
        object.__setattr__(self, "shots", tuple(self.shots))
        errors.check_version(self.version)
        if self.negative_prompt is not None:
            errors.check_text("negative_prompt", self.negative_prompt, least=0)
        errors.check_count("shots", len(self.shots), 1, MOST_SHOTS)
        errors.check_unique("shots", [shot.id for shot in self.shots])
        self._check_references()

    @property
    def prompts(self) -> list[str]:
        """The prompt of every shot, in order."""
        return [shot.prompt for shot in self.shots]

    def shot(self, id: str) -> Shot:
        """The shot with an id, else KeyError."""
        return {shot.id: shot for shot in self.shots}[id]

    def source(self, subject: Subject) -> tuple[int, int] | None:
        """Indices of the shot and subject that a subject refers to; None: it refers to no shot."""
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
                    raise not_accepted(f"{field}.shot", reference.shot, ", ".join(by_id))
                wanted, ids = reference.subject or subject.id, by_id[reference.shot].ids
                if wanted not in ids:
                    raise not_accepted(f"{field}.subject", wanted, ", ".join(ids))
        reads = {shot.id: [r for s in shot.subjects if (r := _reads(s))] for shot in self.shots}
        circle = _circle(reads)
        if circle:
            i = [shot.id for shot in self.shots].index(circle[0])
            j = next(j for j, s in enumerate(self.shots[i].subjects) if _reads(s) == circle[1])
            raise LayoutError(
                f"shots[{i}].subjects[{j}].reference.shot",
                f"closes a circle: {' -> '.join(circle)}; accepted: shots that do not refer, "
                "directly or through others, to the shot that refers to them",
            )


def interpolate(keyframes: Sequence[Keyframe], u: float) -> Box:
    """The box at a time in [0, 1]: linear between keyframes, constant before and after them."""
    first, last = keyframes[0], keyframes[-1]
    if u <= first.at:
        return first.box
    if u >= last.at:
        return last.box
    after = next(i for i, keyframe in enumerate(keyframes) if keyframe.at >= u)
    left, right = keyframes[after - 1], keyframes[after]
    fraction = (u - left.at) / (right.at - left.at)
    edges = [a + (b - a) * fraction for a, b in zip(left.box, right.box, strict=True)]
    return edges[0], edges[1], edges[2], edges[3]


def check_keyframes(keyframes: Sequence[Keyframe]) -> None:
    """Refuse too many keyframes, or times that do not ascend."""
    errors.check_count("keyframes", len(keyframes), 0, MOST_KEYFRAMES)
    for i in range(1, len(keyframes)):
        if not keyframes[i].at > keyframes[i - 1].at:
            accepted = f"above {keyframes[i - 1].at:g}, the keyframe before it"
            raise not_accepted(f"keyframes[{i}].at", keyframes[i].at, accepted)


def _reads(subject: Subject) -> str | None:
    return subject.reference.shot if subject.reference is not None else None


def _circle(reads: dict[str, list[str]]) -> list[str]:
    """Ids of shots in which each refers to the next, and the last is the first; empty: there is no
    circle."""
    done: set[str] = set()

    def search(id: str, path: list[str]) -> list[str]:
        if id in path:
            return [*path[path.index(id) :], id]
        if id not in done:
            for source in reads[id]:
                if found := search(source, [*path, id]):
                    return found
            done.add(id)
        return []

    return next((found for id in reads if (found := search(id, []))), [])
