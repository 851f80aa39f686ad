"""The ladder of a profile: what each of its plans gave on the prompts that it was calibrated on."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.table import Table

if TYPE_CHECKING:
    from dit_accel.profile import Profile, Rung

LOW = 0.05  # the share of prompts that got less than what stands under "5 % below"


def rows(profile: Profile) -> list[dict[str, Any]]:
    """One row a plan, from slow to fast; JSON-able."""
    return [_row(rung, profile) for rung in profile.rungs]


def ladder_table(profile: Profile) -> Table:
    """The same for people."""
    identity = profile.identity
    table = Table(
        title=(
            f"{identity.pipeline}, {identity.steps} steps, guidance {identity.guidance:g}, "
            f"{identity.width}x{identity.height}, {identity.frames} frames"
        ),
        title_justify="left",
        box=SIMPLE,
    )
    for name in ("speed", "steps computed", "PSNR, mean", "5 % below", "worst", "prompts"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows(profile):
        psnr = (f"{row[name]:.1f} dB" for name in ("mean_db", "low_db", "worst_db"))
        computed = f"{len(row['computed'])} of {identity.steps}"
        table.add_row(f"{row['speedup']:.2f}x", computed, *psnr, str(row["prompts"]))
    return table


def _row(rung: Rung, profile: Profile) -> dict[str, Any]:
    psnr = sorted(rung.psnr_db.tolist())
    return {
        "kind": "plan",
        "speedup": profile.schedule.total / len(rung.computed),
        "computed": list(rung.computed),
        "mean_db": statistics.fmean(psnr),
        "low_db": _quantile(psnr, LOW),
        "worst_db": psnr[0],
        "prompts": len(psnr),
    }


def _quantile(ordered: list[float], share: float) -> float:
    """On the line between the two neighbours."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
