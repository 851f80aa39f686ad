"""The `dit-accel` command, with one file for each verb.

In: the words on the command line. Out: the verb's output, and an exit code.
Knows the verbs; its help imports neither torch nor diffusers. A new verb is one file with one
function, and one row of `VERBS`. A verb that has verbs itself is a file with a `typer.Typer`. Ours.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from dit_accel import __version__
from dit_accel.cli.bench import bench
from dit_accel.cli.calibrate import calibrate
from dit_accel.cli.common.errors import say
from dit_accel.cli.common.verb import Verb, Verbs
from dit_accel.cli.doctor import doctor
from dit_accel.cli.evaluate import evaluate
from dit_accel.cli.generate import generate
from dit_accel.cli.layout import layout
from dit_accel.cli.learned import learned
from dit_accel.cli.models import models
from dit_accel.cli.plan import plan
from dit_accel.cli.report import report
from dit_accel.cli.score import score
from dit_accel.core.files import reason_of

VERBS: dict[str, Callable[..., None]] = {
    "generate": generate,
    "calibrate": calibrate,
    "plan": plan,
    "evaluate": evaluate,
    "report": report,
    "score": score,
    "bench": bench,
    "learned": learned,
    "models": models,
    "doctor": doctor,
}

# Old names of options, which are still accepted.
_RENAMED = {"static": "deterministic", "force": "force-profile", "out": "output"}
app = typer.Typer(
    cls=Verbs,
    context_settings={
        "token_normalize_func": lambda name: _RENAMED.get(name, name),
        "help_option_names": ["-h", "--help"],
    },
    help="Training-free acceleration of diffusion-transformer video pipelines.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
for _name, _verb in VERBS.items():
    app.command(_name, cls=Verb)(_verb)
app.add_typer(layout, name="layout")


def run() -> None:
    """Run the command."""
    for name, level in (("OPENCV_FFMPEG_LOGLEVEL", "-8"), ("OPENCV_LOG_LEVEL", "OFF")):
        # cv2 reads these when it is imported; its failures raise errors anyway
        os.environ.setdefault(name, level)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # it is closed: what is printed is lost, as in a pipe that nobody reads
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):  # a name that it cannot encode is no error
            stream.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="dit-accel")
    except OSError as error:  # of the help; the verbs report their own errors
        say(reason_of(error))
        sys.exit(1)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dit-accel {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, metavar="", help="Show the version."
        ),
    ] = False,
) -> None:
    pass
