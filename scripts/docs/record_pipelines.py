"""Tries every video pipeline of the installed diffusers, and records the results.

In: the rows of `tests/pipeline_rows.py`, all or only the named ones. Out:
`dit_accel/models/pipelines.json`, one line for each pipeline, which `dit-accel models` and the docs
print. A trial that fails stops the recording. It knows `tests/pipeline_trial.py`. Source: ours.

    python scripts/docs/record_pipelines.py
    python scripts/docs/record_pipelines.py "WanPipeline (TI2V)" LTX2Pipeline
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "dit_accel" / "models" / "pipelines.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="of rows; the others stay as they are recorded")
    names = parser.parse_args().names
    sys.path.append(str(ROOT / "tests"))
    from pipeline_rows import ROWS

    logging.getLogger("dit_accel").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    known = recorded() if names else {}
    rows = [row for row in ROWS if row.is_there]
    missing = {row.title for row in rows} - {*known, *names} if names else set()
    if missing:
        parser.error(f"not recorded yet: {', '.join(sorted(missing))}; name them too, or no row")
    new = [row.title for row in rows if not names or row.title in names]
    found = {row.title: tried(row) if row.title in new else known[row.title] for row in rows}
    lines = ",\n  ".join(map(json.dumps, found.values()))
    text = f'{{\n "diffusers": "{version("diffusers")}",\n "pipelines": [\n  {lines}\n ]\n}}\n'
    FILE.write_text(text, encoding="utf-8")


def recorded() -> dict[str, Any]:
    """The lines of the file by pipeline; none if they are from another diffusers."""
    content = json.loads(FILE.read_text(encoding="utf-8"))
    is_same = content["diffusers"] == version("diffusers")
    return {row["pipeline"]: row for row in content["pipelines"]} if is_same else {}


def tried(row: Any) -> dict[str, Any]:
    from pipeline_trial import trial

    found = trial(row)
    print(f"{found.pipeline}: {found.outcome}", flush=True)
    return dataclasses.asdict(found)


if __name__ == "__main__":
    main()
