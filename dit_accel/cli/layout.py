"""`dit-accel layout`: check a layout file and draw it; no model runs."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from dit_accel.cli import layout_text as words
from dit_accel.cli.common import options
from dit_accel.cli.common.errors import BadInput, RunFailed, reported

if TYPE_CHECKING:
    from dit_accel.cli.layout_picture import Drawn
    from dit_accel.cli.model_config import Blueprint
    from dit_accel.core.video import Frames
    from dit_accel.layout import Layout

PICTURES = (".png", ".mp4")
layout = typer.Typer(help="Check a layout file, or draw it.", no_args_is_help=True)

File = Annotated[
    Path, typer.Argument(metavar="FILE", help="A layout: YAML or JSON.", show_default=False)
]
Outside = Annotated[
    bool, typer.Option("--outside", help="It may name files outside its own folder.")
]


@layout.command()
def validate(
    file: File,
    outside: Outside = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Check a layout file, and say what is in it; masks must be clips of one length a shot."""
    with reported(verbose=verbose):
        found = _load(file, outside)
        lengths = _mask_lengths(found)
        if as_json:
            _print_json(words.as_content(found, lengths))
            return
        words.show_layout(Console(highlight=False), found)


@layout.command()
def preview(
    file: File,
    out: Annotated[
        Path,
        typer.Option(help="Ends in .png (some frames) or .mp4 (all).", show_default=False),
    ],
    over: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="CLIP",
            help="Draw over this clip; one for each shot, in order.",
            show_default="plain grey",
        ),
    ] = None,
    count: Annotated[int, typer.Option("--columns", help="Frames of a shot, of a PNG.")] = 5,
    model: options.Model = None,
    height: options.Height = None,
    width: options.Width = None,
    frames: options.Frames = None,
    fps: options.Fps = None,
    overwrite: options.Overwrite = False,
    outside: Outside = False,
    verbose: options.Verbose = False,
) -> None:
    """Draw a layout: boxes, ids and the tokens that each subject has, over frames.

    Sizes are those of the model's clips, its configuration files alone are read.
    """
    with reported(verbose=verbose):
        if out.suffix.lower() not in PICTURES:
            raise BadInput(f"--out is {str(out)!r}: must end in {' or '.join(PICTURES)}")
        if out.exists() and not overwrite:
            raise BadInput(f"--out is {str(out)!r}: it exists; pass --overwrite to replace it")
        if not 1 <= count <= 16:
            raise BadInput(f"--columns is {count}: must be from 1 to 16")
        found = _load(file, outside)
        clips = _clips(over, found)
        size = _size_of(clips)
        with _muted(verbose):
            asked = (height or size[1], width or size[2], frames or size[0])
            plan = _blueprint(model, *asked)
            drawn = _drawn(found, plan, clips)
        _write(out, drawn, count, fps or float(plan.call.get("fps") or 16))
        typer.echo(f"{out}: {words.count(len(drawn), 'shot')}, {plan.width}x{plan.height}")


def _load(file: Path, outside: bool) -> Layout:
    from dit_accel.layout import load

    try:
        return load(file, outside=outside)
    except (ValueError, OSError) as error:
        raise BadInput(f"FILE is {str(file)!r}: {error}") from error


def _mask_lengths(found: Layout) -> dict[str, int]:
    """Frames of the masks of each shot that has any.

    Raises:
        BadInput: masks of a shot differ in length, or one is no clip.
    """
    from dit_accel.core.video import stream_video

    lengths: dict[str, int] = {}
    for i, shot in enumerate(found.shots):
        for j, subject in enumerate(shot.subjects):
            if subject.mask is None:
                continue
            field = f"shots[{i}].subjects[{j}].mask"
            try:
                count = sum(len(chunk) for chunk in stream_video(subject.mask))
            except (ValueError, OSError) as error:
                raise BadInput(f"{field} cannot be read: {error}") from error
            if lengths.setdefault(shot.id, count) != count:
                raise BadInput(
                    f"{field} has {count} frames; accepted: {lengths[shot.id]}, as the masks "
                    "before it in this shot"
                )
    return lengths


def _blueprint(
    model: str | None, height: int | None, width: int | None, frames: int | None
) -> Blueprint:
    from dit_accel.cli.model_config import read

    return read(model, height=height, width=width, frames=frames)


def _drawn(found: Layout, plan: Blueprint, clips: list[Frames]) -> list[Drawn]:
    from dit_accel.cli.layout_picture import Drawn
    from dit_accel.layout import LayoutError, coverage
    from dit_accel.scenes.masks import labels

    grid = plan.grid
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


def _clips(over: list[Path] | None, found: Layout) -> list[Frames]:
    from dit_accel.core.video import read_video

    if not over:
        return []
    if len(over) != len(found.shots):
        raise BadInput(f"--over is given {len(over)} times: must be {len(found.shots)}, one a shot")
    clips = []
    for path in over:
        try:
            clips.append(read_video(path)[0])
        except (ValueError, OSError) as error:
            raise BadInput(f"--over is {str(path)!r}: {error}") from error
    if len({clip.shape for clip in clips}) != 1:
        shapes = ", ".join("x".join(map(str, clip.shape[:3])) for clip in clips)
        raise BadInput(f"--over are clips of {shapes} (frames, height, width): must be equal")
    return clips


def _size_of(clips: list[Frames]) -> tuple[int | None, int | None, int | None]:
    """Frames, height and width of the clips; None where there are none."""
    return clips[0].shape[:3] if clips else (None, None, None)


def _write(out: Path, drawn: list[Drawn], columns: int, fps: float) -> None:
    from dit_accel.cli.layout_picture import film, sheet
    from dit_accel.core import video

    still = out.suffix.lower() == ".png"
    frames = sheet(drawn, count=columns) if still else film(drawn)
    try:
        video.write_video(out, frames, fps=fps)
    except (ValueError, OSError) as error:
        raise RunFailed(f"--out is {str(out)!r}: {error}") from error


def _print_json(content: dict[str, Any]) -> None:
    from dit_accel.cli.common.files import as_json

    sys.stdout.write(as_json(content) + "\n")


def _muted(verbose: bool) -> contextlib.AbstractContextManager[None]:
    from dit_accel.models.loading import quiet_libraries

    return quiet_libraries(verbose=verbose)
