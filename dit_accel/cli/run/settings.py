"""Resolves every setting of a run, and refuses settings that the model's configuration rules out.

In: the options and a model's folder. Out: `Settings`. Each setting is the typed value, else the
folder's default, else that of the pipeline's call.
Knows configuration files and the signature of the pipeline's call; loads no weights. Ours.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dit_accel.cli.common.errors import BadInput, unreadable
from dit_accel.cli.common.options import ClipOptions, MachineOptions
from dit_accel.cli.run import inputs
from dit_accel.config import AccelConfig, UncachedConfig
from dit_accel.core.generation import FALLBACK_FPS, INPUT_FILES, ClipSpec
from dit_accel.layout import Layout
from dit_accel.models import miniature
from dit_accel.models import setup as setups
from dit_accel.models.folder import LoadableModel
from dit_accel.models.json_file import read_object, whole_number
from dit_accel.models.loading import Version, choose_device, choose_dtype, resolve_model
from dit_accel.models.lora import lora_of
from dit_accel.models.setup import Setup

_TRANSFORMER = Path("transformer/config.json")  # in the model's folder
_PIPELINE_STRIDE = 16  # diffusers' video pipelines refuse other sizes
_CALL_NAMES = {
    "height": "height",
    "width": "width",
    "frames": "num_frames",
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
}


@dataclass(frozen=True)
class Settings:
    """All settings that decide a clip; the sidecar has every field."""

    prompt: str
    negative: str | None
    model: str
    pipeline: str
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
    image: str | None = None
    last_image: str | None = None
    video: str | None = None
    strength: float | None = None
    guidance_2: float | None = None
    setup: Setup = field(default_factory=Setup)
    compare: bool = False
    prompts: tuple[str, ...] = ()  # prompts of a layout's shots
    accel: AccelConfig = field(default_factory=UncachedConfig)

    @property
    def clip(self) -> ClipSpec:
        """The settings that decide the clip, without the model."""
        names = (field.name for field in dataclasses.fields(ClipSpec))
        return ClipSpec(**{name: getattr(self, name) for name in names})

    @property
    def loop_steps(self) -> int:
        """The number of steps that run. A changed video begins at a later step."""
        return self.steps if self.strength is None else int(self.steps * self.strength)

    @property
    def quality(self) -> float | None:
        """The target in dB; None if the run has another target."""
        return getattr(self.accel, "quality", None)

    @property
    def speedup(self) -> float | None:
        """The target ratio of steps; None if the run has another target."""
        return getattr(self.accel, "speedup", None)

    def to_dict(self) -> dict[str, Any]:
        """Every field, JSON-able; `AccelConfig.from_dict` reads `accel`."""
        fields = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        return fields | {"accel": self.accel.to_dict(), "setup": self.setup.to_dict()}


@dataclass(frozen=True)
class SizeStrides:
    """The numbers that sizes must be multiples of, and the largest number of tokens along an
    axis."""

    spatial: int
    temporal: int
    pixels_per_token: int
    longest: int | None = None


def resolve(
    options: ClipOptions,
    model: LoadableModel,
    *,
    device: str,
    dtype: str,
    prompt: str = "",
    seed: int = 0,
    layout: Layout | None = None,
) -> Settings:
    """Fill in the missing settings, and refuse settings that this model cannot make. Every step is
    computed.

    Args:
        layout: its first prompt is used, and `prompt` is ignored.

    Raises:
        BadInput: an option is not accepted; the message names it, its value, and the nearest
            accepted ones.
    """
    call = call_parameters(model)
    defaults: dict[str, Any] = {**call, **folder_defaults(model)}
    shown, strides = inputs.read(options, model), read_strides(model)
    typed_size = options.height is not None or options.width is not None
    of_input = shown.defaults(defaults, strides.spatial, strides.temporal)
    for name in ("height", "width") if typed_size else ():
        of_input.pop(name, None)
    defaults |= of_input
    chosen = {
        name: given_or_default(getattr(options, name), defaults.get(parameter), name)
        for name, parameter in _CALL_NAMES.items()
    }
    if options.guidance_2 is not None and model.index.get("boundary_ratio") is None:
        raise BadInput(f"--guidance-2 is {options.guidance_2:g}: this model has one expert")
    check_sizes(strides, chosen["height"], chosen["width"], chosen["frames"])
    strength = shown.strength or (call.get("strength") if shown.video else None)
    check_strength(strength, chosen["steps"])
    fps = options.fps or float(defaults.get("fps") or defaults.get("frame_rate") or FALLBACK_FPS)
    return Settings(
        **chosen,
        prompt=layout.shots[0].prompt if layout is not None else prompt,
        prompts=tuple(layout.prompts) if layout is not None else (),
        negative=_negative(options.negative, call, layout),
        model=model.name,
        pipeline=str(model.index["_class_name"]),
        seed=seed,
        fps=fps,
        max_sequence_length=defaults.get("max_sequence_length"),
        dtype=dtype,
        device=device,
        setup=setup_of(options),
        strength=strength,
        guidance_2=options.guidance_2,
        **{name: getattr(shown, name) for name in INPUT_FILES},
    )


def locate(options: ClipOptions) -> tuple[LoadableModel, str, str]:
    """The model's folder, the device and the dtype. Raises ModelError if one does not exist."""
    setup, device = setup_of(options), choose_device(options.device)
    model = resolve_model(options.model, version=Version(options.revision, options.variant))
    for name in ("image", "video"):
        if getattr(options, name) is not None:
            model = setups.with_input(model, name)
    call_parameters(model)  # refuses a pipeline class that diffusers does not have
    setups.check(setup, model, device)
    return model, device, choose_dtype(options.dtype, device)


