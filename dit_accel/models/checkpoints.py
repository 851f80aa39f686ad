"""Public configurations of real checkpoints, to build denoisers of true size without weights.

In: `checkpoints.yaml`, beside this file. Out: `DENOISERS`, one row for each checkpoint: diffusers
classes, the configuration of its hub repository where it differs from the class's default, the
shape of a prompt's embeddings, its authors' clip. A new checkpoint is a new row in the file.
Knows only names and numbers; nothing is downloaded. `small` is for a machine without a GPU: the
same classes with fewer, narrower blocks. Its seconds are those of our code, not of the model.
Source: the `config.json` files of the checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Shape:
    """The shape of a clip, in pixels and frames."""

    height: int
    width: int
    frames: int

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


@dataclass(frozen=True)
class LatentStrides:
    """The numbers that a clip's size must be a multiple of. The number of frames is 1 more than a
    multiple."""

    spatial: int
    temporal: int


@dataclass(frozen=True)
class TextShape:
    """The shape of a prompt's embeddings in the pipeline's call.

    Args:
        tokens, width: shape of the text, `(1, tokens, width)`.
        pooled: width of the pooled embedding; None if there is none.
        masked: whether there is also a mask of the text's tokens.
        negative: whether the pipeline also takes embeddings of a negative prompt.
    """

    tokens: int
    width: int
    pooled: int | None = None
    masked: bool = False
    negative: bool = True


@dataclass(frozen=True)
class Denoiser:
    """One checkpoint.

    Args:
        name: the name on the command line.
        checkpoint: the hub repository of its configuration.
        transformer, pipeline, scheduler: names of diffusers classes.
        config: the transformer's settings that differ from the class's defaults.
        scheduling: the scheduler's settings that differ from the class's defaults.
        prompt: the shape of its embeddings.
        strides: those of its VAE and patches together.
        shape, steps, guidance: its authors' usual clip.
        small, small_shape, small_prompt: configuration, clip and embeddings for a machine without a
            GPU.
        components: the other components of the pipeline, which are None.
    """

    name: str
    checkpoint: str
    transformer: str
    pipeline: str
    scheduler: str
    config: dict[str, Any]
    scheduling: dict[str, Any]
    prompt: TextShape
    strides: LatentStrides
    shape: Shape
    guidance: float
    small: dict[str, Any]
    small_shape: Shape
    small_prompt: TextShape
    steps: int = 50
    components: dict[str, None] = field(default_factory=dict)


_TYPES = {
    "prompt": TextShape,
    "strides": LatentStrides,
    "shape": Shape,
    "small_shape": Shape,
    "small_prompt": TextShape,
}


def _read(path: Path) -> dict[str, Denoiser]:
    """The rows of a file. A missing or unknown field raises a `KeyError` or a `TypeError`."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # six times as fast, if it is built in
    rows = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)["checkpoints"]
    return {name: _denoiser(name, row) for name, row in rows.items()}


def _denoiser(name: str, row: dict[str, Any]) -> Denoiser:
    nested = {key: kind(**row[key]) for key, kind in _TYPES.items()}
    return Denoiser(name, **{**row, **nested, "components": dict.fromkeys(row["components"])})


DENOISERS: dict[str, Denoiser] = _read(Path(__file__).with_name("checkpoints.yaml"))
