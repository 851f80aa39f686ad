"""What a run would have cost and what it did cost, in FLOPs: stock twins are counted, not run.

Knows what every site did at every step, and what a forward of the stock transformer spends where.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dit_accel import following
from dit_accel.bench import count_flops
from dit_accel.families import Family
from dit_accel.outcome import SceneReport, SiteReport
from dit_accel.session import Session


def count(
    session: Session,
    family: Family,
    sites: Sequence[SiteReport],
    scene: SceneReport | None,
) -> tuple[int | None, int | None, tuple[str, ...]]:
    """FLOPs the stock pipeline would have spent, what this run spent, and notes.

    Both are None where they cannot be counted; the notes say why.
    """
    full = saved = 0
    try:
        for (name, branch), (args, kwargs) in session.inputs.items():
            costs = count_flops(without_weights(session.transformers[name]), args, kwargs)
            mine = [s for s in sites if (s.transformer, s.branch) == (name, branch)]
            full += costs[""] * max((s.steps for s in mine), default=0)
            for s in mine:
                saved += _cost(costs, s.name, family) * len(s.served)
                unspent = sum(1 - share for share in s.spent.values())
                saved += round(unspent * products(costs, s.name)) if unspent else 0
    except (RuntimeError, NotImplementedError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return None, None, (f"FLOPs could not be counted: {reason}",)
    return full, _with_scene(full - saved, scene), ()


def _with_scene(spent: int, scene: SceneReport | None) -> int:
    """FLOPs with those of a scene: rows beside the user's cost what these cost."""
    if scene is None:
        return spent
    shots = len(scene.classes) - scene.further_rows
    return round(spent * len(scene.classes) / max(shots, 1)) + scene.extra_flops


def _cost(costs: dict[str, int], site: str, family: Family) -> int:
    if site == following.SITE:
        return costs[""]
    if site != "stack":
        return costs[site]
    groups = family.blocks  # lists, which are not called: their members are counted
    members = (path for path in costs if path.count(".") == 1 and path.split(".")[0] in groups)
    return sum(costs[path] for path in members)


def products(costs: Mapping[str, int], attention: str) -> int:
    """FLOPs of an attention less those of the projections inside it.

    Args:
        costs: FLOPs of one forward, by module path (`bench.count_flops`).
        attention: its path.
    """
    inside = [path for path in costs if path.startswith(f"{attention}.")]
    tops = (p for p in inside if not any(p.startswith(f"{other}.") for other in inside))
    return costs[attention] - sum(costs[path] for path in tops)


def without_weights(transformer: Any) -> Any:
    """A stock twin to count on: no weights, none of the hooks that offload or cache."""
    with torch.device("meta"):
        return type(transformer).from_config(transformer.config)
