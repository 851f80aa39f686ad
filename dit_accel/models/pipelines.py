"""The pipelines of diffusers that were tried: which are planned, and why others are not.

In: `pipelines.json`, which `scripts/docs/record_pipelines.py` writes from trials of tiny pipelines
of the real classes. Out: `TRIED`, read on first use. It knows no pipeline itself: no entry was
written by hand. Source: ours.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Tried:
    """The result of a trial of a tiny pipeline.

    Args:
        pipeline: its class, with its kind of checkpoint if a class has several.
        transformer: the class of its transformer.
        family: its row in `FAMILIES`; "": it has none, and supports only plans.
        sites: the sites at which a threshold caches values.
        planned: number of forwards that the planned call computed, and number of all forwards;
            None: it is not planned.
        refused: why it is not planned; "": it is planned.
        broken: how the pipeline fails by itself in that diffusers; "": it does not.
    """

    pipeline: str
    transformer: str
    family: str
    sites: tuple[str, ...]
    planned: tuple[int, int] | None
    refused: str = ""
    broken: str = ""

    @property
    def outcome(self) -> str:
        """The result as text."""
        if self.planned is not None:
            return f"planned: {self.planned[0]} of {self.planned[1]} forwards"
        if self.broken:
            return f"fails by itself: {self.broken}"
        return f"not planned: {self.refused}"


@functools.cache
def record() -> tuple[str, tuple[Tried, ...]]:
    """The version of diffusers that was tried, and the results for its pipelines."""
    text = (files("dit_accel.models") / "pipelines.json").read_text(encoding="utf-8")
    found = json.loads(text)
    return found["diffusers"], tuple(map(_tried, found["pipelines"]))


def _tried(row: dict[str, Any]) -> Tried:
    planned = row["planned"]
    given = {"sites": tuple(row["sites"]), "planned": None if planned is None else tuple(planned)}
    return Tried(**row | given)
