"""Run a pipeline once and return frames, latents, seconds and peak memory.

A pipeline and a `ClipSpec` come in; a `Generation` goes out. The denoising loop is timed from the
denoiser's first call to the end of the last step. Accelerated and stock runs are timed in the same
way, so that their ratio is fair. The module knows the arguments of diffusers' video pipelines and
nothing of acceleration. Source: ours.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dit_accel.core.document import Field
from dit_accel.models.families import EXPERTS

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from dit_accel.core.measure import LoopTimer, StepListener, Stopwatch
    from dit_accel.core.report import Report


LARGEST_SEED = 2**63 - 1
FALLBACK_FPS = 16.0  # of a model that states no frame rate
INPUT_FILES = ("image", "last_image", "video")  # what a clip may start from, beside its prompt
INPUTS = (*INPUT_FILES, "strength")
_FRAMES = ("num_frames", "frames", "video_length")  # what pipelines call the number of frames
# Some pipelines have these elsewhere: the scale in a guider, the size in a given picture.
_ELSEWHERE = ("guidance_scale", "height", "width")


@dataclass(frozen=True)
class ClipSpec:
    """All settings that determine a clip of a model. None: the pipeline has no such argument.

    Args:
        image, last_image, video: paths of files that the pipeline gets.
        strength: how much a given video is changed, in (0, 1].
        guidance_2: guidance scale of the second of two experts; None: that of the first.
    """

    prompt: str
    negative: str | None
    seed: int
    steps: int
    guidance: float
    height: int
    width: int
    frames: int
    fps: float | None = None
    max_sequence_length: int | None = None
    image: str | None = None
    last_image: str | None = None
    video: str | None = None
    strength: float | None = None
    guidance_2: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-able data. Settings that were added in later versions are left out
        if they are None, so that older records of the same clip stay equal."""
        fields, later = dataclasses.asdict(self), (*INPUTS, "guidance_2")
        return {k: v for k, v in fields.items() if k not in later or v is not None}


def clip_of(field: Field) -> ClipSpec:
    """The settings of a clip from a document.

    Raises:
        DocumentError: a setting is missing or not accepted. The message names it.
    """
    field.only([one.name for one in dataclasses.fields(ClipSpec)])
    negative, fps = field.find("negative"), field.find("fps")
    longest, strength = field.find("max_sequence_length"), field.find("strength")
    second = field.find("guidance_2")
    optional: dict[str, Any] = {
        name: one.text() for name in INPUT_FILES if (one := field.find(name))
    }
    sizes = ("steps", "height", "width", "frames")
    counts: dict[str, Any] = {name: field.at(name).whole(1, 10**9) for name in sizes}
    return ClipSpec(
        prompt=field.at("prompt").text(),
        negative=negative.text() if negative else None,
        seed=field.at("seed").whole(0, LARGEST_SEED),
        guidance=field.at("guidance").number(0, 1e6),
        fps=fps.number(1e-3, 1e6) if fps else None,
        **optional,
        strength=strength.number(0, 1) if strength else None,
        guidance_2=second.number(0, 1e6) if second else None,
        max_sequence_length=longest.whole(1, 10**9) if longest else None,
        **counts,
    )


@dataclass(frozen=True)
class Generation:
    """One clip and its costs.

    Args:
        frames: `(T, H, W, 3)` float in [0, 1].
        latents: `(B, C, F, h, w)` float32, of the last step; packed, `(B, L, C)`, in LTX.
        stages: seconds by stage: the text (with given pictures), each denoiser, the decoding.
        report: the report of an accelerated run.
        others: frames of the clips of the call's other prompts.
    """

    frames: npt.NDArray[np.floating[Any]]
    latents: npt.NDArray[np.float32]
    denoising_seconds: float
    whole_seconds: float
    peak_memory_bytes: int | None
    stages: dict[str, float] = dataclasses.field(default_factory=dict)
    report: Report | None = None
    others: tuple[npt.NDArray[np.floating[Any]], ...] = ()

    @property
    def clips(self) -> tuple[npt.NDArray[np.floating[Any]], ...]:
        """All clips of the call, one per prompt."""
        return self.frames, *self.others

    def without(self, loop: float, decode: float) -> Generation:
        """The same generation, without seconds that were spent on something else.

        Args:
            loop: seconds to subtract from the denoising loop.
            decode: seconds to subtract from the stage after it.
        """
        denoise = next(name for name in self.stages if name.startswith("denoise"))
        less = {denoise: loop, "decode": decode}
        return dataclasses.replace(
            self,
            denoising_seconds=self.denoising_seconds - loop,
            whole_seconds=self.whole_seconds - loop - decode,
            stages={name: value - less.get(name, 0.0) for name, value in self.stages.items()},
        )

    def costs(self) -> dict[str, Any]:
        """Seconds and memory as JSON-able data."""
        return {
            "denoising_seconds": self.denoising_seconds,
            "whole_seconds": self.whole_seconds,
            "stage_seconds": dict(self.stages),
            "peak_memory_bytes": self.peak_memory_bytes,
        }


class NotFiniteError(RuntimeError):
    """The model's frames have NaN or infinite values."""


