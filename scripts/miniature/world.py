"""The procedural world that the embedded miniature is trained on: captions, boxes and pixels.

A `Scene` is one to three coloured shapes, each with a motion, over a background that a camera may
pan across. `sample_scene` draws one from a `random.Random`. `Scene.caption` describes it in words.
`Scene.boxes` has every subject's box in every frame. `render` turns a batch of scenes into pixels
with signed distances (anti-aliased, vectorised, the same on every device).

Coordinates are in units of the frame's short side, x to the right, y down. Motions are those on the
screen: a camera pan moves only the background (the camera follows the subjects).

Shapes: B scenes, S = 3 subject slots, T frames, H and W pixels.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "orange": (240, 140, 30),
    "yellow": (240, 220, 50),
    "green": (50, 180, 70),
    "cyan": (60, 210, 220),
    "blue": (50, 90, 220),
    "purple": (150, 60, 200),
    "pink": (245, 130, 190),
}
SHAPES = ("circle", "square", "triangle", "diamond", "star", "ring", "cross")
MOTIONS = {
    "right": "moving right",
    "left": "moving left",
    "up": "moving up",
    "down": "moving down",
    "grow": "growing",
    "shrink": "shrinking",
    "circle": "circling",
    "bounce": "bouncing",
    "still": "standing still",
}
BACKGROUNDS = (
    "plain gray",
    "plain black",
    "plain white",
    "striped",
    "checkered",
    "gradient",
    "dotted",
)
PANS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
PLACES = {
    1: ("on the left", "in the middle", "on the right"),
    2: ("on the left", "on the right"),
    3: ("on the left", "in the middle", "on the right"),
}
SIZES = {"small": 0.105, "": 0.15, "big": 0.2}
SLOTS = 3
MIX = (60, 28, 12)  # weights of scenes with one, two and three subjects
DEFAULT = (17, 64, 64)  # frames, height, width of the miniature's clips
TRAIN_STREAM, SHEET_STREAM, CHECK_STREAM, PROMPT_STREAM = 1, 2, 3, 4  # each its own scenes


@dataclass(frozen=True)
class Subject:
    """One coloured shape: `center` and `radius` in short sides, `travel` the motion's reach."""

    color: str
    shape: str
    motion: str
    size: str
    place: str
    center: tuple[float, float]
    radius: float
    travel: float
    phase: float

    def caption(self) -> str:
        named = " ".join(word for word in (self.size, self.color, self.shape) if word)
        article = "an" if named[0] in "aeiou" else "a"
        words = (article, named, MOTIONS[self.motion], self.place)
        return " ".join(word for word in words if word)

    def path(self, frames: int) -> list[tuple[float, float, float]]:
        """Centre x, centre y and radius, in each of `frames` frames."""
        return [self.at(i / max(frames - 1, 1)) for i in range(frames)]

    def at(self, u: float) -> tuple[float, float, float]:
        """Centre x, centre y and radius at the share `u` of the clip's time."""
        x, y, r, d = *self.center, self.radius, self.travel
        swing = (2 * u - 1) * d
        if self.motion in PANS:
            dx, dy = PANS[self.motion]
            return x + dx * swing, y + dy * swing, r
        if self.motion in ("grow", "shrink"):
            sign = 1 if self.motion == "grow" else -1
            return x, y, r * (1 + sign * 0.42 * (2 * u - 1))
        if self.motion == "circle":
            angle = 2 * math.pi * (u + self.phase)
            return x + d * math.cos(angle), y + d * math.sin(angle), r
        if self.motion == "bounce":
            return x, y + d * (1 - 2 * abs(math.sin(math.pi * (2 * u + self.phase)))), r
        return x, y, r


@dataclass(frozen=True)
class Scene:
    """Subjects (later ones in front), background and camera, with the caption's choices."""

    subjects: tuple[Subject, ...]
    background: str
    pan: str
    tones: tuple[float, float]
    texture: tuple[float, float, float]
    says_background: bool = True

    def caption(self) -> str:
        names = [subject.caption() for subject in self.subjects]
        text = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
        if self.says_background:
            text += f" on a {self.background} background"
        return text + (f", the camera pans {self.pan}" if self.pan else "")

    def boxes(self, frames: int, aspect: float = 1.0) -> list[list[tuple[float, ...]]]:
        """Normalised (x0, y0, x1, y1) of each subject in each frame; `aspect` is width / height."""
        wide, high = max(aspect, 1.0), max(1 / aspect, 1.0)

        def box(x: float, y: float, r: float) -> tuple[float, ...]:
            corners = ((x - r) / wide, (y - r) / high, (x + r) / wide, (y + r) / high)
            return tuple(min(max(value, 0.0), 1.0) for value in corners)

        return [[box(*at) for at in subject.path(frames)] for subject in self.subjects]


