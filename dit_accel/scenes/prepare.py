"""Makes an installable scene from a layout: rows for shots and reference files, checked beforehand.

A layout (or its file) and a `SceneConfig` come in; a function that makes a `SceneAttention` for a
session goes out. Shots are rows 0, 1, ...; each file that subjects refer to is one more row after
them, also if several subjects refer to it. It reads the files and knows no model. Source: ours.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from dit_accel import layout
from dit_accel.core import video
from dit_accel.core.families import Family
from dit_accel.core.session import Session
from dit_accel.core.tokens import TokenGrid
from dit_accel.layout import Layout, LayoutError, Reference
from dit_accel.layout.load import IMAGES
from dit_accel.scenes import support
from dit_accel.scenes.isolation import SceneAttention
from dit_accel.scenes.references import ReferenceClips
from dit_accel.scenes.reposition import rotary
from dit_accel.scenes.rows import ClipRow, ReferenceLink, SceneConfig, token_rows

TRANSPARENT = "it has an alpha channel, whose colours behind it would show; save it without"
ANY_WIDTH = 12  # width of a head, for a check without a model

Prepared = Callable[[Session], SceneAttention]


def prepare(
    family: Family, given: Layout | str | os.PathLike[str] | None, config: SceneConfig | None
) -> Prepared | None:
    """A function that makes the scene of a layout for a session; None without a layout.

    Args:
        family: the family of the pipeline.
        given: a layout, or the path of one.
        config: the settings; None: the defaults.

    Raises:
        ValueError: the family or the layout is not accepted, a reference file cannot be read, or
            settings are given without a layout.
        FileNotFoundError: the layout file does not exist.
    """
    if given is None:
        if config is not None:
            raise ValueError("scene is given without layout; accepted: with a layout")
        return None
    support.check_family(family)
    found = given if isinstance(given, Layout) else layout.load(given)
    chosen = config or SceneConfig()
    clips, rows = _read(found, chosen)
    support.check_files(family, clips.frames)
    prompts = [[subject.prompt for subject in shot.subjects] for shot in found.shots]
    return lambda session: SceneAttention(session, family, chosen, prompts, rows, clips)


def check(found: Layout, grid: TokenGrid, config: SceneConfig | None = None) -> None:
    """Refuse a layout that does not fit a clip of this size, without a model.

    Raises:
        ValueError: a file cannot be read or has another length, or a subject has no token.
    """
    chosen = config or SceneConfig()
    token_rows(_read(found, chosen)[1](grid), grid, chosen, partial(rotary, width=ANY_WIDTH))


def _read(
    found: Layout, config: SceneConfig
) -> tuple[ReferenceClips, Callable[[TokenGrid], list[ClipRow]]]:
    """The reference clips of a layout, and a function from a grid to its rows."""
    files = files_of(found) if config.share else {}
    frames = [read_frames(reference, field) for reference, (_, field) in files.items()]
    prompts = [prompt for prompt, _ in files.values()]
    clips = ReferenceClips(frames, prompts, config.seed, len(found.shots))
    lengths = [len(clip) for clip in frames]
    return clips, lambda grid: rows_of(found, [*files], lengths, grid, config)


def files_of(found: Layout) -> dict[Reference, tuple[str, str]]:
    """References to files, each once, with prompt and field of the first subject that refers to the
    file."""
    files: dict[Reference, tuple[str, str]] = {}
    for i, shot in enumerate(found.shots):
        for j, subject in enumerate(shot.subjects):
            reference = subject.reference
            if reference is not None and reference.file is not None:
                field = f"shots[{i}].subjects[{j}].reference.file"
                files.setdefault(reference, (subject.prompt, field))
    return files


def rows_of(
    found: Layout, files: list[Reference], lengths: list[int], grid: TokenGrid, config: SceneConfig
) -> list[ClipRow]:
    """Shots, then files, as rows for a grid. `lengths`: the number of frames of each file."""
    rows = []
    for i, shot in enumerate(found.shots):
        links = []
        for j, subject in enumerate(shot.subjects):
            source = found.source(subject)
            if subject.reference is not None and subject.reference.file is not None and files:
                source = len(found.shots) + files.index(subject.reference), 0
            if source is not None and config.share:
                links.append(ReferenceLink(j, *source))
        try:
            cover = layout.coverage(shot, grid)
        except LayoutError as error:
            raise error.inside(f"shots[{i}]") from error
        z = tuple(subject.z for subject in shot.subjects)
        rows.append(ClipRow(shot.id, cover, z, tuple(links)))
    for n, (reference, length) in enumerate(zip(files, lengths, strict=True), start=1):
        # numbered, because a file may occur with several boxes
        name = f"file {n}: {_name(reference)}"
        rows.append(ClipRow(name, _cover(reference, length, grid), (0,)))
    return rows


def _cover(reference: Reference, length: int, grid: TokenGrid) -> torch.Tensor:
    """The coverage `(1, F, rows, columns)` of a file with `length` frames, fitted to the clip."""
    frames = grid.num_frames
    if reference.mask is None or length == frames:
        return layout.reference_coverage(reference, grid)[None]
    if length == 1:
        still = TokenGrid(1, grid.height, grid.width, strides=grid.strides)
        return layout.reference_coverage(reference, still).expand(1, grid.frames, -1, -1)
    raise ValueError(
        f"reference {_name(reference)} has a mask and {length} frames; "
        f"accepted with a mask: an image, or {frames} frames as the clip"
    )


def read_frames(reference: Reference, field: str) -> torch.Tensor:
    """The frames of an image or clip: `(T, H, W, 3)` float32 in [0, 1].

    Raises:
        ValueError: the file cannot be read; the message names the field.
    """
    path = reference.file
    assert path is not None, "a reference to a file"
    try:
        if path.suffix.lower() in IMAGES:
            frames = _image(path)[None]
        else:
            if video.codec_of(path).alpha:
                raise ValueError(TRANSPARENT)
            frames = torch.from_numpy(video.read_video(path)[0])
    except (OSError, ValueError) as error:
        raise ValueError(f"{field} is {path.name!r}, which cannot be read: {error}") from error
    return frames.float() / 255


def _image(path: Path) -> torch.Tensor:
    import cv2
    import numpy as np

    content = np.fromfile(path, np.uint8)
    found = cv2.imdecode(content, cv2.IMREAD_COLOR)
    if found is None:
        raise ValueError("it is no image that OpenCV reads")
    # does not rotate by EXIF, unlike other modes
    whole = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
    if whole is not None and whole.shape[2:] == (4,) and whole[..., 3].min() < whole[..., 3].max():
        raise ValueError(TRANSPARENT)
    return torch.from_numpy(found[..., ::-1].copy())


def _name(reference: Reference) -> str:
    return reference.file.name if reference.file is not None else ""