def generate(
    pipe: Any, clip: ClipSpec, *, device: str, listeners: tuple[StepListener, ...] = (),
    overrides: dict[str, Any] | None = None,
) -> Generation:  # fmt: skip
    """Make a clip.

    Args:
        pipe: a diffusers video pipeline.
        clip: the settings of the clip.
        device: of the pipeline; synchronised before and after timing.
        listeners: notified of the loop's progress.
        overrides: call arguments that replace the clip's.

    Raises:
        NotFiniteError: a frame has NaN or infinite values.
    """
    import numpy as np

    from dit_accel.core import measure

    arguments = call_arguments(pipe, clip) | (overrides or {})
    clock = loop_timer(pipe, arguments, device, listeners)
    with clock, measure.Stopwatch(device) as measured:
        frames, *others = pipe(**arguments, callback_on_step_end=clock.step_ended).frames
    if not all(np.isfinite(clip).all() for clip in (frames, *others)):
        raise NotFiniteError("the model made frames that are not finite")
    return Generation(
        frames=frames,
        latents=clock.latents.float().cpu().numpy(),
        denoising_seconds=clock.seconds,
        whole_seconds=measured.seconds,
        stages=stages_of(pipe, clock, measured),
        peak_memory_bytes=measured.peak_memory_bytes,
        others=tuple(others),
    )


def stages_of(pipe: Any, clock: LoopTimer, whole: Stopwatch) -> dict[str, float]:
    """Seconds of a call by stage: before the loop, each denoiser in it, and after it."""
    before = clock.begun - whole.begun
    names = [name for name in EXPERTS if getattr(pipe, name, None) is not None]
    shown = [f"denoise, {name}" for name in names] if len(names) > 1 else ["denoise"]
    return {
        "text": before,
        **dict(zip(shown, clock.seconds_by_model, strict=True)),
        "decode": max(whole.seconds - before - clock.seconds, 0.0),
    }


def warm_up(pipe: Any, clip: ClipSpec) -> None:
    """Run two steps and drop the result, because a first call also allocates and loads kernels.

    It is two steps, because a schedule that is stretched to an end value (LTX) needs at least two.
    """
    whole = dataclasses.replace(clip, strength=1.0) if clip.strength is not None else clip
    pipe(**call_arguments(pipe, whole) | {"num_inference_steps": 2})


def call_arguments(pipe: Any, clip: ClipSpec) -> dict[str, Any]:
    """The arguments of the pipeline's call. The noise is made on the CPU, so that it is equal on
    every device."""
    import torch

    optional = {
        "negative_prompt": clip.negative,
        "max_sequence_length": clip.max_sequence_length,
        "frame_rate": clip.fps,
        "guidance_scale_2": clip.guidance_2,
    }
    parameters = inspect.signature(pipe.__call__).parameters
    frames = next((name for name in _FRAMES if name in parameters), _FRAMES[0])
    found: dict[str, Any] = {
        "prompt": clip.prompt,
        "height": clip.height,
        "width": clip.width,
        frames: clip.frames,
        "num_inference_steps": clip.steps,
        "guidance_scale": clip.guidance,
        "generator": torch.Generator("cpu").manual_seed(clip.seed),
        "output_type": "np",
    }
    # Without `num_frames`, a given video's own number of frames counts.
    elsewhere = found if "video" in parameters else _ELSEWHERE
    return (
        {k: v for k, v in found.items() if k in parameters or k not in elsewhere}
        | {k: v for k, v in optional.items() if k in parameters and v is not None}
        | _inputs(clip)
    )


def _inputs(clip: ClipSpec) -> dict[str, Any]:
    """The pictures and the first frames of a video that the pipeline gets as arguments."""
    from PIL import Image

    found: dict[str, Any] = {}
    for name in ("image", "last_image"):
        path = getattr(clip, name)
        if path is not None:
            with Image.open(path) as picture:
                found[name] = picture.convert("RGB")
    if clip.video is not None:
        from dit_accel.core import video

        frames, _ = video.read_video(clip.video)
        found["video"] = [Image.fromarray(frame) for frame in frames[: clip.frames]]
    if clip.strength is not None:
        found["strength"] = clip.strength
    return found


def _takes(pipe: Any, argument: str) -> bool:
    return argument in inspect.signature(pipe.__call__).parameters


def batch_arguments(pipe: Any, clips: Sequence[ClipSpec]) -> dict[str, Any]:
    """As `call_arguments`, for several clips with equal steps, guidance and size. Each has its own
    noise."""
    import torch

    arguments = call_arguments(pipe, clips[0])
    if len(clips) == 1:
        return arguments
    if any(clip.negative is not None for clip in clips) and _takes(pipe, "negative_prompt"):
        arguments["negative_prompt"] = [clip.negative or "" for clip in clips]
    return arguments | {
        "prompt": [clip.prompt for clip in clips],
        "generator": [torch.Generator("cpu").manual_seed(clip.seed) for clip in clips],
    }


def loop_timer(
    pipe: Any, arguments: dict[str, Any], device: str, listeners: Sequence[StepListener], *,
    each_step: bool = False,
) -> LoopTimer:  # fmt: skip
    """A timer for the denoising loop of one call with these arguments."""
    from dit_accel.core.measure import LoopTimer

    parts = (getattr(pipe, name, None) for name in EXPERTS)
    return LoopTimer(
        [part for part in parts if part is not None],
        device=device,
        steps=int(arguments["num_inference_steps"]),
        listeners=listeners,
        each_step=each_step,
    )
