"""Layouts say which subject is where in which shot, and what it should look like.

In: a layout file, or shots and subjects made in Python. Out: a validated `Layout`, and the coverage
of tokens by each subject. `model.py` checks fields when they are made, `load.py` checks files, and
`coverage.py` rasterises. It knows no pipeline; only coverage imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dit_accel.layout.errors import LayoutError
from dit_accel.layout.load import load, parse
from dit_accel.layout.model import Box, Keyframe, Layout, Reference, Shot, Subject

if TYPE_CHECKING:
    from dit_accel.layout.coverage import coverage, mask_chunks, reference_coverage

_LAZY = ("coverage", "mask_chunks", "reference_coverage")
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
    "mask_chunks",
    "parse",
    "reference_coverage",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # All at once: the import makes the module `coverage` an attribute of this package, in place of
    # the function of this name.
    module = importlib.import_module("dit_accel.layout.coverage")
    globals().update({one: getattr(module, one) for one in _LAZY})
    return globals()[name]
