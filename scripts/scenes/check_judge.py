"""Measures how often the judge of scenes is right: true renderings, and scenes with an exchange.

    python scripts/scenes/check_judge.py                            # true renderings
    python scripts/scenes/check_judge.py --model assets/mini-wan    # through the model's VAE first

It prints one JSON line for each suite. On a true rendering, the judge must find every subject
right. On a rendering whose colours or shapes were exchanged between the subjects it must find them
wrong and swapped. With `--model` the renderings go through the model's VAE first: no method can
score above that.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "miniature"))

from scene_cases import case_at
from scene_checks import expected_of, judge
from scene_shapes import through_vae
from world import DEFAULT, Scene, render


def exchanged(scene: Scene, field: str) -> Scene:
    """The same scene with one property moved from each subject to the next."""
    values = [getattr(subject, field) for subject in scene.subjects]
    moved = values[1:] + values[:1]
    subjects = [
        dataclasses.replace(s, **{field: value})
        for s, value in zip(scene.subjects, moved, strict=True)
    ]
    return dataclasses.replace(scene, subjects=tuple(subjects))


def trust(
    scenes: Sequence[Scene],
    vae: torch.nn.Module | None = None,
    fields: Sequence[str] = ("", "color", "shape"),
) -> dict[str, float]:
    """How often the judge is right on scenes with and without an exchange of a property."""
    found = {"scenes": float(len(scenes))}
    for field in fields:
        drawn = [exchanged(scene, field) if field else scene for scene in scenes]
        clips = render(drawn, *DEFAULT)
        seen = (
            (clips.permute(0, 2, 3, 4, 1).numpy() + 1) / 2
            if vae is None
            else through_vae(vae, clips)
        )
        verdicts = [judge(c, expected_of(s)) for c, s in zip(seen, scenes, strict=True)]
        if field:
            found[f"{field}_wrong"] = float(np.mean([not v.right for v in verdicts]))
            found[f"{field}_swapped"] = float(np.mean([v.swapped for v in verdicts]))
            continue
        for name in ("right", "merged", "swapped"):
            found[name] = float(np.mean([getattr(v, name) for v in verdicts]))
        for name in ("color", "shape", "motion"):
            found[name] = float(np.mean([x for v in verdicts for x in getattr(v, name)]))
    return {name: round(value, 4) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=64, help="of each suite")
    parser.add_argument("--model", type=Path, help="whose VAE the renderings go through first")
    args = parser.parse_args()
    vae = None
    if args.model is not None:
        from diffusers import AutoencoderKLWan

        vae = AutoencoderKLWan.from_pretrained(args.model / "vae").float()
    for suite in ("two", "three", "similar"):
        scenes = [case_at(suite, index).scenes[0] for index in range(args.scenes)]
        print(json.dumps({"suite": suite, **trust(scenes, vae)}), flush=True)


if __name__ == "__main__":
    main()
