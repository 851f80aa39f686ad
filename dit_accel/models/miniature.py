"""Finds the embedded miniature model, and reads a model folder's defaults for the pipeline's call.

In: nothing, or a model folder. Out: paths; defaults by the names of the pipeline's call.
Knows: the miniature is a small trained Wan pipeline in diffusers' folder format. In the wheel it is
`dit_accel/assets/mini-wan`, in a source checkout `assets/mini-wan` beside the package. Loads no
weights and imports no torch.
Source: ours.
"""

from __future__ import annotations

import importlib.resources
import os
from pathlib import Path
from typing import Any

from dit_accel.models.json_file import read_object

MINIATURE_NAME = "mini-wan"
CALIBRATION = "calibration.jsonl"
DEFAULTS_FILE = "generation_defaults.json"
DEFAULT_KEYS = ("height", "width", "num_frames", "num_inference_steps", "guidance_scale",
                "max_sequence_length", "fps")  # fmt: skip


def path() -> Path:
    """The folder of the embedded miniature, for `WanPipeline.from_pretrained`.

    Raises:
        FileNotFoundError: it is neither in the installed package nor in a source checkout.
    """
    return _asset(MINIATURE_NAME, "model_index.json", "the embedded miniature is missing")


def prompts(name: str) -> Path:
    """A file of prompts of the miniature's world, e.g. `CALIBRATION`.

    Raises:
        FileNotFoundError: see `path`.
    """
    return _asset("prompts", name, "the miniature's prompts are missing") / name


def call_defaults(folder: str | os.PathLike[str]) -> dict[str, int | float]:
    """The content of a model folder's `generation_defaults.json`.

    Args:
        folder: any local model folder in the diffusers format.

    Returns:
        Values for some of `DEFAULT_KEYS`, the names in the pipeline's call; empty without the file.

    Raises:
        ValueError: the file is not a JSON object of positive numbers with those keys.
    """
    source = Path(folder, DEFAULTS_FILE)
    if not source.is_file():
        return {}
    found = read_object(source)
    if set(found) - set(DEFAULT_KEYS):
        raise ValueError(
            f"{source} has {found!r:.200}; accepted: an object of {', '.join(DEFAULT_KEYS)}"
        )
    return {key: _number(source, key, value) for key, value in found.items()}


def _asset(folder: str, file: str, missing: str) -> Path:
    """The folder of the assets that has a file: in the package, else beside it."""
    beside = Path(__file__).resolve().parents[2] / "assets" / folder
    places = [place for place in (_installed(folder), beside) if place is not None]
    for place in places:
        if (place / file).is_file():
            return place
    raise FileNotFoundError(f"{missing}: no {file} in {' or '.join(map(str, places))}")


def _installed(folder: str) -> Path | None:
    """The copy in the wheel; None in a checkout, where `dit_accel.assets` is not a package."""
    try:
        return Path(str(importlib.resources.files("dit_accel.assets") / folder))
    except ModuleNotFoundError:
        return None


def _number(source: Path, key: str, value: Any) -> int | float:
    whole = key not in ("guidance_scale", "fps")
    kinds = (int,) if whole else (int, float)
    # comparisons are false for NaN
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < 2**31:
        kind = "whole number" if whole else "number"
        raise ValueError(f"{key} is {value!r:.80} in {source}; accepted: a {kind} above 0")
    return value
