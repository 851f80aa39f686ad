"""`dit-accel report`: one self-contained page of an evaluation, or its clips for VBench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dit_accel.cli.common import options
from dit_accel.cli.common.errors import BadInput, RunFailed, reported

REPORT_NAME = "report.html"


def report(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="The folder that `evaluate --out` wrote.", show_default=False
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Where the page goes.",
            show_default=f"{REPORT_NAME} in the folder",
            metavar="FILE",
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    vbench: Annotated[
        Path | None,
        typer.Option(
            help="Write the clips as VBench's tool expects them, one folder a method, and no page.",
            show_default=False,
            metavar="DIR",
        ),
    ] = None,
    verbose: options.Verbose = False,
) -> None:
    """Write an evaluation as one HTML page: plots, table, clips side by side.

    The page is one file, and asks the network for nothing; an unfinished evaluation gives a page
    of what is there.
    """
    with reported(verbose=verbose):
        if vbench is not None:
            if output is not None or overwrite:
                given = "--output" if output is not None else "--overwrite"
                raise BadInput(f"{given} is given: it is of the page, and --vbench writes none")
            _export(run, vbench)
            return
        _report(run, output if output is not None else run / REPORT_NAME, overwrite=overwrite)


def _export(run: Path, out: Path) -> None:
    """Write the clips for VBench; a clip that is there already is left alone."""
    from dit_accel.evaluation.store import Store, StoreError
    from dit_accel.evaluation.vbench import export

    store = Store(run)
    try:
        counts = export(store, store.spec(), out)
    except (StoreError, ValueError) as error:
        raise BadInput(f"RUN is {str(run)!r}: {error}") from error
    except OSError as error:
        raise RunFailed(f"--vbench is {str(out)!r}: {error.strerror or error}") from error
    for folder, count in counts.items():
        typer.echo(f"{out / folder}: {count} clips")


def _report(run: Path, target: Path, *, overwrite: bool) -> None:
    from dit_accel.evaluation.html import lacking

    if needed := lacking():
        raise BadInput(needed)
    from dit_accel.evaluation.html.page import write_report
    from dit_accel.evaluation.store import Store, StoreError

    if not run.is_dir():
        raise BadInput(f"RUN is {str(run)!r}: {'a file' if run.exists() else 'no such folder'}")
    _check(target, overwrite=overwrite)
    store = Store(run)
    try:
        plan = store.spec()
    except StoreError as error:
        raise BadInput(f"RUN: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise BadInput(f"RUN: {run / 'manifest.json'} is damaged ({reason})") from error
    except OSError as error:
        raise BadInput(f"RUN is {str(run)!r}: {error.strerror}") from error
    try:
        size = write_report(store, plan, target)
    except StoreError as error:
        raise BadInput(f"RUN: {error}") from error
    except OSError as error:
        raise RunFailed(f"{target} cannot be written: {error.strerror or error}") from error
    typer.echo(f"{target} ({size / 1e6:.1f} MB)")


def _check(target: Path, *, overwrite: bool) -> None:
    """Refuse before the work what could not be written after it."""
    shown = str(target)
    if target.suffix.lower() not in (".html", ".htm"):
        raise BadInput(f"--output is {shown!r}: must end in .html")
    if target.is_dir():
        raise BadInput(f"--output is {shown!r}: it is a folder")
    if not target.parent.is_dir():
        raise BadInput(f"--output is {shown!r}: its folder does not exist")
    if target.exists() and not overwrite:
        raise BadInput(f"--output: {shown} exists; pass --overwrite, or another --output")