def setup_of(options: MachineOptions) -> Setup:
    """The setup of the pipeline, from the options. Options that cannot be combined are refused."""
    fields = (one.name for one in dataclasses.fields(Setup))
    typed = {name: getattr(options, name) for name in fields if hasattr(options, name)}
    typed["lora"] = tuple(map(_absolute, typed.get("lora") or ()))
    return Setup(**typed)


def _absolute(text: str) -> str:
    """A LoRA with an absolute path, so that a process in another folder finds it."""
    found = lora_of(text)
    return str(dataclasses.replace(found, path=found.path.expanduser().absolute()))


def call_parameters(model: LoadableModel) -> dict[str, Any]:
    """The parameters of the pipeline's call and their defaults; None for a parameter without a
    default."""
    import diffusers

    name = str(model.index.get("_class_name"))
    pipeline: Any = getattr(diffusers, name, None)
    if not (isinstance(pipeline, type) and issubclass(pipeline, diffusers.DiffusionPipeline)):
        lacking = f"diffusers {diffusers.__version__} has no such class"
        raise BadInput(f"--model is {model.name!r}, a {name}: {lacking}")
    parameters = inspect.signature(pipeline.__call__).parameters.values()
    return {p.name: None if p.default is p.empty else p.default for p in parameters}


def read_strides(model: LoadableModel) -> SizeStrides:
    """The requirements on a clip's size from the configurations of the VAE and the transformer."""
    vae, transformer = component_config(model, "vae"), transformer_config(model)
    source = model.folder / "vae" / "config.json"
    with unreadable(f"--model is {model.name!r}: "):
        scale, frames = (
            whole_number(source, vae, f"scale_factor_{axis}", None)
            or whole_number(source, vae, f"{axis}_compression_ratio", usual)
            for axis, usual in (("spatial", 8), ("temporal", 4))
        )
        pixels = scale * _patch_side(transformer)
        longest = whole_number(_TRANSFORMER, transformer, "rope_max_seq_len", None)
    return SizeStrides(math.lcm(_PIPELINE_STRIDE, pixels), frames, pixels, longest)


def latent_pixels(model: LoadableModel) -> int:
    """Pixels along a side of one latent value."""
    pixels = read_strides(model).pixels_per_token  # refuses a damaged configuration
    return pixels // _patch_side(transformer_config(model))


def transformer_config(model: LoadableModel) -> dict[str, Any]:
    """The configuration of the transformer, or of the only expert."""
    return component_config(model, "transformer") or component_config(model, "transformer_2")


