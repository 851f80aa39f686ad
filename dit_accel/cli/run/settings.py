"""Every setting of a run, resolved, and the checks that need the model's configuration alone.

A setting is what the user asked, else the folder's own default, else that of the pipeline's call.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit_accel.cli.common.errors import BadInput
from dit_accel.cli.run.request import Request
from dit_accel.core.generation import ClipSpec
from dit_accel.layout import Layout
from dit_accel.models import miniature
from dit_accel.models.loading import LoadableModel
from dit_accel.scenes.rows import SceneConfig

FALLBACK_FPS = 16.0
_PIPELINE_STRIDE = 16  # diffusers' video pipelines refuse what is no multiple of it
_CALL_NAMES = {
    "height": "height",
    "width": "width",
    "frames": "num_frames",
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
}


@dataclass(frozen=True)
class Settings:
    """All that decides a clip; the sidecar keeps every field."""

    prompt: str
    negative: str | None
    model: str
    pipeline: str
    quality: float | None
    speedup: float | None
    profile: str | None
    force: bool
    guard: bool
    static: bool
    cache_memory: int | None
    threshold: float | None
    site: str
    accel: str | None
    seed: int
    steps: int
    guidance: float
    height: int
    width: int
    frames: int
    fps: float
    max_sequence_length: int | None
    dtype: str
    device: str
    compare: bool
    prompts: tuple[str, ...] = ()  # of a layout's shots
    layout: str | None = None
    scene: SceneConfig | None = None

    @property
    def clip(self) -> ClipSpec:
        """The part that decides the clip, the model apart."""
        names = (field.name for field in dataclasses.fields(ClipSpec))
        return ClipSpec(**{name: getattr(self, name) for name in names})

    def to_dict(self) -> dict[str, Any]:
        """Every field, JSON-able."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class SizeStrides:
    """What a size must be a multiple of, and how many tokens an axis may have at most."""

    spatial: int
    temporal: int
    pixels_per_token: int
    longest: int | None = None


def resolve(
    request: Request, model: LoadableModel, *, device: str, dtype: str, layout: Layout | None = None
) -> Settings:
    """Fill in what the user left open, and refuse what this model cannot make.

    Args:
        layout: that of `--layout`, read.

    Raises:
        BadInput: naming the option, its value, and the nearest accepted ones.
    """
    _check_site(request.site, model)
    call = call_parameters(model)
    defaults: dict[str, Any] = {**call, **_folder_defaults(model)}
    chosen = {
        name: _chosen(getattr(request, name), defaults.get(parameter), name)
        for name, parameter in _CALL_NAMES.items()
    }
    strides = read_strides(model)
    check_sizes(strides, chosen["height"], chosen["width"], chosen["frames"])
    return Settings(
        **chosen,
        prompt=layout.shots[0].prompt if layout is not None else request.prompt,
        negative=_negative(request, call, layout),
        model=model.name,
        pipeline=str(model.index["_class_name"]),
        quality=request.quality,
        speedup=request.speedup,
        profile=str(request.profile) if request.profile is not None else None,
        force=request.force,
        guard=request.guard,
        static=request.static,
        cache_memory=request.cache_bytes,
        threshold=request.threshold,
        site=request.site,
        accel=request.preset,
        seed=request.seed,
        fps=request.fps or float(defaults.get("fps") or defaults.get("frame_rate") or FALLBACK_FPS),
        max_sequence_length=defaults.get("max_sequence_length"),
        dtype=dtype,
        device=device,
        compare=request.compare,
        prompts=tuple(layout.prompts) if layout is not None else (),
        layout=str(request.scenery.layout) if layout is not None else None,
        scene=request.scenery.config() if layout is not None else None,
    )


def call_parameters(model: LoadableModel) -> dict[str, Any]:
    """The parameters of the pipeline's call and their defaults; None where one has none."""
    import diffusers

    name = str(model.index.get("_class_name"))
    pipeline = getattr(diffusers, name, None)
    if pipeline is None:
        lacking = f"diffusers {diffusers.__version__} has no such class"
        raise BadInput(f"--model is {model.name!r}, a {name}: {lacking}")
    parameters = inspect.signature(pipeline.__call__).parameters.values()
    return {p.name: None if p.default is p.empty else p.default for p in parameters}


