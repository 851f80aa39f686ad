"""Draws small pictures that show which steps were computed at which places of the model.

In: the results of a method. Out: a picture: steps from left to right, places from top to bottom,
opaque where all calls of the uncached clip were computed.
Source: ours.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from dit_accel.evaluation.results import Results, ScoredPair

Shares = npt.NDArray[np.float64]
_COLOUR = (46, 124, 201)  # visible on white and on black
_CELL = 6


@dataclass(frozen=True)
class PlanMap:
    """The map of one method. `bands`: the kinds of places from top to bottom, with their share of
    the height in percent."""

    label: str
    picture: str
    alt: str
    steps: int
    share: float
    bands: list[tuple[str, float, float]]


def plan_maps(results: Results) -> list[PlanMap]:
    """A map for every accelerated method with the same steps as the uncached clip."""
    found = []
    for setting in results.accelerated():
        shares = share_computed(results.pairs[setting])
        if shares:
            found.append(_map(setting.label, shares))
    return found


def share_computed(pairs: Sequence[ScoredPair]) -> dict[str, Shares] | None:
    """For each place, the share of the uncached clip's calls that was computed at each step.

    Args:
        pairs: clips of one setting; the shares are their mean.

    Returns:
        An array `(steps,)` for each place; None if the steps are not those of the uncached clip.
    """
    found: dict[str, list[Shares]] = {}
    for pair in pairs:
        mine, full = pair.result["computed"], pair.reference["computed"]
        for place, calls in full.items():
            if len(mine.get(place, ())) != len(calls):
                return None
            ratio = np.divide(mine[place], np.maximum(calls, 1), dtype=np.float64)
            found.setdefault(place, []).append(ratio)
    return {place: np.mean(values, axis=0) for place, values in found.items()} or None


def _map(label: str, shares: dict[str, Shares]) -> PlanMap:
    ordered = sorted(shares, key=_key)
    grid = np.array([shares[place] for place in ordered])
    kinds = [_kind(place) for place in ordered]
    bands = [
        (kind, 100 * kinds.count(kind) / len(kinds), float(np.mean(grid[_rows(kinds, kind)])))
        for kind in dict.fromkeys(kinds)
    ]
    always = sum(bool(np.all(column > 0.995)) for column in grid.T)
    never = sum(bool(np.all(column < 0.005)) for column in grid.T)
    alt = (
        f"{label}: {grid.mean():.0%} of the calls computed; of {grid.shape[1]} steps, {always} are "
        f"computed everywhere in every clip, {never} nowhere; "
        + ", ".join(f"{kind} {share:.0%}" for kind, _, share in bands)
    )
    return PlanMap(label, _picture(grid), alt, grid.shape[1], float(grid.mean()), bands)


def _rows(kinds: list[str], kind: str) -> list[int]:
    return [index for index, other in enumerate(kinds) if other == kind]


def _kind(place: str) -> str:
    """The kind of a place: `attn1` for `blocks.3.attn1`. The second transformer has its own
    kinds."""
    return ".".join(part for part in place.split(".") if not part.isdigit() and part != "blocks")


def _key(place: str) -> tuple[str, list[int]]:
    return _kind(place), [int(part) for part in place.split(".") if part.isdigit()]


def _picture(grid: Shares) -> str:
    from PIL import Image

    cells = np.empty((*grid.shape, 4), np.uint8)
    cells[..., :3] = _COLOUR
    cells[..., 3] = (255 * np.clip(grid, 0, 1)).round()
    enlarged = cast("npt.NDArray[np.uint8]", cells.repeat(_CELL, 0).repeat(_CELL, 1))
    buffer = io.BytesIO()
    Image.fromarray(enlarged).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
