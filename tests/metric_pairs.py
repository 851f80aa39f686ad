"""Ten pairs of clips with errors of ten kinds, and packages without what they import."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from dataclasses import dataclass

import numpy as np
import pytest
from clips import noisy, smooth


@dataclass(frozen=True)
class MetricPair:
    """Two clips, and how they are seen."""

    reference: np.ndarray
    test: np.ndarray
    fps: float = 16.0
    display: str = "standard_4k"


def metric_pairs() -> dict[str, MetricPair]:
    """By the kind of error."""
    clip = smooth(shape=(9, 64, 64, 3))
    blinking = clip.astype(int)
    blinking[::2] += 8
    red = clip.astype(int)
    red[..., 0] -= 25
    odd = smooth(2, (7, 33, 50, 3))
    wide = smooth(3, (6, 40, 96, 3))
    return {
        "little noise": MetricPair(clip, noisy(clip, 2)),
        "noise": MetricPair(clip, noisy(clip, 16)),
        "much noise": MetricPair(clip, noisy(clip, 64)),
        "shifted by a pixel": MetricPair(clip, np.roll(clip, 1, axis=2)),
        "blurred": MetricPair(clip, _blurred(clip)),
        "brighter": MetricPair(clip, _levels(clip.astype(int) + 12)),
        "less red": MetricPair(clip, _levels(red)),
        "flickers": MetricPair(clip, _levels(blinking)),
        "odd sizes, 24 frames a second": MetricPair(odd, noisy(odd, 9), fps=24.0),
        "stands still, on a phone": MetricPair(
            wide, np.repeat(wide[:1], len(wide), axis=0), fps=30.0, display="standard_phone"
        ),
    }


def _blurred(clip: np.ndarray) -> np.ndarray:
    wide = np.pad(clip.astype(float), ((0, 0), (1, 1), (0, 0), (0, 0)), mode="edge")
    return _levels(np.rint((wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]) / 3))


def _levels(clip: np.ndarray) -> np.ndarray:
    return np.clip(clip, 0, 255).astype(np.uint8)


def reference_package(name: str, *absent: str, **provided: object) -> types.ModuleType:
    """Import a package that was installed without what it imports; skips where it is absent.

    Args:
        name: what to import.
        absent: packages that it imports and does not need here.
        provided: names that it takes from those all the same.
    """
    if importlib.util.find_spec(name.split(".")[0]) is None:
        pytest.skip(f"{name} is not installed")
    finder = _StandIns(absent, provided)
    sys.meta_path.insert(0, finder)
    try:
        return importlib.import_module(name)
    finally:
        sys.meta_path.remove(finder)
        for module in [m for m in sys.modules if m.split(".")[0] in absent]:
            del sys.modules[module]


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules that hold nothing but what was provided."""

    def __init__(self, absent: tuple[str, ...], provided: dict[str, object]) -> None:
        self.absent, self.provided = absent, provided

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in self.absent:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__path__ = []
        module.__getattr__ = self._get
        return module

    def exec_module(self, module):
        pass

    def _get(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self.provided.get(name, object)
