"""The request to `generate`, and the checks that need no model.

In: the options as they were typed. Out: a `Request`, and its `AccelConfig`.
Knows options; knows no model and no pipeline. Values of the acceleration are checked by the config,
which imports torch; everything else is checked before that. Ours.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_accel.cli.common import options
from dit_accel.cli.common.errors import BadInput, flag, refused, unreadable
from dit_accel.cli.common.options import INPUT, LAYOUT, AccelOptions, ClipOptions, argument, option
from dit_accel.core.document import shown
from dit_accel.core.generation import INPUT_FILES, LARGEST_SEED
from dit_accel.models.families import SITES

if TYPE_CHECKING:
    from dit_accel.config import AccelConfig
    from dit_accel.layout import Layout

BACKGROUNDS = ("open", "closed")
SCENE = {  # options of a layout, and the settings of `SceneConfig` that follow from them
    "isolation": "isolate", "reposition": "reposition", "alpha": "alpha", "background": "background"
}  # fmt: skip
MOST_STEPS = 1000  # the number of timesteps that diffusers' samplers were trained with
RANGES: dict[str, tuple[float, float]] = {  # ranges of a clip's options
    "guidance": (0.0, 1000.0), "guidance_2": (0.0, 1000.0), "steps": (1, MOST_STEPS),
    "height": (1, 16_384), "width": (1, 16_384), "frames": (1, 100_000), "fps": (0.01, 1000.0),
    "strength": (0.001, 1.0),
}  # fmt: skip
_layout = functools.partial(option, panel=LAYOUT)


@dataclass(frozen=True, kw_only=True)
class Request(AccelOptions, ClipOptions):
    """The options of `generate`; None if the model decides."""

    prompt: str = argument("", "What the clip shows.", "PROMPT")
    seed: int = option(0, "Seed of the noise.", panel=options.CLIP)
    layout: Path | None = option(
        None, "Subjects, boxes and shots (YAML or JSON), instead of a prompt. One clip per shot.",
        panel=LAYOUT, metavar="FILE",
    )  # fmt: skip
    isolation: bool | None = _layout(None, "Block attention between subjects.", shown="yes")
    reposition: bool | None = _layout(None, "Move references to their subject's box.", shown="yes")
    alpha: float | None = _layout(None, "Strength of reposition, 0 to 1.", shown="1")
    background: str | None = _layout(
        None, "The background attends to subjects (open) or not (closed).",
        metavar="NAME", shown="open",
    )  # fmt: skip
    prompt_file: Path | None = option(
        None, "Many prompts, one load: .jsonl, .txt, or VBench's .json. Existing clips are not "
        "made again.", panel=INPUT, metavar="FILE",
    )  # fmt: skip
    output_dir: Path | None = option(
        None, "Folder for the clips of --prompt-file.", panel=options.OUTPUT, metavar="FOLDER",
        shown="named by the file",
    )  # fmt: skip
    compare: bool = option(
        False, "Also make the uncached reference; report PSNR, SSIM and speedup, and show both "
        "clips side by side.", panel=options.OUTPUT,
    )  # fmt: skip
    output: Path | None = options.output(
        None, "A .mp4, .mkv or .npy (both lossless), .gif or .png.", shown="named by the prompt"
    )
    dry_run: bool = option(
        False, "Print settings and required memory; load no weights.", panel=options.OUTPUT
    )
    overwrite: bool = options.overwrite()
    as_json: bool = options.as_json()

    def check(self) -> None:
        """Refuse options that no model and no config could accept, before torch is imported."""
        self._check_prompt_file()
        if self.layout is None and self.prompt_file is None and not self.prompt.strip():
            raise BadInput('PROMPT is empty: say what the clip shows, e.g. "a red circle"')
        if self.layout is not None and self.prompt.strip():
            raise BadInput(f"PROMPT is {self.prompt!r}, but the layout has the prompts; drop one")
        self._check_layout_options()
        check_within("--seed", self.seed, 0, LARGEST_SEED)
        check_clip(self)
        options.check_choice("site", self.site, SITES)
        options.check_choice("accel", self.accel, options.ACCELS)
        if self.layout is not None and self.accel == options.ACCELS[1]:
            problem = "which prunes attention, and a layout does not work with that"
            raise BadInput(f"--accel is {self.accel!r}, {problem}")
        options.bytes_of(self.cache_memory)

    def _check_prompt_file(self) -> None:
        if self.prompt_file is None:
            if self.output_dir is not None:
                raise BadInput("--output-dir is given; accepted: with --prompt-file only")
            return
        others = {"PROMPT": self.prompt, "--layout": self.layout, "--output": self.output}
        for name, value in others.items():
            if value:
                instead = "; pass --output-dir" if name == "--output" else ""
                both = f"{name} and --prompt-file are given"
                raise BadInput(f"{both}; accepted: one of them{instead}")

    def _check_layout_options(self) -> None:
        for name in INPUT_FILES:
            if self.layout is not None and getattr(self, name) is not None:
                both = f"{flag(name)} and --layout are given"
                raise BadInput(f"{both}: a layout is text to video")
        for name in SCENE:
            if self.layout is None and getattr(self, name) is not None:
                raise BadInput(f"--{name} is given; accepted: with --layout only")
        options.check_choice("background", self.background, BACKGROUNDS)
        for name, other in (("alpha", "reposition"), ("background", "isolation")):
            if getattr(self, name) is not None and getattr(self, other) is False:
                raise BadInput(f"--{name} is given; accepted: without --no-{other}")

    @property
    def wants_acceleration(self) -> bool:
        """Whether an option of the acceleration was typed. Then it is used without alternatives."""
        return bool(self._typed())

    def accel_config(self) -> AccelConfig:
        """The config for `accelerate`. Without a target, the target is the default quality."""
        from dit_accel.config import DEFAULT_QUALITY
        from dit_accel.config.keywords import config_of
        from dit_accel.scenes.rows import SceneConfig

        given = self._typed()
        if not given.keys() & {"quality", "speedup", "threshold", "site", "accel"}:
            given["quality"] = DEFAULT_QUALITY
        scene = {SCENE[name]: getattr(self, name) for name in SCENE}
        with refused("", (ValueError, TypeError)):
            if self.layout is not None:
                given["layout"] = str(self.layout)
                given["scene"] = SceneConfig(**{k: v for k, v in scene.items() if v is not None})
            return config_of(**given)

    def _typed(self) -> dict[str, Any]:
        """The keywords of `accelerate` that differ from their defaults."""
        fields = dataclasses.fields(AccelOptions)
        given = {
            f.name: getattr(self, f.name) for f in fields if getattr(self, f.name) != f.default
        }
        for name in ("guard", "learn"):
            if given.pop(f"no_{name}", False):
                given[name] = False
        if "profile" in given:
            given["profile"] = str(given["profile"])
        if "cache_memory" in given:
            given["cache_memory"] = options.bytes_of(self.cache_memory)
        if given.get("accel") == options.ACCELS[0] and not given.keys() & {"threshold", "site"}:
            del given["accel"]  # the default, given explicitly
        return given

    def read_layout(self) -> Layout | None:
        """The layout of `--layout`. A file that is not a layout is refused."""
        if self.layout is None:
            return None
        from dit_accel import layout

        with unreadable(f"--layout is {str(self.layout)!r}: "):
            return layout.load(self.layout)


def check_clip(given: object) -> None:
    """Refuse numbers that no model could accept, for the options that a verb has."""
    for name, (low, high) in RANGES.items():
        check_within(f"--{name.replace('_', '-')}", getattr(given, name, None), low, high)
    options.check_choice("dtype", getattr(given, "dtype", None), options.DTYPE_NAMES)


def check_within(option: str, value: float | None, low: float, high: float | None = None) -> None:
    """Refuse a number out of its range. None means that it is not given."""
    if value is None:
        return
    if not value >= low or (high is not None and not value <= high):  # also true for NaN
        accepted = f"at least {low:g}" if high is None else f"{low} to {high}"
        raise BadInput(f"{option} is {shown(value)}; accepted: {accepted}")


def slug(prompt: str, *, longest: int = 60) -> str:
    """A file name that reads like the prompt: lower case ASCII letters and digits, and hyphens."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    if len(words) > longest:
        words = words[: longest + 1].rpartition("-")[0] or words[:longest]
    return words or "clip"
