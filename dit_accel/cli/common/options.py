"""The options that several verbs share, and functions that make an option.

In: nothing. Out: dataclass fields with typer's options, and dataclasses of options that belong
together.
Knows names and help; values are checked where they are used. A new acceleration option is a field
of `AccelOptions`, and of a config in `dit_accel/config`. Ours.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from dit_accel.caching.windows import DEFAULT_THRESHOLD
from dit_accel.cli.common.errors import BadInput
from dit_accel.core.checks import byte_count

ACCELS = ("unicp", "unicp-paper")
DTYPE_NAMES = ("float32", "bfloat16", "float16")

ACCELERATION, COMPARISON, WORK, CLIP = "Acceleration", "Comparison", "Work", "Clip"
INPUT, MODEL, LAYOUT, OUTPUT, MACHINE = "Input", "Model", "Layout", "Output", "Machine"
PANELS = (  # panels in the help
    ACCELERATION, COMPARISON, WORK, CLIP, INPUT, LAYOUT, OUTPUT, MODEL, MACHINE
)  # fmt: skip
METHODS_HELP = "Methods with settings, NAME:0.1,0.2; NAME:* runs all settings."
TARGET_HELP = "Target: the PSNR in dB that 95 % of clips should reach."
RATIO_HELP = "Target: (all steps) / (computed steps)."
MEMORY_HELP = "GPU memory for cached values, e.g. 512MiB."
MODELS = "the model's"


def option(
    default: Any, help: str, *flags: str, panel: str | None = None, shown: str | None = None,
    **more: Any,
) -> Any:  # fmt: skip
    """A field of a dataclass that is an option.

    Args:
        default: the default of the field; `...`: the option is required.
        flags: the flags, if they do not follow from the field's name.
        panel: the panel in the help.
        shown: the default as text; None: the default itself, if that is informative.
        more: other arguments of `typer.Option`.
    """
    plain = default is not ... and default is not None and not isinstance(default, bool)
    info = typer.Option(
        *flags, help=help, rich_help_panel=panel, show_default=shown or plain, **more
    )
    return _field(default, info)


def argument(default: Any, help: str, metavar: str) -> Any:
    """A field of a dataclass that is an argument. With a default, it is optional."""
    return _field(default, typer.Argument(help=help, metavar=metavar, show_default=False))


def _field(default: Any, info: Any) -> Any:
    default = dataclasses.MISSING if default is ... else default
    return dataclasses.field(default=default, metadata={"typer": info})


# Functions for single options: dataclasses do not share field objects, so each verb makes its own.


def model() -> Any:
    shown = "the embedded miniature"
    return option(None, "A diffusers folder or hub id.", metavar="FOLDER|HUB/ID", shown=shown)


def profile(panel: str | None = None, to: str = "") -> Any:
    text = f"{to or 'The '}profile that `calibrate` wrote."
    shown = "in the model's folder or the cache, else a prior"
    return option(None, text, panel=panel, metavar="FILE", shown=shown)


def prompts(default: Any, more: str = "") -> Any:
    return argument(default, f"A .jsonl or .txt file, or VBench's .json{more}.", "PROMPTS")


def output(default: Any, help: str, metavar: str = "FILE", shown: str | None = None) -> Any:
    return option(default, help, "--output", "-o", metavar=metavar, shown=shown, panel=OUTPUT)


def limit(panel: str | None = None) -> Any:
    return option(None, "Use the first N prompts.", panel=panel, metavar="N", min=1)


def guidance(shown: str = MODELS, panel: str | None = CLIP) -> Any:
    return option(None, "Guidance scale; 1 or less: no guidance.", panel=panel, shown=shown)


def dtype(help: str, panel: str | None = None) -> Any:
    shown = "bfloat16 on CUDA, else float32"
    return option(None, help, panel=panel, metavar="TYPE", shown=shown)


def fps() -> Any:
    return option(None, "Frames per second.", panel=CLIP, shown=MODELS)


def overwrite() -> Any:
    return option(False, "Replace files that exist.", panel=OUTPUT)


def as_json() -> Any:
    return option(False, "Print one JSON object.", "--json", panel=OUTPUT)


def verbose() -> Any:
    return option(False, "Show tracebacks and the libraries' messages.", panel=MACHINE)


_accelerate = functools.partial(option, panel=ACCELERATION)


@dataclass(frozen=True, kw_only=True)
class AccelOptions:
    """The computed and cached parts of a run: the keywords of `accelerate`; two of them have the
    prefix `no_`."""

    quality: float | None = _accelerate(None, TARGET_HELP, metavar="DB", shown="36")
    speedup: float | None = _accelerate(None, RATIO_HELP, metavar="X")
    threshold: float | None = _accelerate(
        None, "Largest drift of a cached value; 0 caches nothing. Needs no profile.",
        metavar="DRIFT", shown=f"{DEFAULT_THRESHOLD} where no plan can be made",
    )  # fmt: skip
    profile: Path | None = profile(ACCELERATION)
    cache_memory: str | None = _accelerate(
        None, f"{MEMORY_HELP} Older values are quantized, then moved.",
        metavar="SIZE", shown="no limit",
    )  # fmt: skip
    static: bool = _accelerate(
        False, "Compute the same steps in every run: no guard, no host syncs.", "--deterministic"
    )
    no_guard: bool = _accelerate(False, "Never override the plan during a run.")
    no_learn: bool = _accelerate(False, "Neither learn from the run nor plan with what was learnt.")
    force: bool = _accelerate(False, "Use a profile of another model.", "--force-profile")
    site: str = _accelerate(
        "model", "Where --threshold caches: attention, block or model.", metavar="SITE"
    )
    accel: str | None = _accelerate(
        None, "unicp: a plan; unicp-paper: windows and pruned attention, after the paper.",
        metavar="NAME", shown=ACCELS[0],
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """The machine on which a model runs."""

    dtype: str | None = dtype("float32, bfloat16 or float16; the VAE stays in float32.", MACHINE)
    device: str | None = option(
        None, "cpu, cuda, cuda:N or mps.", panel=MACHINE, metavar="NAME", shown="cuda, else cpu"
    )
    offload: str = option(
        "none", "Offload weights to the CPU: none, model, sequential (least memory) or group.",
        panel=MACHINE, metavar="HOW",
    )  # fmt: skip
    compile: bool = option(False, "Compile the denoiser's blocks.", panel=MACHINE)
    attention_backend: str | None = option(
        None, "A backend of diffusers; `doctor` lists those that work.", panel=MACHINE,
        metavar="NAME", shown="diffusers' own",
    )  # fmt: skip
    verbose: bool = verbose()


@dataclass(frozen=True, kw_only=True)
class SizeOptions:
    """The size of a clip."""

    height: int | None = option(None, "Height.", panel=CLIP, shown=MODELS, metavar="PIXELS")
    width: int | None = option(None, "Width.", panel=CLIP, shown=MODELS, metavar="PIXELS")
    frames: int | None = option(None, "Number of frames.", panel=CLIP, shown=MODELS)


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """The inputs of a clip, apart from its prompt."""

    image: Path | None = option(None, "The first frame.", panel=INPUT, metavar="FILE")
    last_image: Path | None = option(None, "The last frame.", panel=INPUT, metavar="FILE")
    video: Path | None = option(None, "A clip to change.", panel=INPUT, metavar="FILE")
    strength: float | None = option(
        None, "How much --video changes, above 0 to 1.", panel=INPUT, shown=MODELS
    )


@dataclass(frozen=True, kw_only=True)
class VersionOptions:
    """Which weights of a model."""

    model: str | None = model()
    revision: str | None = option(
        None, "Branch, tag or commit of a hub id.", panel=MODEL, metavar="NAME", shown="main"
    )
    variant: str | None = option(
        None, "Variant of the weight files, e.g. fp16.", panel=MODEL, metavar="NAME"
    )


@dataclass(frozen=True, kw_only=True)
class ClipOptions(SizeOptions, InputOptions, VersionOptions, MachineOptions):
    """The options that decide a clip, except its prompt and seed, and the machine."""

    lora: list[str] | None = option(
        None, "A LoRA, for one expert or all; may be repeated.", panel=MODEL,
        metavar="[EXPERT=]PATH[:WEIGHT]",
    )  # fmt: skip
    scheduler: str | None = option(
        None, "A scheduler class of diffusers.", panel=MODEL, metavar="NAME", shown=MODELS
    )
    quantize: str | None = option(
        None, "Quantize the denoiser's weights: bnb4, bnb8, int8, fp8 or quanto8.", panel=MODEL,
        metavar="HOW",
    )  # fmt: skip
    vae_tiling: bool = option(
        False, "Decode in tiles: less memory, slightly different frames.", panel=MACHINE
    )
    steps: int | None = option(None, "Denoising steps.", panel=CLIP, shown=MODELS)
    guidance: float | None = guidance()
    guidance_2: float | None = option(
        None, "Guidance scale of the second of two experts.", panel=CLIP, shown="as --guidance"
    )  # fmt: skip
    fps: float | None = fps()
    negative: str | None = option(None, "Negative prompt.", panel=CLIP)


def check_choice(name: str, value: str | None, accepted: Sequence[str]) -> None:
    """Refuse a value that is not accepted. None means that it is not given."""
    if value is not None and value not in accepted:
        raise BadInput(f"--{name} is {value!r}; accepted: {', '.join(accepted)}")


def listed(text: str) -> list[str]:
    """The parts of a comma-separated list, each once."""
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def bytes_of(text: str | None) -> int | None:
    """The bytes in a text of `--cache-memory`: `2GiB`, `512 MiB`, `1.5gb`, `1000000`."""
    if text is None:
        return None
    try:
        return byte_count(text)
    except ValueError as error:
        accepted = "a size above 0, e.g. 512MiB or 2GiB"
        raise BadInput(f"--cache-memory is {text!r}; accepted: {accepted}") from error