def read_strides(model: LoadableModel) -> SizeStrides:
    """What the configurations of the VAE and the denoiser ask of a clip's size."""
    vae = component_config(model, "vae")
    transformer = component_config(model, "transformer") or component_config(model, "transformer_2")
    scale = int(vae.get("scale_factor_spatial") or vae.get("spatial_compression_ratio") or 8)
    frames = int(vae.get("scale_factor_temporal") or vae.get("temporal_compression_ratio") or 4)
    patch = transformer.get("patch_size", 1)
    pixels = scale * int(patch if isinstance(patch, int) else patch[-1])
    longest = transformer.get("rope_max_seq_len")
    return SizeStrides(math.lcm(_PIPELINE_STRIDE, pixels), frames, pixels, longest)


def component_config(model: LoadableModel, part: str) -> dict[str, Any]:
    """A component's config.json over its class's defaults; empty for a component that is absent."""
    import diffusers

    source = model.folder / part / "config.json"
    if not source.is_file():
        return {}
    config = json.loads(source.read_text(encoding="utf-8"))
    kind = getattr(diffusers, str(config.get("_class_name")), None)
    if kind is None:
        return dict(config)
    parameters = inspect.signature(kind.__init__).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return {**defaults, **config}


def check_sizes(strides: SizeStrides, height: int, width: int, frames: int) -> None:
    """Refuse a size that the model would round, or fail on after minutes.

    Raises:
        BadInput: naming the option, its value, and the nearest accepted ones.
    """
    for option, value in (("--height", height), ("--width", width)):
        if value % strides.spatial:
            near = _nearest(value, strides.spatial, 0)
            raise BadInput(
                f"{option} is {value}: must be a multiple of {strides.spatial}, e.g. {near}"
            )
        _check_reach(option, value, strides.pixels_per_token, strides.longest, 0)
    if (frames - 1) % strides.temporal:
        near = _nearest(frames, strides.temporal, 1)
        accepted = f"1 more than a multiple of {strides.temporal}, e.g. {near}"
        raise BadInput(f"--frames is {frames}: must be {accepted}")
    _check_reach("--frames", frames, strides.temporal, strides.longest, 1)


def _check_site(site: str, model: LoadableModel) -> None:
    family = model.family
    if site not in family.sites:
        accepted = ", ".join(family.sites)
        raise BadInput(f"--site is {site!r}: the family {family.name} has {accepted}")


def _nearest(value: int, stride: int, offset: int) -> str:
    below = (value - offset) // stride * stride + offset
    return " or ".join(str(near) for near in (below, below + stride) if near > 0)


def _check_reach(option: str, value: int, stride: int, longest: int | None, offset: int) -> None:
    """A denoiser knows positions up to `longest` tokens along an axis, and none beyond."""
    if longest is None:
        return
    most = (longest - offset) * stride + offset
    if value > most:
        raise BadInput(f"{option} is {value}: this model reaches at most {most}")


def _folder_defaults(model: LoadableModel) -> dict[str, int | float]:
    try:
        return miniature.call_defaults(model.folder)
    except ValueError as error:
        raise BadInput(f"--model is {model.name!r}: {error}") from error


def _chosen(asked: Any, default: Any, option: str) -> Any:
    if asked is None and default is None:
        raise BadInput(f"--{option} is not given, and the model names no default: pass one")
    return default if asked is None else asked


def _negative(request: Request, call: dict[str, Any], layout: Layout | None) -> str | None:
    if request.negative is not None and "negative_prompt" not in call:
        raise BadInput(
            f"--negative is {request.negative!r}: this pipeline takes no negative prompt"
        )
    if request.negative is not None:
        return request.negative
    if layout is not None and layout.negative_prompt is not None and "negative_prompt" in call:
        return layout.negative_prompt
    default = call.get("negative_prompt")
    return default if isinstance(default, str) else None


def model_revision(folder: Path) -> str | None:
    """The commit of a folder in the hub's cache, which is named after it; else None."""
    return folder.name if folder.parent.name == "snapshots" else None
