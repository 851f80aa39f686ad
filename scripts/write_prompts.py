"""Write prompts of the miniature's world that it has never seen: to evaluate, and to calibrate on.

python scripts/write_prompts.py

`assets/prompts/miniature.jsonl` and `assets/prompts/calibration.jsonl` have no prompt in common.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from miniature_world import PROMPT_STREAM, scene_at

FOLDER = Path("assets/prompts")
CALIBRATION = 5000  # where the prompts to calibrate on begin in the world's stream


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=64, help="prompts to evaluate on")
    parser.add_argument("--calibration", type=int, default=384, help="prompts to calibrate on")
    args = parser.parse_args()
    seen: set[str] = set()
    write(FOLDER / "miniature.jsonl", "world", 0, args.count, seen)
    write(FOLDER / "calibration.jsonl", "calibration", CALIBRATION, args.calibration, seen)


def write(path: Path, name: str, first: int, count: int, seen: set[str]) -> None:
    """So many captions that are not in `seen`, from a place in the world's stream on."""
    rows: list[dict[str, str]] = []
    for index in range(first, first + 100 * count):
        caption = scene_at(PROMPT_STREAM, index).caption()
        if caption not in seen and len(rows) < count:
            seen.add(caption)
            rows.append({"id": f"{name}-{len(rows):03d}", "prompt": caption})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
