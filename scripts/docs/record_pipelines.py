"""Tries every video pipeline of the installed diffusers, and writes down what it found.

In: the rows of `tests/pipeline_rows.py`. Out: `dit_accel/models/pipelines.json`, one line a
pipeline, which `dit-accel models` and the docs print. A trial that fails stops the recording. It
knows `tests/pipeline_trial.py`. Source: ours.

    python scripts/docs/record_pipelines.py
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "dit_accel" / "models" / "pipelines.json"


def main() -> None:
    sys.path.append(str(ROOT / "tests"))
    from pipeline_rows import ROWS
    from pipeline_trial import trial

    logging.getLogger("dit_accel").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    lines = []
    for row in ROWS:
        if row.is_there:
            found = trial(row)
            print(f"{found.pipeline}: {found.outcome}", flush=True)
            lines.append(json.dumps(dataclasses.asdict(found)))
    pipelines = ",\n  ".join(lines)
    text = f'{{\n "diffusers": "{version("diffusers")}",\n "pipelines": [\n  {pipelines}\n ]\n}}\n'
    FILE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
