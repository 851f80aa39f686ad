"""Writes unseen prompts of the miniature's world, for evaluation and for calibration.

python scripts/miniature/write_prompts.py
python scripts/miniature/write_prompts.py --world photos

It writes three files in `assets/prompts/` without a common prompt: `miniature.jsonl` for
evaluation, `calibration.jsonl`, and `several.jsonl` for evaluation with another kind of prompts:
two or three subjects with a moving camera, which is a tenth of the others. The second world has two
files: `photos.jsonl` and `photos-calibration.jsonl`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from world import PROMPT_STREAM, Scene
from worlds import WORLDS

FOLDER = Path("assets/prompts")
CALIBRATION, SEVERAL = 5000, 50_000  # where these files begin in the world's stream


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=64, help="prompts to evaluate on")
    parser.add_argument("--calibration", type=int, default=384, help="prompts to calibrate on")
    parser.add_argument("--world", choices=sorted(WORLDS), default="shapes")
    args = parser.parse_args()
    seen: set[str] = set()
    write = partial(write_rows, WORLDS[args.world].scene_at)
    if args.world == "photos":
        write(FOLDER / "photos.jsonl", "photos", 0, args.count, seen)
        name = "photos-calibration"
        write(FOLDER / f"{name}.jsonl", name, CALIBRATION, args.calibration, seen)
        return
    write(FOLDER / "miniature.jsonl", "world", 0, args.count, seen)
    write(FOLDER / "calibration.jsonl", "calibration", CALIBRATION, args.calibration, seen)
    write(FOLDER / "several.jsonl", "several", SEVERAL, args.count, seen, several)


def several(scene: Scene) -> bool:
    """Whether a scene has two or three subjects and a moving camera."""
    return len(scene.subjects) > 1 and bool(scene.pan)


def write_rows(
    scene_at: Callable[..., Scene],
    path: Path,
    name: str,
    first: int,
    count: int,
    seen: set[str],
    wanted: Callable[[Scene], bool] = lambda scene: True,
) -> None:
    """Write this number of captions that are not in `seen`, from a place in the world's stream
    on."""
    rows: list[dict[str, str]] = []
    for index in range(first, first + 100 * count):
        scene = scene_at(PROMPT_STREAM, index)
        caption = scene.caption()
        if wanted(scene) and caption not in seen and len(rows) < count:
            seen.add(caption)
            rows.append({"id": f"{name}-{len(rows):03d}", "prompt": caption})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
