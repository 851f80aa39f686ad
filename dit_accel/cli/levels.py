"""What a profile knows of cheaper computes: a table of levels, and whether they pay; by line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from dit_accel.cheaper import Verdict
    from dit_accel.profile import Profile


def this_device() -> str:
    """The name of the device that a run on this machine would take."""
    from dit_accel.bench import device_name
    from dit_accel.loading import choose_device

    return device_name(choose_device(None))


def content(profile: Profile) -> dict[str, Any] | None:
    """JSON-able; None where levels were not measured."""
    from dit_accel import cheaper

    table = profile.levels
    if table is None:
        return None
    device = this_device()
    errors = cheaper.mean_errors(table)
    return {
        "ages": list(table.ages),
        "device": table.device,
        "clips": table.clips,
        "cost": "seconds" if table.device == device else "flops",
        "levels": [
            {
                "name": level.name,
                "flops": float(table.flops[i]),
                "seconds": float(table.seconds[i]),
                "errors": list(errors[i]),
            }
            for i, level in enumerate(table.levels)
        ],
        "pays_at": sorted(cheaper.paying(profile, device)),
    }


def show_levels(console: Console, profile: Profile) -> None:
    """A table of levels, and the verdict in one line; the profile has levels."""
    from dit_accel import cheaper

    table = profile.levels
    assert table is not None
    ages = ", ".join(map(str, table.ages))
    shown = Table(
        title=f"Cheaper computes, {table.clips} prompts", title_justify="left", box=SIMPLE
    )
    shown.add_column("level", no_wrap=True)
    for name in ("FLOPs", f"seconds, {table.device}", f"error, {ages} steps old"):
        shown.add_column(name, justify="right", no_wrap=True)
    for i, (level, errors) in enumerate(zip(table.levels, cheaper.mean_errors(table), strict=True)):
        cells = f"{table.flops[i]:.0%}", f"{table.seconds[i]:.0%}"
        shown.add_row(level.name, *cells, ", ".join(f"{error:.1%}" for error in errors))
    console.print(shown)
    console.print(verdict(profile, this_device()), soft_wrap=True)


def verdict(profile: Profile, device: str) -> str:
    """Whether levels pay at the cost of any plan of the ladder, in one line."""
    from dit_accel import cheaper

    table = profile.levels
    by = "seconds" if table is not None and table.device == device else "FLOPs"
    pays = cheaper.paying(profile, device)
    if pays:
        at = ", ".join(map(str, sorted(pays)))
        return f"Cheaper computes pay (by {by}) at the cost of {at} full steps, and are planned."
    found = [v for v in cheaper.verdicts(profile, device) if v.offer is not None]
    if not found:
        return f"Cheaper computes do not pay (by {by}): no plan with them costs as little."
    return f"Cheaper computes do not pay (by {by}): {_nearest(found)}"


def _nearest(found: list[Verdict]) -> str:
    from dit_accel.cheaper import MARGIN

    best = max(found, key=lambda one: one.gain_db)
    return (
        f"at equal cost they are expected to give {best.gain_db:+.1f} dB against full steps alone "
        f"where they come nearest, at {best.budget} steps; they are planned from {MARGIN:+g} dB."
    )
