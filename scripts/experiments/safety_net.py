"""Records what the package does, and compares two records: before and after a change of the code.

    python scripts/experiments/safety_net.py record before.json
    python scripts/experiments/safety_net.py compare before.json after.json --renames renames.json

Goes in: the code of the script's checkout. Comes out: a JSON file with hashes of frames, decisions,
reports, and the output of every command; or a list of differences, and exit code 1. It knows only
public names, so the same script runs before and after a restructuring. A record that was stopped
can be continued. One thread, offline, about eight minutes. Ours; `safety_runs.py` and
`safety_commands.py` hold the cases, `safety_compare.py` the comparison.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import safety_compare

ROOT = Path(__file__).resolve().parents[2]
FORMAT = 1
LIMIT = 40  # kinds of places that are listed for each sort of difference


def main() -> int:
    """Carry out the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    recording = verbs.add_parser("record", help="run every case that the file does not have yet")
    recording.add_argument("out", type=Path)
    recording.add_argument("--only", default="*", help="names of cases, e.g. 'tiny-*/static'")
    comparing = verbs.add_parser("compare", help="list what differs between two records")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    comparing.add_argument("--renames", type=Path, help="a JSON object: old key to new, or to null")
    comparing.add_argument("--limit", type=int, default=LIMIT)
    asked = parser.parse_args()
    if asked.verb == "record":
        return record(asked.out, asked.only)
    renames = json.loads(asked.renames.read_text(encoding="utf-8")) if asked.renames else {}
    return compare(asked.before, asked.after, renames, asked.limit)


def record(out: Path, only: str) -> int:
    """Run the cases that `out` lacks. Failed cases are not written. Returns the exit code."""
    _prepare()
    import safety_commands
    import safety_runs

    done = _read(out) if out.exists() else {}
    failed = []
    for name, case in (safety_runs.cases() | safety_commands.cases()).items():
        if name in done or not fnmatch.fnmatch(name, only):
            continue
        begun = time.perf_counter()
        try:
            done[name] = case()
        except Exception:  # the other cases still run after any error
            traceback.print_exc()
            failed.append(name)
        else:
            _write(out, done)
        seconds = time.perf_counter() - begun
        print(f"{name:40} {_outcome(done.get(name))} {seconds:6.1f} s", flush=True)
    print(f"{out}: {len(done)} cases" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def compare(before: Path, after: Path, renames: dict[str, str | None], limit: int) -> int:
    """Print the differences. Returns 1 if anything except texts and new keys differs."""
    found = safety_compare.compare(_read(before), _read(after), renames)
    print("\n".join(safety_compare.lines(found, limit)))
    print(f"{found.faults} faults" if found.faults else "same frames, decisions and values")
    return 1 if found.faults else 0


def _prepare() -> None:
    """Use one thread, no network, no profiles of the user, and the package of this checkout."""
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
        "COLUMNS": "120",
        "DIT_ACCEL_CACHE": tempfile.mkdtemp(),
    }
    sys.path.insert(0, str(ROOT))
    import torch
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    torch.set_num_threads(1)
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def _outcome(result: dict[str, Any] | None) -> str:
    if result is None:
        return "failed "
    return "refused" if "refused" in result else "done   "


def _read(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("format") != FORMAT:
        raise SystemExit(f"{path} is of format {content.get('format')!r}; accepted: {FORMAT}")
    cases: dict[str, Any] = content["cases"]
    return cases


def _write(path: Path, cases: dict[str, Any]) -> None:
    """Write the file whole or not at all, so that a stopped run can be continued."""
    scratch = path.with_name(path.name + ".part")
    scratch.write_text(json.dumps({"format": FORMAT, "cases": cases}), encoding="utf-8")
    scratch.replace(path)


if __name__ == "__main__":
    sys.exit(main())