def sample_scene(
    rng: random.Random,
    aspect: float = 1.0,
    max_subjects: int = 3,
    mix: tuple[int, int, int] = MIX,
) -> Scene:
    """Draw one scene for frames of the given width / height. `mix`: weights of 1, 2, 3 subjects."""
    count = min(rng.choices((1, 2, 3), weights=mix)[0], max_subjects)
    colors = rng.sample(sorted(COLORS), count)
    if count > 1 and rng.random() < 0.1:
        colors = colors[:1] * count
    wide, high = max(aspect, 1.0), max(1 / aspect, 1.0)
    subjects = tuple(_sample_subject(rng, colors[i], i, count, wide, high) for i in range(count))
    background = rng.choice(BACKGROUNDS)
    textured = not background.startswith("plain")
    return Scene(
        subjects=subjects,
        background=background,
        pan=rng.choice(sorted(PANS)) if textured and rng.random() < 0.4 else "",
        tones=_tones(rng, background),
        texture=(rng.random(), rng.random(), rng.choice((0.0, 0.5, 1.0))),
        says_background=rng.random() < 0.93,
    )


def _sample_subject(
    rng: random.Random, color: str, index: int, count: int, wide: float, high: float
) -> Subject:
    size = rng.choices(("", "small", "big"), weights=(2, 1, 1))[0]
    radius = SIZES[size] * (1.0, 0.78, 0.62)[count - 1] * rng.uniform(0.93, 1.07)
    motion = rng.choice(sorted(MOTIONS))
    cell = wide / count
    place = PLACES[count][index] if count > 1 else rng.choices(("", *PLACES[1]), (5, 1, 1, 1))[0]
    if count == 1 and place:
        cell, index = wide / 3, PLACES[1].index(place)
    reach_x = (cell / 2 if count > 1 else wide / 2) - radius - 0.01
    reach_y = high / 2 - radius - 0.02
    reach = {"left": reach_x, "right": reach_x, "up": reach_y, "down": reach_y}
    span = reach.get(motion, min(reach_x, reach_y))
    travel = min(rng.uniform(0.17, 0.26), max(span, 0.05))
    extent = radius * 1.42 if motion in ("grow", "shrink") else radius
    free_x = cell / 2 - extent - (travel if motion in ("left", "right", "circle") else 0) - 0.01
    free_y = high / 2 - extent - (travel if motion in ("up", "down", "circle", "bounce") else 0)
    x = (index + 0.5) * cell if count > 1 or place else wide / 2
    x += rng.uniform(-1, 1) * max(free_x, 0.0)
    x = min(max(x, extent + 0.01), wide - extent - 0.01)
    if motion in ("left", "right", "circle"):
        x = min(max(x, radius + travel + 0.01), wide - radius - travel - 0.01)
    y = high / 2 + rng.uniform(-1, 1) * max(free_y - 0.02, 0.0)
    return Subject(
        color, rng.choice(SHAPES), motion, size, place, (x, y), radius, travel, rng.random()
    )


def _tones(rng: random.Random, background: str) -> tuple[float, float]:
    """The two grey levels of the background, in [0, 1]."""
    plain = {"plain gray": 0.5, "plain black": 0.08, "plain white": 0.93}
    if background in plain:
        return plain[background], plain[background]
    dark, light = rng.uniform(0.12, 0.3), rng.uniform(0.45, 0.65)
    return (dark, light) if rng.random() < 0.5 else (light, dark)


def scene_at(
    seed: int,
    index: int,
    aspect: float = 1.0,
    max_subjects: int = 3,
    mix: tuple[int, int, int] = MIX,
) -> Scene:
    """The `index`-th scene of the stream `seed`; streams with different seeds do not overlap."""
    return sample_scene(random.Random(f"{seed}/{index}"), aspect, max_subjects, mix)


