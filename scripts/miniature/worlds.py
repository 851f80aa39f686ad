"""The worlds that models are trained on: one row each, in `WORLDS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import photos
import world


@dataclass(frozen=True)
class World:
    """A world: how scenes are drawn from a stream, how they become pixels, and words that
    `world.py` does not have."""

    scene_at: Callable[..., world.Scene]
    render: Callable
    words: tuple[str, ...] = ()


WORLDS = {
    "shapes": World(world.scene_at, world.render),
    "photos": World(photos.scene_at, photos.render, photos.WORDS),
}
