"""`dit-accel models`: the families of models that can be accelerated, and what each supports."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from dit_accel.cli.common.errors import reported
from dit_accel.models.families import FAMILIES


def models(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """List the supported families of models, and what each supports."""
    with reported():
        if as_json:
            sys.stdout.write(_as_json() + "\n")
        else:
            Console(highlight=False).print(_as_table())


def _as_json() -> str:
    rows = [dataclasses.asdict(family) for family in FAMILIES.values()]
    return json.dumps({"families": rows}, indent=2)


def _as_table() -> Table:
    table = Table("family", "transformer,\npipelines, notes", "sites", "guidance", box=SIMPLE)
    for column in table.columns:
        column.no_wrap = True
    for family in FAMILIES.values():
        classes = "\n".join((family.transformer, *family.pipelines, f"[dim]{family.notes}[/]"))
        table.add_row(family.name, classes, "\n".join(family.sites), family.branches)
        table.add_section()
    return table