def render(
    scenes: Sequence[Scene],
    frames: int,
    height: int,
    width: int,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Pixels in [-1, 1], shape (B, 3, T, H, W), float32."""
    unit = min(height, width)
    grid_y = (torch.arange(height, device=device) + 0.5) / unit
    grid_x = (torch.arange(width, device=device) + 0.5) / unit
    return paint(_backgrounds(scenes, frames, grid_x, grid_y, unit), scenes)


def paint(canvas: torch.Tensor, scenes: Sequence[Scene]) -> torch.Tensor:
    """Paint subjects in front of backgrounds (B, 3, T, H, W) in [0, 1]. Returns pixels in [-1,
    1]."""
    frames, height, width = canvas.shape[2:]
    unit, device = min(height, width), canvas.device
    grid_y = (torch.arange(height, device=device) + 0.5) / unit
    grid_x = (torch.arange(width, device=device) + 0.5) / unit
    for slot in range(SLOTS):
        present = [i for i, scene in enumerate(scenes) if len(scene.subjects) > slot]
        if present:
            subjects = [scenes[i].subjects[slot] for i in present]
            rows = torch.tensor(present, device=device)
            cover = _coverage(subjects, frames, grid_x, grid_y, unit)[:, None]
            rgb = torch.tensor([COLORS[s.color] for s in subjects], device=device) / 255.0
            rgb = rgb[:, :, None, None, None]
            canvas[rows] = canvas[rows] * (1 - cover) + rgb * cover
    return canvas * 2 - 1


def _coverage(
    subjects: Sequence[Subject], frames: int, grid_x: torch.Tensor, grid_y: torch.Tensor, unit: int
) -> torch.Tensor:
    """Share of each pixel that a subject covers, (B, T, H, W) in [0, 1]."""
    device = grid_x.device
    path = torch.tensor([s.path(frames) for s in subjects], device=device)
    x = grid_x[None, None, None, :] - path[:, :, 0, None, None]
    y = grid_y[None, None, :, None] - path[:, :, 1, None, None]
    radius = path[:, :, 2, None, None]
    distance = torch.empty(len(subjects), frames, len(grid_y), len(grid_x), device=device)
    kinds = torch.tensor([SHAPES.index(s.shape) for s in subjects], device=device)
    for kind, shape in enumerate(SHAPES):
        rows = (kinds == kind).nonzero()[:, 0]
        if len(rows):
            distance[rows] = _signed_distance(shape, x[rows], y[rows], radius[rows])
    return (0.5 - distance * unit).clamp(0, 1)


def _signed_distance(shape: str, x: torch.Tensor, y: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """Distance to the outline of a shape with an outer radius of about r; negative inside."""
    if shape == "circle":
        return torch.hypot(x, y) - r
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.85 * r
    if shape == "diamond":
        return (x.abs() + y.abs() - 1.15 * r) / math.sqrt(2)
    if shape == "triangle":
        return torch.maximum(y, math.cos(math.pi / 6) * x.abs() - 0.5 * y) - 0.58 * r
    if shape == "ring":
        return (torch.hypot(x, y) - 0.73 * r).abs() - 0.25 * r
    if shape == "cross":
        flat = torch.maximum(x.abs() - r, y.abs() - 0.34 * r)
        return torch.minimum(flat, torch.maximum(x.abs() - 0.34 * r, y.abs() - r))
    return _star_distance(x, y, 1.12 * r)


def _star_distance(x: torch.Tensor, y: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """Distance to a five-pointed star: the plane is folded into half a point, and the distance to
    its edge is measured."""
    sector = 2 * math.pi / 5
    angle = torch.atan2(x, -y)
    folded = (torch.remainder(angle + sector / 2, sector) - sector / 2).abs()
    length = torch.hypot(x, y)
    along, across = length * torch.cos(folded), length * torch.sin(folded)
    inner = (0.45 * math.cos(sector / 2), 0.45 * math.sin(sector / 2))
    edge = (inner[0] - 1.0, inner[1])
    norm = math.hypot(*edge)
    return ((along - r) * edge[1] - across * edge[0]) / norm


def _backgrounds(
    scenes: Sequence[Scene], frames: int, grid_x: torch.Tensor, grid_y: torch.Tensor, unit: int
) -> torch.Tensor:
    """Grey backgrounds with their camera pans, (B, 3, T, H, W) in [0, 1]."""
    device = grid_x.device
    u = torch.linspace(0, 1, frames, device=device)
    layers = []
    for scene in scenes:
        dx, dy = PANS.get(scene.pan, (0, 0))
        x = grid_x[None, None, :] + (0.4 * dx * u)[:, None, None] + scene.texture[0]
        y = grid_y[None, :, None] + (0.4 * dy * u)[:, None, None] + scene.texture[1]
        mix = _texture(scene, x, y, unit)
        low, high = scene.tones
        layers.append((low + (high - low) * mix).expand(frames, len(grid_y), len(grid_x)))
    return torch.stack(layers)[:, None].repeat(1, 3, 1, 1, 1)


def _texture(scene: Scene, x: torch.Tensor, y: torch.Tensor, unit: int) -> torch.Tensor:
    """Share of the second tone in a pixel, in [0, 1]; periods are fractions of the short side."""
    if scene.background == "striped":
        skew = scene.texture[2]
        return _square_wave((x * (1 - skew) + y * skew) * 4, unit / 4)
    if scene.background == "checkered":
        a, b = _square_wave(x * 2.5, unit / 2.5), _square_wave(y * 2.5, unit / 2.5)
        return a * b + (1 - a) * (1 - b)
    if scene.background == "gradient":
        return 0.5 + 0.5 * torch.sin(
            (x + y - sum(scene.texture[:2])) * 2.0 + scene.texture[0] * 6.28
        )
    if scene.background == "dotted":
        px, py = torch.remainder(x * 4, 1) - 0.5, torch.remainder(y * 4, 1) - 0.5
        return (0.5 - (torch.hypot(px, py) - 0.22) * unit / 4).clamp(0, 1)
    return (x + y) * 0


def _square_wave(phase: torch.Tensor, pixels_per_period: float) -> torch.Tensor:
    """0 / 1 wave of period 1 with one pixel of anti-aliasing."""
    ramp = (torch.remainder(phase, 1.0) - 0.5).abs() - 0.25
    return (0.5 - ramp * pixels_per_period).clamp(0, 1)
