"""From a layout to what the plumbing carries out: rows of shots and of files, checked beforehand."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dit_accel import isolation
from dit_accel.families import Family
from dit_accel.isolation import Scene
from dit_accel.lockstep import Clips
from dit_accel.session import Session
from dit_accel.staging import Reading, Row, SceneConfig
from dit_accel.tokens import TokenGrid

if TYPE_CHECKING:
    from dit_accel.layout import Layout

Prepared = Callable[[Session], Scene]


def prepare(
    pipe: Any,
    family: Family,
    given: Layout | str | os.PathLike[str] | None,
    config: SceneConfig | None,
) -> Prepared | None:
    """What makes the scene of a layout once there is a session; None without a layout."""
    if given is None:
        if config is not None:
            raise ValueError("scene is given without layout; accepted: with a layout")
        return None
    raise NotImplementedError
