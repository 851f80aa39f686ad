"""`dit-accel models`: lists the supported families of models, and the pipelines that were tried.

In: nothing. Out: two tables, or JSON.
Knows the table of families, and the record of the trials; loads nothing. Ours.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dit_accel.cli.common import options
from dit_accel.cli.common.files import print_json
from dit_accel.cli.common.text import print_table
from dit_accel.cli.common.verb import verb
from dit_accel.models.families import FAMILIES
from dit_accel.models.pipelines import record

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class ModelsOptions:
    """The options of `models`."""

    as_json: bool = options.as_json()
    verbose: bool = options.verbose()


@verb(ModelsOptions)
def models(given: ModelsOptions) -> None:
    """List the supported model families, and all pipelines of diffusers that were tried."""
    tried_with, tried = record()
    if given.as_json:
        families = [dataclasses.asdict(family) for family in FAMILIES.values()]
        pipelines = [dataclasses.asdict(one) for one in tried]
        print_json({"families": families, "diffusers": tried_with, "pipelines": pipelines})
    else:
        print_table(_table())
        print_table(_pipelines())


def _table() -> Table:
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    table = Table("family", "transformer,\npipelines, notes", "sites", "guidance", box=SIMPLE)
    for column in table.columns:
        column.no_wrap = True
    for family in FAMILIES.values():
        notes = family.notes if family.by_command else f"{family.notes}; from Python only"
        names = "\n".join((family.transformer, *family.pipelines))
        classes = Text.assemble(f"{names}\n", (notes, "dim"))
        table.add_row(family.name, classes, "\n".join(family.sites), family.branches)
        table.add_section()
    return table


def _pipelines() -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    tried_with, tried = record()
    title = f"Plans (speedup, quality, plan) on tiny pipelines of diffusers {tried_with}"
    table = Table("pipeline", "family", "plans", box=SIMPLE, title=title)
    for one in tried:
        table.add_row(one.pipeline, one.family or "-", one.outcome)
    return table
