"""`dit-accel vbench-export`: clips of an evaluation, named so that VBench's tool scores them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dit_accel.cli import options
from dit_accel.cli.errors import BadInput, RunFailed, reported


def vbench_export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of an evaluation.")],
    out: Annotated[Path, typer.Option(help="Gets one folder a method.", show_default=False)],
    verbose: options.Verbose = False,
) -> None:
    """Write an evaluation's clips as VBench expects them, one folder a method."""
    with reported(verbose=verbose):
        _export(run, out)


def _export(run: Path, out: Path) -> None:
    from dit_accel.evaluate.store import Store, StoreError
    from dit_accel.evaluate.vbench import export

    store = Store(run)
    try:
        counts = export(store, store.plan(), out)
    except (StoreError, ValueError) as error:
        raise BadInput(f"RUN is {str(run)!r}: {error}") from error
    except OSError as error:
        raise RunFailed(f"--out is {str(out)!r}: {error.strerror or error}") from error
    for folder, count in counts.items():
        typer.echo(f"{out / folder}: {count} clips")
