"""Write `assets/prompts/miniature.jsonl`: prompts of the miniature's world that it has never seen.

python scripts/write_prompts.py --count 64
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from miniature_world import PROMPT_STREAM, scene_at

OUT = Path("assets/prompts/miniature.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    rows, seen = [], set()
    for index in range(100 * args.count):
        caption = scene_at(PROMPT_STREAM, index).caption()
        if caption not in seen and len(rows) < args.count:
            seen.add(caption)
            rows.append({"id": f"world-{len(rows):03d}", "prompt": caption})
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
