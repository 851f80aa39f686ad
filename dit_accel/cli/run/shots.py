"""The shots of a layout: one clip for each, and a sheet of all clips.

In: a layout and settings. Out: file names, frames by file, and arguments of the pipeline's call.
Knows that a shot is one prompt of the call; knows nothing of attention. Ours.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_accel.cli.common.errors import BadInput, refused
from dit_accel.cli.common.files import Files, name_files

if TYPE_CHECKING:
    import numpy.typing as npt

    from dit_accel.cli.run.settings import Settings, SizeStrides
    from dit_accel.core.generation import Generation
    from dit_accel.layout import Layout
    from dit_accel.models.folder import LoadableModel


def check_family(model: LoadableModel) -> None:
    """Refuse a family in which a layout is not known to work, before loading."""
    from dit_accel.models.families import FAMILIES

    if model.family.rotary is None:
        able = ", ".join(row.name for row in FAMILIES.values() if row.rotary is not None)
        raise BadInput(f"--layout is given: the family is {model.family.name}; accepted: {able}")


def check_fits(layout: Layout, settings: Settings, strides: SizeStrides) -> None:
    """Refuse a layout that does not fit in a clip of this size, before the work."""
    from dit_accel.core.tokens import TokenGrid, TokenStrides
    from dit_accel.scenes import prepare

    tokens = TokenStrides(strides.temporal, strides.pixels_per_token, 1)
    size = settings.frames, settings.height, settings.width
    with refused(f"--layout is {settings.accel.layout!r}: ", (ValueError, OSError)):
        grid = TokenGrid.from_pixels(*size, strides=tokens)
        prepare.check(layout, grid, settings.accel.scene)


def files_of(output: Path, layout: Layout, *, compare: bool) -> Files:
    """The names of one clip for each shot, and of the sheet.

    A single shot has the plain name. With several shots, each name ends with the id of its shot.
    """
    ids = [shot.id for shot in layout.shots]
    each = [output] if len(ids) == 1 else [output.with_stem(f"{output.stem}-{id}") for id in ids]
    first, *others = (name_files(path, compare=compare) for path in each)
    more = {"sheet": output.with_name(f"{output.stem}-sheet.png")}
    for id, files in zip(ids[1:], others, strict=True):
        found = {k: path for k, path in files.present().items() if k != "sidecar"}
        more |= {f"{name} {id}": path for name, path in found.items()}
    sidecar = output.with_name(output.name + ".json")
    return dataclasses.replace(first, sidecar=sidecar, more=more)


def clips_of(
    files: Files, layout: Layout, result: Generation, uncached: Generation | None
) -> dict[Path, npt.NDArray[Any]]:
    """The frames of every picture file of a run, by path."""
    from dit_accel.cli.common import files as single
    from dit_accel.core import video

    shots = [shot.id for shot in layout.shots]
    made = result.clips
    references = uncached.clips if uncached is not None else (None,) * len(shots)
    clips = single.clips_of(files, made[0], references[0])
    path = files.more.get
    for id, clip, reference in zip(shots[1:], made[1:], references[1:], strict=True):
        pair = path(f"compare {id}"), path(f"uncached {id}")
        other = Files(files.more[f"video {id}"], files.sidecar, *pair)
        clips |= single.clips_of(other, clip, reference)
    clips[files.more["sheet"]] = video.film_strips(made, labels=shots)[None]
    return clips


def overrides(settings: Settings) -> dict[str, Any]:
    """The arguments of the pipeline's call, with one prompt for each shot.

    Each shot has its own generator, so that it does not depend on the number of shots.
    """
    if not settings.prompts:
        return {}
    import torch

    seeds = (settings.seed + i for i in range(len(settings.prompts)))
    return {
        "prompt": list(settings.prompts),
        "generator": [torch.Generator("cpu").manual_seed(seed) for seed in seeds],
    }


def as_one(result: Generation) -> Generation:
    """A run with its shots in sequence in one clip, to compare all of them at once."""
    import numpy as np

    return dataclasses.replace(result, frames=np.concatenate(result.clips), others=())


@contextlib.contextmanager
def without_cache(pipe: Any, settings: Settings) -> Iterator[None]:
    """Install the scene without a cache, for the uncached reference. Without a layout, nothing is
    installed."""
    if settings.accel.layout is None:
        yield
        return
    from dit_accel import accelerate

    with accelerate(pipe, layout=settings.accel.layout, scene=settings.accel.scene):
        yield
