"""The command run in this process, and the tiny model folder's defaults that it finds."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from dit_accel.cli.app import app

PROMPT = "a red circle moving right"

DEFAULTS = {
    "height": 16,
    "width": 16,
    "num_frames": 5,
    "num_inference_steps": 8,
    "guidance_scale": 4.0,
    "max_sequence_length": 16,
    "fps": 8,
}


def invoke(*words: str) -> Result:
    """Run `dit-accel WORDS` in this process, stdout and stderr apart, as click 8.2 keeps them."""
    known = inspect.signature(CliRunner.__init__).parameters
    options: dict[str, Any] = {"mix_stderr": False} if "mix_stderr" in known else {}
    return CliRunner(**options).invoke(app, words)


def names(folder: Path) -> list[str]:
    """Everything in a folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())
