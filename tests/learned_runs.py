"""Runs that are learnt from (fixture `learns`), the files that they leave, and what a plan rests
on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
import torch

from dit_accel.planning import learned_file
from dit_accel.planning.learned import Learned

STEPS = 10


def run(pipe: Any, seed: int = 0, **more: Any) -> Any:
    call = tiny.CALL | {"num_inference_steps": STEPS} | more
    return pipe(**call, generator=torch.Generator().manual_seed(seed)).frames


def files(folder: Path) -> list[Path]:
    return sorted((folder / "learned").glob("*.safetensors"))


def only(folder: Path) -> Learned:
    (path,) = files(folder)
    return learned_file.load(path)


def basis(report: Any) -> str:
    """What the plan rests on, by the report."""
    (note,) = [note for note in report.notes if note.startswith("Planned from")]
    return str(note).removeprefix("Planned from ").partition(";")[0]
