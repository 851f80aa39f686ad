"""diffusers pipelines with the acceleration built in: one file per family, each usable by its path.

Importing this package imports no pipeline: a name is loaded when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .wan import AcceleratedWanPipeline

__all__ = ["AcceleratedWanPipeline"]

_HOMES = {"AcceleratedWanPipeline": ".wan"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
