"""Pictures and videos that a clip starts from: whether the pipeline accepts them, and their size.

In: the options and a model's folder. Out: `Inputs`, with the size of the clip that follows from
them.
Knows the signature of the pipeline's call, and the files' headers; loads no weights. Ours.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_accel.cli.common.errors import BadInput, as_option, flag
from dit_accel.core.files import reason_of
from dit_accel.core.generation import INPUT_FILES, INPUTS

if TYPE_CHECKING:
    from dit_accel.models.folder import LoadableModel

# The models that accept an input: named in the error if another model gets it.
_CHANGING = "Wan 2.1, Wan 2.2 TI2V and CogVideoX text-to-video"
TAKING = {
    "image": "LTX, Wan 2.2 TI2V, and image-to-video of Wan, CogVideoX and HunyuanVideo",
    "last_image": "Wan image-to-video",
    "video": _CHANGING,
    "strength": _CHANGING,
}


@dataclass(frozen=True)
class Inputs:
    """The inputs of the pipeline.

    Args:
        size: width and height of the first picture, in pixels.
        frames, fps: those of the video.
    """

    image: str | None = None
    last_image: str | None = None
    video: str | None = None
    strength: float | None = None
    size: tuple[int, int] | None = None
    frames: int | None = None
    fps: float | None = None

    def defaults(self, usual: dict[str, Any], spatial: int, temporal: int) -> dict[str, Any]:
        """The clip's size if it was not typed: the input's shape, with the model's usual area.

        Args:
            usual: the model's defaults, by the pipeline's arguments.
            spatial, temporal: sizes are multiples of `spatial`; frames are 1 more than a multiple
                of `temporal`.
        """
        found: dict[str, Any] = {}
        height, width = usual.get("height"), usual.get("width")
        if self.size is not None and height and width:
            ratio, area = self.size[1] / self.size[0], height * width
            sides = math.sqrt(area * ratio), math.sqrt(area / ratio)
            found["height"], found["width"] = (
                max(round(side / spatial), 1) * spatial for side in sides
            )
        if self.frames is not None:
            most = min(self.frames, usual.get("num_frames") or self.frames)
            found["num_frames"] = (most - 1) // temporal * temporal + 1
        return found | ({"fps": self.fps} if self.fps else {})


def read(options: Any, model: LoadableModel) -> Inputs:
    """Check the inputs against the pipeline, and read the sizes in their files.

    Args:
        options: the options, which include `InputOptions`.

    Raises:
        BadInput: the pipeline does not accept an input, or needs one that is missing; or a file
            cannot be read.
    """
    import diffusers

    name = str(model.index["_class_name"])
    parameters = inspect.signature(getattr(diffusers, name).__call__).parameters
    for option in INPUTS:
        value = getattr(options, option)
        if value is not None and option not in parameters:
            raise BadInput(
                f"{flag(option)} is {str(value)!r}, but --model is a {name}, which takes none; "
                f"accepted with models of {TAKING[option]}"
            )
    if options.last_image is not None and model.index.get("expand_timesteps"):
        raise BadInput(
            f"--last-image is {str(options.last_image)!r}, but --model uses only a first frame"
        )
    if options.strength is not None and options.video is None:
        raise BadInput(f"--strength is {options.strength:g}; accepted: with --video only")
    for option in ("image", "video"):
        if getattr(options, option) is None and _needs(parameters, option, name):
            raise BadInput(f"{flag(option)} is not given: --model is a {name}, which needs one")
    # absolute paths, so that a process in another folder finds the files
    paths = {option: getattr(options, option) for option in INPUT_FILES}
    given = {o: str(path.expanduser().absolute()) for o, path in paths.items() if path is not None}
    size, frames, fps = None, None, None
    for option in ("last_image", "image"):
        if option in given:
            size = _picture_size(option, str(paths[option]))
    if "video" in given:
        size, frames, fps = _video_size(str(paths["video"]))
    return Inputs(**given, strength=options.strength, size=size, frames=frames, fps=fps)


def _needs(parameters: Any, option: str, pipeline: str) -> bool:
    """Whether the call fails without an input. Some pipelines need an input although it has a
    default."""
    found = parameters.get(option)
    if found is None:
        return False
    needed = f"{option.title()}ToVideo" in pipeline and "Condition" not in pipeline
    return found.default is found.empty or needed


def _picture_size(option: str, path: str) -> tuple[int, int]:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            size = picture.size
            picture.convert("RGB")  # this fails if the picture is cut off
            return size
    except OSError as error:
        reason = reason_of(error) if error.errno else "no picture that can be read"
        raise BadInput(f"{flag(option)} is {path!r}: {reason}") from error


def _video_size(path: str) -> tuple[tuple[int, int], int, float | None]:
    from dit_accel.core import video

    try:
        frames, fps = video.read_video(Path(path))
    except (OSError, ValueError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else as_option(str(error))
        reason = reason.replace("path is", "it is")
        raise BadInput(f"--video is {path!r}: {reason}") from error
    return (frames.shape[2], frames.shape[1]), len(frames), fps
