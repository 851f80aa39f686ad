"""Shows the content of a layout, as text and as JSON.

In: a layout. Out: lines on a console, or a dict.
Knows no file and no model. Ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from dit_accel.cli.common.text import counted

if TYPE_CHECKING:
    from rich.console import Console

    from dit_accel.layout import Layout, Reference, Subject


def show_layout(console: Console, found: Layout) -> None:
    """Print every shot, with its subjects, their places and their references."""
    subjects = len({subject.id for shot in found.shots for subject in shot.subjects})
    shots = counted(len(found.shots), "shot")
    count = f": {shots}, {counted(subjects, 'subject')}"
    console.print(Text.assemble(("valid", "green"), count))
    for shot in found.shots:
        title = ("\n", (shot.id, "bold"), "  ", (_in_a_line(shot.prompt), "dim"))
        console.print(Text.assemble(*title), soft_wrap=True)
        for subject in shot.subjects:
            console.print(_in_words(subject), soft_wrap=True)


def as_content(found: Layout, masks: dict[str, int]) -> dict[str, Any]:
    """The content as JSON. `masks`: the number of frames of the masks, by shot."""
    shots = [
        {
            "id": shot.id,
            "prompt": shot.prompt,
            "mask_frames": masks.get(shot.id),
            "subjects": [_subject(subject) for subject in shot.subjects],
        }
        for shot in found.shots
    ]
    return {
        "valid": True,
        "version": found.version,
        "negative_prompt": found.negative_prompt,
        "shots": shots,
    }


def _subject(subject: Subject) -> dict[str, Any]:
    return {
        "id": subject.id,
        "prompt": subject.prompt,
        "keyframes": len(subject.keyframes),
        "mask": str(subject.mask) if subject.mask is not None else None,
        "z": subject.z,
        "reference": _reference(subject.reference, subject.id),
    }


def _reference(reference: Reference | None, own: str) -> dict[str, Any] | None:
    if reference is None:
        return None
    if reference.shot is not None:
        return {"shot": reference.shot, "subject": reference.subject or own}
    return {"file": str(reference.file)}


def _in_words(subject: Subject) -> Text:
    parts = [f"mask {subject.mask.name}" if subject.mask else _boxes(subject)]
    if subject.z:
        parts.append(f"z {subject.z}")
    reference = subject.reference
    if reference is not None and reference.shot is not None:
        other = reference.subject or subject.id
        parts.append(f"reads {other} of {reference.shot}")
    elif reference is not None and reference.file is not None:
        parts.append(f"reads {reference.file.name}")
    place, prompt = _in_a_line(", ".join(parts)), (_in_a_line(subject.prompt), "dim")
    return Text.assemble("  ", (subject.id, "cyan"), f": {place}  ", prompt)


def _boxes(subject: Subject) -> str:
    first, last = subject.keyframes[0].box, subject.keyframes[-1].box
    start = " ".join(f"{edge:g}" for edge in first)
    if len(subject.keyframes) == 1:
        return f"box {start}"
    end = " ".join(f"{edge:g}" for edge in last)
    return f"box {start} to {end} by {len(subject.keyframes)} keyframes"


def _in_a_line(text: str) -> str:
    return " ".join(text.split())
