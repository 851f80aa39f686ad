"""Layouts: which subject is where in which shot, and what it shall look like.

`load` reads a file; `Layout` and its parts may as well be made in Python, and are checked when
made; `coverage` lays a shot over a grid of tokens. Only that last one imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dit_accel.layout.errors import LayoutError
from dit_accel.layout.load import load, parse
from dit_accel.layout.model import Box, Keyframe, Layout, Reference, Shot, Subject

if TYPE_CHECKING:
    from dit_accel.layout.coverage import coverage, reference_coverage

_LAZY = ("coverage", "reference_coverage")
__all__ = [
    "Box",
    "Keyframe",
    "Layout",
    "LayoutError",
    "Reference",
    "Shot",
    "Subject",
    "coverage",
    "load",
    "parse",
    "reference_coverage",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module("dit_accel.layout.coverage"), name)
    globals()[name] = value
    return value
