"""`dit-accel models`: the families of models that are supported, and what each supports.

In: nothing. Out: a table, or JSON.
Knows the table of families; loads nothing. Ours.
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

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class ModelsOptions:
    """The options of `models`."""

    as_json: bool = options.as_json()
    verbose: bool = options.verbose()


@verb(ModelsOptions)
def models(given: ModelsOptions) -> None:
    """List the supported families of models."""
    if given.as_json:
        print_json({"families": [dataclasses.asdict(family) for family in FAMILIES.values()]})
    else:
        print_table(_table())


def _table() -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table("family", "transformer,\npipelines, notes", "sites", "guidance", box=SIMPLE)
    for column in table.columns:
        column.no_wrap = True
    for family in FAMILIES.values():
        classes = "\n".join((family.transformer, *family.pipelines, f"[dim]{family.notes}[/]"))
        table.add_row(family.name, classes, "\n".join(family.sites), family.branches)
        table.add_section()
    return table
