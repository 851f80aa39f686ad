"""Public configurations of real checkpoints: what builds a denoiser of true size without weights.

In: `checkpoints.yaml`, beside this file. Out: `DENOISERS`, a row a checkpoint: diffusers classes,
the configuration of its hub repository where it is not the class's default, the shape of a prompt's
embeddings, its authors' clip. A new checkpoint is a new row in the file.
Knows names and numbers only; nothing is downloaded. `small` is for a machine without a GPU: the
same classes with fewer, narrower blocks; its seconds are the machinery's, not the model's.
Source: the `config.json` files of the checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Shape:
    """Of a clip, in pixels and frames."""

    height: int
    width: int
    frames: int

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


@dataclass(frozen=True)
class LatentStrides:
    """What a clip's size must be a multiple of; frames are 1 more than a multiple of theirs."""

    spatial: int
    temporal: int


@dataclass(frozen=True)
class TextShape:
    """Embeddings of a prompt, as the pipeline's call takes them.

    Args:
        tokens, width: of the text, `(1, tokens, width)`.
        pooled: width of the pooled embedding, or None where there is none.
        masked: whether a mask of the text's tokens goes along.
        negative: whether the pipeline takes those of a negative prompt, too.
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
        name: on the command line.
        checkpoint: the hub repository of its configuration.
        transformer, pipeline, scheduler: names of diffusers classes.
        config: of the transformer, over the class's defaults.
        scheduling: of the scheduler, over the class's defaults.
        prompt: the shape of its embeddings.
        strides: of its VAE and patches together.
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
    """The rows of a file; a missing or an unknown field is a `KeyError` or a `TypeError`."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # six times as fast, where it is built
    rows = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)["checkpoints"]
    return {name: _denoiser(name, row) for name, row in rows.items()}


def _denoiser(name: str, row: dict[str, Any]) -> Denoiser:
    nested = {key: kind(**row[key]) for key, kind in _TYPES.items()}
    return Denoiser(name, **{**row, **nested, "components": dict.fromkeys(row["components"])})


DENOISERS: dict[str, Denoiser] = _read(Path(__file__).with_name("checkpoints.yaml"))
