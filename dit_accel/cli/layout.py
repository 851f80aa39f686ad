"""`dit-accel layout`: checks a layout file, or draws it.

In: a layout file. Out: its content as text or JSON, or a picture.
Knows files and sizes; runs no model. Ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dit_accel.cli.common import options
from dit_accel.cli.common.errors import BadInput, RunFailed, refused, unreadable
from dit_accel.cli.common.files import check_file, print_json
from dit_accel.cli.common.options import SizeOptions, argument, option
from dit_accel.cli.common.text import counted, plain_console
from dit_accel.cli.common.verb import Verb, Verbs, verb
from dit_accel.cli.run.request import check_clip
from dit_accel.core.files import reason_of
from dit_accel.core.generation import FALLBACK_FPS

if TYPE_CHECKING:
    from dit_accel.cli.layout_picture import Drawn
    from dit_accel.cli.model_config import ModelConfig
    from dit_accel.core.video import Frames
    from dit_accel.layout import Layout

PICTURES = (".png", ".mp4")
layout = typer.Typer(cls=Verbs, help="Check a layout file, or draw it.", no_args_is_help=True)


@dataclass(frozen=True, kw_only=True)
class LayoutFile:
    """The options of both verbs."""

    file: Path = argument(..., "A layout (YAML or JSON).", "FILE")
    outside: bool = option(False, "Allow files outside the layout's folder.")
    as_json: bool = options.as_json()
    verbose: bool = options.verbose()

    def load(self) -> Layout:
        """The layout. A file that is not a layout is refused."""
        from dit_accel.layout import load

        with unreadable(f"FILE is {str(self.file)!r}: "):
            return load(self.file, outside=self.outside)


@dataclass(frozen=True, kw_only=True)
class ValidateOptions(LayoutFile):
    """The options of `layout validate`."""


@dataclass(frozen=True, kw_only=True)
class PreviewOptions(LayoutFile, SizeOptions):
    """The options of `layout preview`."""

    output: Path = options.output(..., "A .png (some frames) or .mp4 (all).")
    over: list[Path] | None = option(
        None, "Draw over this clip; one for each shot.", metavar="CLIP", shown="plain grey"
    )
    columns: int = option(5, "Number of frames for each shot in a .png.", metavar="N")
    model: str | None = options.model()
    fps: float | None = options.fps()
    overwrite: bool = options.overwrite()


@layout.command(cls=Verb)
@verb(ValidateOptions)
def validate(given: ValidateOptions) -> None:
    """Check a layout file and show its content. All masks of a shot must have the same length."""
    from dit_accel.cli import layout_text

    found = given.load()
    lengths = _mask_lengths(found)
    if given.as_json:
        print_json(layout_text.as_content(found, lengths))
        return
    layout_text.show_layout(plain_console(), found)


@layout.command(cls=Verb)
@verb(PreviewOptions)
def preview(given: PreviewOptions) -> None:
    """Draw a layout: boxes, ids and the tokens of each subject.

    Sizes are those of the model's clips. Only configuration files are read.
    """
    check_clip(given)
    if not 1 <= given.columns <= 16:
        raise BadInput(f"--columns is {given.columns}; accepted: 1 to 16")
    check_file("--output", given.output, suffixes=PICTURES, overwrite=given.overwrite)
    from dit_accel.cli.model_config import read
    from dit_accel.models.loading import quiet_libraries

    found = given.load()
    clips = _clips(given.over or [], found)
    frames, height, width = clips[0].shape[:3] if clips else (None, None, None)
    with quiet_libraries(verbose=given.verbose):
        config = read(
            given.model, height=given.height or height, width=given.width or width,
            frames=given.frames or frames,
        )  # fmt: skip
        drawn = _drawn(found, config, clips)
    fps = given.fps or float(config.call.get("fps") or FALLBACK_FPS)
    _write(given.output, drawn, given.columns, fps)
    if given.as_json:
        content = {"picture": str(given.output), "shots": len(drawn)}
        print_json(content | {"height": config.height, "width": config.width})
        return
    size = f"{config.width}x{config.height}"
    typer.echo(f"{given.output}: {counted(len(drawn), 'shot')}, {size}")


def _mask_lengths(found: Layout) -> dict[str, int]:
    """The number of frames of the masks, for each shot with masks. Masks of unequal length in one
    shot are refused."""
    from dit_accel.layout import LayoutError, mask_chunks

    lengths: dict[str, int] = {}
    for i, shot in enumerate(found.shots):
        for j, subject in enumerate(shot.subjects):
            if subject.mask is None:
                continue
            field = f"shots[{i}].subjects[{j}].mask"
            try:
                count = sum(map(len, mask_chunks(subject.mask)))
            except LayoutError as error:
                raise BadInput(str(error.inside(field.removesuffix(".mask")))) from error
            if lengths.setdefault(shot.id, count) != count:
                raise BadInput(
                    f"{field} has {count} frames; accepted: {lengths[shot.id]}, as the masks "
                    "before it in this shot"
                )
    return lengths


def _drawn(found: Layout, config: ModelConfig, clips: list[Frames]) -> list[Drawn]:
    from dit_accel.cli.layout_picture import Drawn
    from dit_accel.layout import LayoutError, coverage
    from dit_accel.scenes.masks import labels

    grid = config.grid
    known = tuple(dict.fromkeys(subject.id for shot in found.shots for subject in shot.subjects))
    drawn = []
    for i, shot in enumerate(found.shots):
        try:
            shares = coverage(shot, grid)
            owner = labels(shares, [subject.z for subject in shot.subjects])
        except LayoutError as error:
            raise BadInput(str(error.inside(f"shots[{i}]"))) from error
        except ValueError as error:
            raise BadInput(f"shots[{i}]: {error}") from error
        owner = owner.view(grid.frames, grid.height, grid.width)
        drawn.append(Drawn(shot, owner, grid, clips[i] if clips else None, known))
    return drawn


def _clips(over: list[Path], found: Layout) -> list[Frames]:
    from dit_accel.core.video import read_video

    if not over:
        return []
    if len(over) != len(found.shots):
        raise BadInput(
            f"--over is given {len(over)} times; accepted: {len(found.shots)}, one for each shot"
        )
    clips = []
    for path in over:
        with refused(f"--over is {str(path)!r}: ", (ValueError, OSError)):
            clips.append(read_video(path)[0])
    if len({clip.shape for clip in clips}) != 1:
        shapes = ", ".join("x".join(map(str, clip.shape[:3])) for clip in clips)
        raise BadInput(
            f"--over has clips of {shapes} (frames, height, width); accepted: clips of one shape"
        )
    return clips


def _write(out: Path, drawn: list[Drawn], columns: int, fps: float) -> None:
    from dit_accel.cli.layout_picture import film, sheet
    from dit_accel.core import video

    still = out.suffix.lower() == ".png"
    frames = sheet(drawn, count=columns) if still else film(drawn)
    try:
        video.write_video(out, frames, fps=fps)
    except OSError as error:
        raise RunFailed(f"--output is {str(out)!r}: {reason_of(error)}") from error
    except ValueError as error:
        raise RunFailed(f"--output is {str(out)!r}: {error}") from error
