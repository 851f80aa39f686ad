"""`dit-accel learned`: shows what was learnt from runs of each pipeline, and clears it.

In: the options. Out: a table of the files in the user's cache, or JSON; with `--clear` or `--all`
they are removed.
Knows the files; loads no model. Ours.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dit_accel.cli.common import options
from dit_accel.cli.common.errors import BadInput, RunFailed, unreadable
from dit_accel.cli.common.files import print_json
from dit_accel.cli.common.text import bytes_text, counted, print_table
from dit_accel.cli.common.verb import verb
from dit_accel.core.files import reason_of

if TYPE_CHECKING:
    from rich.table import Table

NAME_LENGTHS = 8, 4  # of the shown digests of weights and sampler


@dataclass(frozen=True, kw_only=True)
class LearnedOptions:
    """The options of `learned`."""

    clear: str | None = options.option(
        None, "Clear one pipeline, by its name in this list.", metavar="NAME"
    )
    clear_all: bool = options.option(False, "Clear every pipeline.", "--all")
    as_json: bool = options.as_json()
    verbose: bool = options.verbose()


@verb(LearnedOptions)
def learned(given: LearnedOptions) -> None:
    """Show what was learnt from runs of each pipeline, or clear it.

    Runs with --compare improve later plans, unless --no-learn is given.
    """
    from dit_accel.planning.learned_file import SUFFIX
    from dit_accel.planning.lookup import cache_folder

    if given.clear is not None and given.clear_all:
        raise BadInput("--clear and --all are given; accepted: one of them")
    folder = cache_folder() / "learned"
    paths = sorted(folder.glob(f"*{SUFFIX}"))
    if given.clear is not None or given.clear_all:
        chosen = paths if given.clear is None else [_of_name(given.clear, paths)]
        _clear(chosen, quiet=given.as_json)
        if given.as_json:
            print_json({"cleared": [str(path) for path in chosen]})
        return
    rows = [_row(path) for path in paths]
    if given.as_json:
        print_json({"folder": str(folder), "pipelines": rows})
    elif rows:
        print_table(_table(rows))
    else:
        typer.echo(f"nothing has been learnt yet in {folder}")


def _of_name(name: str, paths: list[Path]) -> Path:
    found = [path for path in paths if name and _name(path).startswith(name)]
    if len(found) != 1:
        names = ", ".join(map(_name, paths)) or "none"
        problem = "several names begin with" if found else "no name begins with"
        raise BadInput(f"--clear is {name!r}, which {problem}; accepted: one of {names}")
    return found[0]


def _name(path: Path) -> str:
    """The name of a file in the list. A model has one file for each scheduler."""
    digests = zip(path.stem.split("-"), NAME_LENGTHS, strict=False)
    return "-".join(digest[:length] for digest, length in digests)


def _clear(paths: list[Path], *, quiet: bool) -> None:
    from dit_accel.planning.learned_file import clear

    for path in paths:
        try:
            clear(path)
        except OSError as error:
            raise RunFailed(f"{path}: {reason_of(error)}") from error
    if not quiet:
        typer.echo(f"cleared {counted(len(paths), 'pipeline')}")


def _row(path: Path) -> dict[str, Any]:
    """The row of a file; for a damaged file, the reason why it cannot be read."""
    from dit_accel.planning.learned_file import load

    changed = datetime.fromtimestamp(path.stat().st_mtime).isoformat(" ", "minutes")
    row: dict[str, Any] = {
        "name": _name(path), "changed": changed, "bytes": path.stat().st_size,
        "path": str(path), "problem": None,
    }  # fmt: skip
    try:
        with unreadable("", (ValueError,)):
            found = load(path)
    except (BadInput, OSError) as error:
        return row | {"problem": str(error)}
    differences = [one.measured - one.predicted for one in found.measured]
    return row | {
        "pipeline": found.key.pipeline, "scheduler": found.key.scheduler, "runs": found.runs,
        "clips": sum(one.clips for one in found.observations),
        "steps": sorted({one.kind.sampler.num_steps for one in found.observations}),
        "measured": len(differences),
        "measured_minus_predicted_db": statistics.fmean(differences) if differences else None,
    }  # fmt: skip


def _table(rows: list[dict[str, Any]]) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table("name", "pipeline", "clips", "PSNR measured", "size", "changed", box=SIMPLE)
    for row in rows:
        if row["problem"] is not None:
            cells = ("", f"cannot be read: {row['problem']}", "")
        else:
            steps = ", ".join(map(str, row["steps"]))
            measured = counted(row["measured"], "clip")
            if row["measured"]:
                measured += f", {row['measured_minus_predicted_db']:+.1f} dB from the prediction"
            cells = (
                f"{row['pipeline']}\n{row['scheduler']}",
                f"{row['clips']} uncached\nof {steps} steps" if steps else "",
                measured,
            )
        table.add_row(row["name"], *cells, bytes_text(row["bytes"]), row["changed"])
    return table