def _patch_side(transformer: dict[str, Any]) -> int:
    patch = transformer.get("patch_size") or 1
    side = patch[-1] if isinstance(patch, (list, tuple)) else patch
    found: int = whole_number(_TRANSFORMER, {"patch_size": side}, "patch_size", 1)
    return found


def component_config(model: LoadableModel, part: str) -> dict[str, Any]:
    """A component's config.json over its class's defaults; empty for a component that is absent."""
    import diffusers

    source = model.folder / part / "config.json"
    if not source.is_file():
        return {}
    with unreadable(f"--model is {model.name!r}: "):
        config = read_object(source)
    kind: Any = getattr(diffusers, str(config.get("_class_name")), None)
    if not inspect.isclass(kind):
        return config
    parameters = inspect.signature(kind.__init__).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return {**defaults, **config}


def check_sizes(strides: SizeStrides, height: int, width: int, frames: int) -> None:
    """Refuse a size that the model would round, or with which it would fail after minutes."""
    for option, value in (("--height", height), ("--width", width)):
        _check_reach(option, value, strides.pixels_per_token, strides.longest, 0)
        if value % strides.spatial:
            near = _nearest(value, strides.spatial, 0)
            raise BadInput(
                f"{option} is {value}; accepted: a multiple of {strides.spatial}, e.g. {near}"
            )
    _check_reach("--frames", frames, strides.temporal, strides.longest, 1)
    if (frames - 1) % strides.temporal:
        near = _nearest(frames, strides.temporal, 1)
        accepted = f"1 more than a multiple of {strides.temporal}, e.g. {near}"
        raise BadInput(f"--frames is {frames}; accepted: {accepted}")


def check_strength(strength: float | None, steps: int) -> None:
    """Refuse a strength that is so small that no step runs."""
    if strength is not None and int(steps * strength) < 1:
        raise BadInput(
            f"--strength is {strength:g}, and with --steps {steps} no step runs; accepted: at "
            f"least {math.ceil(1000 / steps) / 1000:g}"
        )


def check_site(accel: AccelConfig, model: LoadableModel) -> None:
    """Refuse a site that the model's family does not have."""
    site, family = getattr(accel, "site", None), model.family
    if site is not None and site not in family.sites:
        accepted = ", ".join(family.sites)
        raise BadInput(f"--site is {site!r}; accepted for {family.name}: {accepted}")


def _nearest(value: int, stride: int, offset: int) -> str:
    below = (value - offset) // stride * stride + offset
    return " or ".join(str(near) for near in (below, below + stride) if near > 0)


def _check_reach(option: str, value: int, stride: int, longest: int | None, offset: int) -> None:
    """Refuse a size with more than `longest` tokens along an axis, for which the transformer has no
    positions."""
    if longest is None:
        return
    most = (longest - offset) * stride + offset
    if value > most:
        raise BadInput(f"{option} is {value}; accepted with this model: at most {most}")


def folder_defaults(model: LoadableModel) -> dict[str, int | float]:
    """The defaults of the model's folder for arguments of the pipeline's call."""
    with unreadable(f"--model is {model.name!r}: "):
        return miniature.call_defaults(model.folder)


def given_or_default(asked: Any, default: Any, option: str) -> Any:
    """A setting as it was typed, else the model's default. It is refused if there is neither."""
    if asked is None and default is None:
        raise BadInput(f"--{option} is not given, and the model has no default; pass one")
    return default if asked is None else asked


def _negative(typed: str | None, call: dict[str, Any], layout: Layout | None) -> str | None:
    if typed is not None and "negative_prompt" not in call:
        raise BadInput(f"--negative is {typed!r}: this pipeline takes no negative prompt")
    if typed is not None:
        return typed
    if layout is not None and layout.negative_prompt is not None and "negative_prompt" in call:
        return layout.negative_prompt
    default = call.get("negative_prompt")
    return default if isinstance(default, str) else None


def model_revision(folder: Path) -> str | None:
    """The commit of a folder in the hub's cache, from the folder's name; else None."""
    return folder.name if folder.parent.name == "snapshots" else None
