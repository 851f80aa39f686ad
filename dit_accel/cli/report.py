"""`dit-accel report`: writes an evaluation as one HTML page, or its clips for VBench.

In: the folder of an evaluation. Out: a page, or folders of clips.
Knows paths and errors; `evaluation/html/` makes the page. Ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer

from dit_accel.cli.common import options
from dit_accel.cli.common.errors import BadInput, RunFailed, unreadable
from dit_accel.cli.common.files import check_file, print_json
from dit_accel.cli.common.options import OUTPUT, argument, option
from dit_accel.cli.common.text import counted
from dit_accel.cli.common.verb import verb
from dit_accel.core.files import reason_of

REPORT_NAME = "report.html"


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """The options of `report`."""

    run: Path = argument(..., "The folder of `evaluate --output`.", "RUN")
    output: Path | None = options.output(None, "The HTML file.", shown=f"RUN/{REPORT_NAME}")
    vbench: Path | None = option(
        None, "Instead, copy the clips for VBench, one folder per method.", metavar="FOLDER",
        panel=OUTPUT,
    )  # fmt: skip
    overwrite: bool = options.overwrite()
    as_json: bool = options.as_json()
    verbose: bool = options.verbose()


@verb(ReportOptions)
def report(given: ReportOptions) -> None:
    """Write an evaluation as one HTML page: plots, table, clips side by side.

    The page is one file and needs no network. The evaluation may be unfinished.
    """
    if given.vbench is None:
        output = given.output if given.output is not None else given.run / REPORT_NAME
        _write_page(given.run, output, overwrite=given.overwrite, as_json=given.as_json)
        return
    if given.output is not None or given.overwrite:
        name = "--output" if given.output is not None else "--overwrite"
        raise BadInput(f"{name} is given; accepted: without --vbench, which writes no page")
    _export(given.run, given.vbench, as_json=given.as_json)


def _export(run: Path, out: Path, *, as_json: bool) -> None:
    """Copy the clips for VBench. Existing files stay as they are."""
    from dit_accel.evaluation.store import Store, StoreError
    from dit_accel.evaluation.vbench import export

    store = Store(run)
    try:
        counts = export(store, store.spec(), out)
    except (StoreError, ValueError) as error:
        raise BadInput(f"RUN is {str(run)!r}: {error}") from error
    except OSError as error:
        raise RunFailed(f"--vbench is {str(out)!r}: {reason_of(error)}") from error
    if as_json:
        print_json({"vbench": str(out), "clips": counts})
        return
    for folder, count in counts.items():
        typer.echo(f"{out / folder}: {counted(count, 'clip')}")


def _write_page(run: Path, target: Path, *, overwrite: bool, as_json: bool) -> None:
    from dit_accel.evaluation.html import lacking

    if needed := lacking():
        raise BadInput(needed)
    from dit_accel.evaluation.html.page import write_report
    from dit_accel.evaluation.store import Store, StoreError

    if not run.is_dir():
        raise BadInput(f"RUN is {str(run)!r}: {'a file' if run.exists() else 'no such folder'}")
    check_file("--output", target, suffixes=(".html", ".htm"), overwrite=overwrite)
    store = Store(run)
    with unreadable("RUN: ", (StoreError,)):
        try:
            spec = store.spec()
        except OSError as error:
            raise BadInput(f"RUN is {str(run)!r}: {reason_of(error)}") from error
        try:
            size = write_report(store, spec, target)
        except OSError as error:
            raise RunFailed(f"{target} cannot be written: {reason_of(error)}") from error
    if as_json:
        print_json({"page": str(target), "bytes": size})
    else:
        typer.echo(f"{target} ({size / 1e6:.1f} MB)")
