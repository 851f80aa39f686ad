"""Judges whether a small model is good enough: colours and motions of unseen prompts.

    python scripts/miniature/check_miniature.py --model assets/mini-wan --prompts 64 --seed 0
    python scripts/miniature/check_miniature.py --model out/photos --world photos

The model's own pipeline makes the clips, at the defaults of its folder.

For every subject of a caption, the pixels of its colour are found in CIELAB. The colour is present
if at least 0.3 % of the frame has it in four fifths of the frames. The motion is judged by the path
and the area of the largest such region. The same judge also runs on the true renderings of the
captions, which shows how reliable it is. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import DiffusionPipeline
from output import sample, settings_of
from world import CHECK_STREAM, COLORS, Scene, Subject
from worlds import WORLDS, World


def color_areas(clip: np.ndarray, color: str) -> list[np.ndarray]:
    """Masks (H, W) of a palette colour in each frame; clip (T, H, W, 3) in [0, 1]."""
    names = list(COLORS)
    palette = np.array([[COLORS[name] for name in names]], np.float32) / 255
    palette = cv2.cvtColor(palette, cv2.COLOR_RGB2LAB)[0]
    masks = []
    for frame in clip.astype(np.float32):
        lab = cv2.cvtColor(frame, cv2.COLOR_RGB2LAB)
        gaps = (lab[:, :, None] - palette) * np.array([0.5, 1, 1], np.float32)
        nearest = np.square(gaps).sum(-1).argmin(-1)
        colored = np.hypot(lab[..., 1], lab[..., 2]) > 22
        masks.append(((nearest == names.index(color)) & colored).astype(np.uint8))
    return masks


def track(clip: np.ndarray, color: str) -> np.ndarray | None:
    """(frames, 3): x, y and area of the colour's largest region, in short sides; None if absent."""
    masks = color_areas(clip, color)
    unit = min(masks[0].shape)
    rows = []
    for mask in masks:
        _, _, stats, centers = cv2.connectedComponentsWithStats(mask, connectivity=8)
        if len(stats) > 1 and mask.sum() >= 0.003 * mask.size:
            best = 1 + stats[1:, cv2.CC_STAT_AREA].argmax()
            rows.append((*(centers[best] / unit), stats[best, cv2.CC_STAT_AREA] / unit**2))
    return np.array(rows) if len(rows) >= 0.8 * len(masks) else None


def moves_as(path: np.ndarray, motion: str) -> bool:
    """Whether a track fits a motion of the world."""
    start, end = path[:3].mean(0), path[-3:].mean(0)
    dx, dy = end[:2] - start[:2]
    wide, high = np.ptp(path[:, 0]), np.ptp(path[:, 1])
    growth = end[2] / start[2]
    turns = int((np.diff(np.sign(np.diff(path[:, 1]))) != 0).sum())
    checks = {
        "right": dx > 0.06 and abs(dy) < 0.6 * dx,
        "left": dx < -0.06 and abs(dy) < -0.6 * dx,
        "down": dy > 0.06 and abs(dx) < 0.6 * dy,
        "up": dy < -0.06 and abs(dx) < -0.6 * dy,
        "grow": growth > 1.5,
        "shrink": growth < 1 / 1.5,
        "circle": min(wide, high) > 0.07
        and 0.4 < wide / high < 2.5
        and np.hypot(*(path[-1, :2] - path[0, :2])) < 0.6 * max(wide, high),
        "bounce": high > 0.07 and wide < 0.6 * high and turns >= 2,
        "still": max(wide, high) < 0.08 and 1 / 1.5 < growth < 1.5,
    }
    return bool(checks[motion])


def judge(clip: np.ndarray, scene: Scene) -> list[tuple[bool, bool]]:
    """(colour present, motion right) of every subject."""

    def one(subject: Subject) -> tuple[bool, bool]:
        path = track(clip, subject.color)
        return path is not None, path is not None and moves_as(path, subject.motion)

    return [one(subject) for subject in scene.subjects]


def choose(count: int, seed: int, max_subjects: int, world: World) -> list[Scene]:
    """Unseen scenes whose subjects differ in colour, so that colour distinguishes them."""
    stream = (
        world.scene_at(CHECK_STREAM, 100_000 * seed + i, max_subjects=max_subjects)
        for i in range(20 * count)
    )
    apart = (s for s in stream if len({subject.color for subject in s.subjects}) == len(s.subjects))
    return [scene for scene, _ in zip(apart, range(count), strict=False)]


def shares(verdicts: list[list[tuple[bool, bool]]]) -> dict[str, float]:
    """Over subjects: colour present, motion right; over prompts: every subject right in both."""
    subjects = [verdict for clip in verdicts for verdict in clip]
    if not subjects:
        return {"prompts": 0}
    return {
        "prompts": len(verdicts),
        "subjects": len(subjects),
        "color": round(float(np.mean([color for color, _ in subjects])), 4),
        "motion": round(float(np.mean([motion for _, motion in subjects])), 4),
        "all_right": round(float(np.mean([all(map(all, clip)) for clip in verdicts])), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path("assets/mini-wan"))
    parser.add_argument("--world", choices=sorted(WORLDS), default="shapes")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-subjects", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    args = parser.parse_args()

    world = WORLDS[args.world]
    scenes = choose(args.prompts, args.seed, args.max_subjects, world)
    pipe = DiffusionPipeline.from_pretrained(args.model)
    settings = settings_of(args.model, pipe)
    size = [int(settings[name]) for name in ("num_frames", "height", "width")]
    truth = (world.render(scenes, *size).permute(0, 2, 3, 4, 1).numpy() + 1) / 2
    pipe.to("cuda" if torch.cuda.is_available() else "cpu").set_progress_bar_config(disable=True)
    verdicts: list[list[tuple[bool, bool]]] = []
    for first in range(0, len(scenes), args.batch):
        group = scenes[first : first + args.batch]
        clips = sample(pipe, [s.caption() for s in group], args.seed + first, **settings)
        for clip, scene in zip(clips, group, strict=True):
            verdicts.append(judge(clip, scene))
            marks = " ".join(
                f"colour {'ok' if c else '--'} motion {'ok' if m else '--'}"
                for c, m in verdicts[-1]
            )
            print(f"{len(verdicts):3d} {marks}  {scene.caption()}", flush=True)
    result = {"mix": shares(verdicts)}
    for count in (1, 2, 3):
        result[f"{count}_subjects"] = shares([v for v in verdicts if len(v) == count])
    result["judge_on_true_renderings"] = shares(
        [judge(c, s) for c, s in zip(truth, scenes, strict=True)]
    )
    print(json.dumps({"model": str(args.model), "seed": args.seed, **result}))


if __name__ == "__main__":
    main()
