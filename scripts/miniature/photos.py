"""The second world: the shapes in front of photographs, over which a camera pans, zooms and turns.

The photographs are those that scikit-image ships in its package; nothing is downloaded. They have
natural texture: fine, irregular, not drawn by a rule. Their colours are weakened, so that the judge
(`check_miniature.py`) does not mistake them for a subject's colour.

`scene_at` and `render` are those of `world.py`, for this world.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from world import MIX, PANS, Scene, paint, sample_scene

PHOTOS = {
    "brick": "brick.png", "cat": "chelsea.png", "coffee": "coffee.png", "coins": "coins.png",
    "galaxy": "hubble_deep_field.jpg", "grass": "grass.png", "gravel": "gravel.png",
    "moon": "moon.png", "motorcycle": "motorcycle_left.png", "photographer": "camera.png",
    "portrait": "astronaut.png", "rocket": "rocket.jpg",
}  # fmt: skip
CAMERAS = {
    **{f"the camera pans {name}": (dx, dy, 1.0, 0.0) for name, (dx, dy) in PANS.items()},
    "the camera zooms in": (0, 0, 1.7, 0.0),
    "the camera zooms out": (0, 0, 1 / 1.7, 0.0),
    "the camera turns left": (0, 0, 1.0, -0.7),
    "the camera turns right": (0, 0, 1.0, 0.7),
}  # travel right and down, in `TRAVEL`; growth; radians: over the whole clip, of what is seen
WORDS = (*PHOTOS, *CAMERAS)
TRAVEL = 0.4  # reach of a pan, in short sides of the frame
SEEN = 0.45  # share of a photograph's side that the frame's short side shows
COLOR = 0.3  # share of a photograph's colour that remains


@dataclass(frozen=True)
class PhotoScene(Scene):
    """A scene whose background is a photograph. `view` says where its middle is, and how it is
    seen."""

    camera: str = ""
    view: tuple[float, float, float] = (0.5, 0.5, 0.0)

    def caption(self) -> str:
        return super().caption() + (f", {self.camera}" if self.camera else "")


def scene_at(
    seed: int,
    index: int,
    aspect: float = 1.0,
    max_subjects: int = 3,
    mix: tuple[int, int, int] = MIX,
) -> PhotoScene:
    """The `index`-th scene of the stream `seed`; see `world.scene_at`."""
    rng = random.Random(f"photos/{seed}/{index}")
    plain = sample_scene(rng, aspect, max_subjects, mix)
    return PhotoScene(
        plain.subjects, rng.choice(sorted(PHOTOS)), "", plain.tones, plain.texture,
        plain.says_background,
        camera=rng.choice(sorted(CAMERAS)) if rng.random() < 0.7 else "",
        view=(rng.uniform(0.42, 0.58), rng.uniform(0.42, 0.58), rng.uniform(-0.15, 0.15)),
    )  # fmt: skip


def render(
    scenes: Sequence[PhotoScene],
    frames: int,
    height: int,
    width: int,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Pixels in [-1, 1], shape (B, 3, T, H, W), float32."""
    return paint(backgrounds(scenes, frames, height, width, device), scenes)


def backgrounds(
    scenes: Sequence[PhotoScene], frames: int, height: int, width: int, device: torch.device | str
) -> torch.Tensor:
    """The photographs as the camera sees them, (B, 3, T, H, W) in [0, 1]."""
    unit = min(height, width)
    stack = _photographs(round(unit / SEEN), torch.device(device))  # (3, photographs, side, side)
    grid = positions(scenes, frames, height, width, device)
    names = list(PHOTOS)
    which = torch.tensor([names.index(s.background) for s in scenes], device=device)
    depth = (2 * which + 1) / len(names) - 1  # the middle of a photograph's layer
    depth = depth.view(-1, 1, 1, 1, 1).expand(*grid.shape[:-1], 1)
    grid = torch.cat((grid, depth), -1).flatten(0, 1)[None]  # (1, B T, H, W, 3)
    seen = F.grid_sample(stack[None], grid, padding_mode="reflection", align_corners=False)[0]
    return seen.unflatten(1, (len(scenes), frames)).transpose(0, 1).contiguous()


def positions(
    scenes: Sequence[PhotoScene],
    frames: int,
    height: int,
    width: int,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """The place of each pixel in its photograph, x and y in [-1, 1]: (B, T, H, W, 2)."""
    unit = min(height, width)
    y = ((torch.arange(height, device=device) + 0.5 - height / 2) / unit)[:, None]
    x = (torch.arange(width, device=device) + 0.5 - width / 2) / unit
    rows = [(*CAMERAS.get(s.camera, (0, 0, 1.0, 0.0)), *s.view) for s in scenes]
    columns = torch.tensor(rows, device=device)[:, :, None, None, None].unbind(1)
    dx, dy, growth, turn, middle_x, middle_y, tilt = columns  # (B, 1, 1, 1)
    u = torch.linspace(-0.5, 0.5, frames, device=device)[:, None, None]
    scale = SEEN * growth**-u  # what grows on the screen shows a smaller part of the photo
    angle = tilt + turn * u
    across = torch.cos(angle) * x - torch.sin(angle) * y + TRAVEL * dx * u
    along = torch.sin(angle) * x + torch.cos(angle) * y + TRAVEL * dy * u
    return torch.stack((middle_x + scale * across, middle_y + scale * along), -1) * 2 - 1


@functools.lru_cache(maxsize=4)
def _photographs(side: int, device: torch.device) -> torch.Tensor:
    """The middle square of each, (3, photographs, side, side) in [0, 1], colours weakened."""
    import skimage

    layers = []
    for file in PHOTOS.values():
        path = Path(skimage.__file__).parent / "data" / file
        image = cv2.imread(str(path))
        if image is None:
            raise FileNotFoundError(f"scikit-image has no photograph {path}")
        edge = min(image.shape[:2])
        top, left = ((n - edge) // 2 for n in image.shape[:2])
        image = image[top : top + edge, left : left + edge, ::-1].astype(np.float32) / 255
        image = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
        gray = image.mean(-1, keepdims=True)
        layers.append(torch.from_numpy(gray + COLOR * (image - gray)))
    return torch.stack(layers).permute(3, 0, 1, 2).contiguous().to(device)
