"""Seeded scenes of the miniature's world as layouts, which `table_scenes.py` generates and judges.

Suites:

- `two`, `three`: as many subjects side by side, colours and shapes all different.
- `similar`: two subjects of neighbouring colours.
- `unplaced`: two subjects, and the caption does not say where; boxes do.
- `boxed`: two subjects, each in one quarter of the frame; the caption says left and right alone.
- `crossed`: as `two`, but boxes have the subjects on the other side than the caption: who wins?
- `shots`: one subject in two shots, at another place and size, moving otherwise.
- `unsaid`: the same, but the caption of the second shot leaves the colour out: it can only come
  from the first.

Stars and crosses are left out; small subjects too if there are several; and for `three` all but the
big ones. The miniature's VAE rounds them off, whatever the denoiser does (`scene_shapes.py`).

Boxes are those that a user would draw. `cells`: the part of the frame that the caption names, or
for a single subject the whole area that it passes. `paths`: the true path. Both have a margin.
"""

from __future__ import annotations

import dataclasses
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "miniature"))

from scene_checks import Expected, Region, cell, expected_of
from world import COLORS, MOTIONS, SIZES, Scene, Subject, sample_scene

from dit_accel.layout import Keyframe, Layout, Reference, Shot
from dit_accel.layout import Subject as Placed

SUITES = ("two", "three", "similar", "unplaced", "boxed", "crossed", "shots", "unsaid")
PLAIN = ("circle", "square", "triangle", "diamond", "ring")
LARGE = {"three": ("big",)}  # else normal and big
STAYING = ("still", "grow", "shrink")
NEIGHBOURS = (
    ("red", "orange"),
    ("orange", "yellow"),
    ("cyan", "blue"),
    ("blue", "purple"),
    ("purple", "pink"),
    ("pink", "red"),
    ("yellow", "green"),
    ("green", "cyan"),
)
SCENE_STREAM = 5  # in addition to those of the world
MARGIN = 0.03  # margin of a box that follows a path
_OPPOSITE = {"on the left": "on the right", "on the right": "on the left"}


@dataclass(frozen=True)
class Case:
    """A layout, the expected content of each of its shots, and the true scenes behind it."""

    suite: str
    index: int
    layout: Layout
    expected: tuple[tuple[Expected, ...], ...]
    scenes: tuple[Scene, ...]


def case_at(suite: str, index: int, boxes: str = "cells") -> Case:
    """The `index`-th case of a suite.

    Args:
        boxes: "cells" or "paths".
    """
    if suite not in SUITES:
        raise ValueError(f"suite is {suite!r}; accepted: {', '.join(SUITES)}")
    rng = random.Random(f"{SCENE_STREAM}/{suite if suite != 'unsaid' else 'shots'}/{index}")
    if suite in ("shots", "unsaid"):
        return _two_shots(rng, suite, index, boxes)
    return _one_shot(rng, suite, index, boxes)


def _one_shot(rng: random.Random, suite: str, index: int, boxes: str) -> Case:
    count = 3 if suite == "three" else 2
    colors = rng.choice(NEIGHBOURS) if suite == "similar" else rng.sample(sorted(COLORS), count)
    shapes = rng.sample(PLAIN, count)
    scene = _scene(rng, count, LARGE.get(suite, ("", "big")))
    subjects = [
        dataclasses.replace(subject, color=color, shape=shape)
        for subject, color, shape in zip(scene.subjects, colors, shapes, strict=True)
    ]
    if suite == "boxed":
        subjects = [_quartered(rng, subject) for subject in subjects]
    scene = dataclasses.replace(scene, subjects=tuple(subjects))
    said, drawn = scene, scene
    if suite == "unplaced":
        said = _without_places(scene)
    if suite == "crossed":
        drawn = dataclasses.replace(scene, subjects=tuple(map(_mirrored, subjects)))
    shot = _shot("scene", drawn, said.caption(), [None] * count, boxes, quarters=suite == "boxed")
    expected = expected_of(drawn)
    if suite == "boxed":
        regions = [_quarter(subject) for subject in drawn.subjects]
        expected = [
            dataclasses.replace(one, region=region)
            for one, region in zip(expected, regions, strict=True)
        ]
    return Case(suite, index, Layout((shot,), ""), (tuple(expected),), (drawn,))


