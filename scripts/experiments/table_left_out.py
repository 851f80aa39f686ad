"""Measures a quality target without calibration, for models that were left out of the prior.

    python scripts/experiments/table_left_out.py research/data/left-out.jsonl

Goes in: rows of `table_knowledge.py --references 0`, each for a model that its prior does not
contain.
Comes out: for each model, the fastest plan that should reach a quality on 95 % of clips by the
evidence of the other models alone, with the share of clips that did; and the share of clips within
the interval.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from make_prior import judged

from dit_accel.planning.prediction import COVERAGE, Evidence

QUALITIES = (28, 32, 36)
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    rows = [json.loads(line) for line in parser.parse_args().file.read_text().splitlines()]
    print("| | " + " | ".join(f"{q} dB" for q in QUALITIES) + " | 90 % interval holds |")
    print("|---" * (len(QUALITIES) + 2) + "|")
    for model in sorted({row["model"] for row in rows}):
        own = [row for row in rows if row["model"] == model]
        evidence = evidence_of([row for row in rows if row["model"] != model])
        cells = [reached(own, evidence, quality) for quality in QUALITIES]
        shares = [within(row, evidence) for row in own]
        cells.append(f"{min(shares):.0%} to {max(shares):.0%}")
        print(f"| `{model}` | " + " | ".join(cells) + " |")


def evidence_of(rows: list[Row]) -> Evidence:
    """The evidence from models that were left out."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "rows.jsonl"
        table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return Evidence.of_left_out(judged(table), len({row["model"] for row in rows}) + 1)


def reached(rows: list[Row], evidence: Evidence, quality: float) -> str:
    """With the fastest plan that should reach the quality: the share of clips that did, and the
    speed."""
    sure = [row for row in rows if evidence.share(row["predicted_db"], quality) >= COVERAGE]
    if not sure:
        return "none of them"
    found = min(sure, key=lambda row: row["computed"])
    clips = found["psnr_db"]
    share = sum(psnr >= quality for psnr in clips) / len(clips)
    return f"{share:.0%}, {50 / found['computed']:.1f}×"


def within(row: Row, evidence: Evidence) -> float:
    """The share of a plan's clips that are within the interval."""
    middle = row["predicted_db"] + evidence.offset_db
    return sum(abs(psnr - middle) <= evidence.half_width for psnr in row["psnr_db"]) / len(
        row["psnr_db"]
    )


if __name__ == "__main__":
    main()
