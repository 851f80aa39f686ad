"""`dit-accel models`: the families of models that are supported, and what each supports.

In: nothing. Out: a table, or JSON.
Knows the table of families; loads nothing. Ours.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from dit_accel.cli.common.errors import reported
from dit_accel.cli.common.files import print_json
from dit_accel.models.families import FAMILIES

if TYPE_CHECKING:
    from rich.table import Table


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the supported families of models."""
    with reported():
        if as_json:
            families = [dataclasses.asdict(family) for family in FAMILIES.values()]
            print_json({"families": families})
        else:
            from rich.console import Console

            Console(highlight=False).print(_table())


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