def _quartered(rng: random.Random, subject: Subject) -> Subject:
    """The subject in the middle of the upper or lower quarter of its side, where it stays."""
    x = 0.25 if subject.place == "on the left" else 0.75
    motion = rng.choice(STAYING)
    return dataclasses.replace(subject, motion=motion, center=(x, rng.choice((0.25, 0.75))))


def _quarter(subject: Subject) -> Region:
    x, y = (0.5 * (at > 0.5) for at in subject.center)
    return x, y, x + 0.5, y + 0.5


def _mirrored(subject: Subject) -> Subject:
    """The subject on the other side. A motion to the left or right does not change."""
    center = 1 - subject.center[0], subject.center[1]
    return dataclasses.replace(subject, place=_OPPOSITE[subject.place], center=center)


def _without_places(scene: Scene) -> Scene:
    subjects = [dataclasses.replace(subject, place="") for subject in scene.subjects]
    return dataclasses.replace(scene, subjects=tuple(subjects))


def _two_shots(rng: random.Random, suite: str, index: int, boxes: str) -> Case:
    """A subject on one side, then on the other, with another size, background and motion."""
    place = rng.choice(sorted(_OPPOSITE))
    sizes = rng.sample(sorted(SIZES), 2)
    motions = rng.sample(sorted(set(MOTIONS) - {"circle"}), 2)
    color, shape = rng.choice(sorted(COLORS)), rng.choice(PLAIN)
    scenes = []
    for size, motion, side in zip(sizes, motions, (place, _OPPOSITE[place]), strict=True):
        subject = _single(rng, color, shape, size, motion, side)
        scenes.append(dataclasses.replace(_scene(rng, 1), subjects=(subject,)))
    first, second = scenes
    caption = second.caption()
    said = caption.replace(f"{color} ", "") if suite == "unsaid" else caption
    said = said.replace("an ", "a ", 1) if said.startswith("an ") else said
    shots = (
        _shot("first", first, first.caption(), [None], boxes),
        _shot("second", second, said, [Reference(shot="first")], boxes, said=said),
    )
    expected = tuple(tuple(expected_of(scene)) for scene in scenes)
    return Case(suite, index, Layout(shots, ""), expected, (first, second))


def _scene(rng: random.Random, count: int, sizes: Sequence[str] = tuple(SIZES)) -> Scene:
    """A scene with this number of subjects of these sizes. The caption has the background, and the
    camera does not move."""
    while True:
        scene = sample_scene(rng, max_subjects=count)
        if len(scene.subjects) == count and {s.size for s in scene.subjects} <= set(sizes):
            return dataclasses.replace(scene, pan="", says_background=True)


def _single(
    rng: random.Random, color: str, shape: str, size: str, motion: str, place: str
) -> Subject:
    """A single subject on one side, sized as the world's single subjects are."""
    while True:
        (subject,) = _scene(rng, 1).subjects
        if (subject.size, subject.motion, subject.place) == (size, motion, place):
            return dataclasses.replace(subject, color=color, shape=shape)


def _shot(
    id: str,
    scene: Scene,
    caption: str,
    references: list[Reference | None],
    boxes: str,
    said: str | None = None,
    quarters: bool = False,
) -> Shot:
    placed = []
    for number, (subject, reference) in enumerate(zip(scene.subjects, references, strict=True)):
        own = said or dataclasses.replace(scene, subjects=(subject,)).caption()
        keyframes = _path(subject) if boxes == "paths" else (_still(subject, len(references)),)
        if quarters and boxes == "cells":
            keyframes = (Keyframe(0, _quarter(subject)),)
        id_ = "hero" if len(scene.subjects) == 1 else f"subject-{number + 1}"
        placed.append(Placed(id_, own, keyframes, reference=reference))
    return Shot(id, caption, tuple(placed))


def _still(subject: Subject, count: int) -> Keyframe:
    """One box for the whole clip."""
    if count > 1:
        return Keyframe(0, cell(subject.place, count))
    boxes = zip(*(keyframe.box for keyframe in _path(subject)), strict=True)
    x0, y0, x1, y1 = boxes
    return Keyframe(0, (min(x0), min(y0), max(x1), max(y1)))


def _path(subject: Subject, count: int = 17) -> tuple[Keyframe, ...]:
    keyframes = []
    for i, (x, y, r) in enumerate(subject.path(count)):
        reach = 1.15 * r + MARGIN
        box = [min(max(e, 0.0), 1.0) for e in (x - reach, y - reach, x + reach, y + reach)]
        keyframes.append(Keyframe(i / (count - 1), (box[0], box[1], box[2], box[3])))
    return tuple(keyframes)
