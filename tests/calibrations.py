"""Calibration of a method in a test, without a folder: for `MethodContext`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def measured_once() -> Callable[[str, Callable[[Any], Any]], Any]:
    """A `calibrate` that measures each name once, and says nothing of uncached runs."""
    known: dict[str, Any] = {}

    def calibrate(name: str, measure: Callable[[Any], Any]) -> Any:
        if name not in known:
            known[name] = measure(lambda: None)
        return known[name]

    return calibrate
