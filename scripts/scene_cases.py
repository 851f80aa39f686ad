"""Seeded scenes of the miniature's world as layouts: what `table_scenes.py` generates and judges.

Suites:

- `two`, `three`: as many subjects side by side, colours and shapes all different.
- `similar`: two subjects of neighbouring colours.
- `shots`: one subject in two shots, at another place and size, moving otherwise.
- `unsaid`: the same, but the caption of the second shot leaves the colour out: it can only come
  from the first.

Stars and crosses are left out, small subjects too where there are several, and of `three` all but
the big ones: the miniature's VAE rounds them off, whatever the denoiser does (`scene_shapes.py`).

Boxes are what a user would draw. `cells`: the part of the frame that the caption names, or for a
single subject all that it passes through; `paths`: the true path. Both with a margin.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass

from miniature_world import COLORS, MOTIONS, SIZES, Scene, Subject, sample_scene
from scene_checks import Expected, cell, expected_of

from dit_accel.layout import Keyframe, Layout, Reference, Shot
from dit_accel.layout import Subject as Placed

SUITES = ("two", "three", "similar", "shots", "unsaid")
PLAIN = ("circle", "square", "triangle", "diamond", "ring")
LARGE = {"two": ("", "big"), "similar": ("", "big"), "three": ("big",)}
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
SCENE_STREAM = 5  # beside those of the world
MARGIN = 0.03  # of a box that follows a path
_OPPOSITE = {"on the left": "on the right", "on the right": "on the left"}


@dataclass(frozen=True)
class Case:
    """A layout, what each of its shots should show, and the true scenes that it was drawn from."""

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
    scene = _scene(rng, count, LARGE[suite])
    scene = dataclasses.replace(
        scene,
        subjects=tuple(
            dataclasses.replace(subject, color=color, shape=shape)
            for subject, color, shape in zip(scene.subjects, colors, shapes, strict=True)
        ),
    )
    shot = _shot("scene", scene, scene.caption(), [None] * count, boxes)
    return Case(suite, index, Layout((shot,), ""), (tuple(expected_of(scene)),), (scene,))


def _two_shots(rng: random.Random, suite: str, index: int, boxes: str) -> Case:
    """A subject on one side, then on the other, of another size, background and motion."""
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
    """A scene of so many subjects of these sizes; backgrounds are said, the camera rests."""
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
) -> Shot:
    placed = []
    for number, (subject, reference) in enumerate(zip(scene.subjects, references, strict=True)):
        own = said or dataclasses.replace(scene, subjects=(subject,)).caption()
        keyframes = _path(subject) if boxes == "paths" else (_still(subject, len(references)),)
        id_ = "hero" if len(scene.subjects) == 1 else f"subject-{number + 1}"
        placed.append(Placed(id_, own, keyframes, reference=reference))
    return Shot(id, caption, tuple(placed))


def _still(subject: Subject, count: int) -> Keyframe:
    """One box for all the clip."""
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
