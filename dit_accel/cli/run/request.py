"""What the user asked for, and the checks of it that need no model: they run before torch does."""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dit_accel.cli.common.errors import BadInput
from dit_accel.models.families import SITES

if TYPE_CHECKING:
    from dit_accel.layout import Layout
    from dit_accel.scenes.rows import SceneConfig

BACKGROUNDS = ("open", "closed")
DTYPE_NAMES = ("float32", "bfloat16", "float16")
ACCELS = ("unicp", "unicp-paper")  # the default, and what works by windows at attentions
UNITS = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
         "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}  # fmt: skip
FPS_RANGE = (0.01, 1000.0)
LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class LayoutOptions:
    """What is asked of a layout; None where it is left to the defaults."""

    layout: Path | None = None
    isolation: bool | None = None
    reposition: bool | None = None
    alpha: float | None = None
    background: str | None = None

    def check(self, prompt: str) -> None:
        """Refuse what no layout could accept.

        Raises:
            BadInput: naming the option.
        """
        given = {
            "--isolation or --no-isolation": self.isolation,
            "--reposition or --no-reposition": self.reposition,
            "--alpha": self.alpha,
            "--background": self.background,
        }
        if self.layout is None:
            for option, value in given.items():
                if value is not None:
                    raise BadInput(f"{option} is given: applies to --layout only")
            return
        if prompt.strip():
            raise BadInput(f"PROMPT is {prompt!r}: the layout has the prompts; drop one of them")
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise BadInput(f"--alpha is {self.alpha}: must be from 0 to 1")
        if self.alpha is not None and self.reposition is False:
            raise BadInput("--alpha is given: has no meaning with --no-reposition")
        if self.background is not None and self.background not in BACKGROUNDS:
            accepted = ", ".join(BACKGROUNDS)
            raise BadInput(f"--background is {self.background!r}: must be one of {accepted}")
        if self.background is not None and self.isolation is False:
            raise BadInput("--background is given: has no meaning with --no-isolation")

    def read(self) -> Layout | None:
        """The layout.

        Raises:
            BadInput: naming `--layout`, and what is wrong with the file.
        """
        if self.layout is None:
            return None
        from dit_accel import layout

        try:
            return layout.load(self.layout)
        except (ValueError, OSError) as error:
            raise BadInput(f"--layout is {str(self.layout)!r}: {error}") from error

    def config(self) -> SceneConfig:
        """The settings of the scene."""
        from dit_accel.scenes.rows import SceneConfig

        named = {
            "isolate": self.isolation,
            "reposition": self.reposition,
            "alpha": self.alpha,
            "background": self.background,
        }
        return SceneConfig(**{k: v for k, v in named.items() if v is not None})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Request:
    """The options of `generate`; None where the user left the choice to the model."""

    prompt: str
    threshold: float | None = None
    site: str = "model"
    quality: float | None = None
    speedup: float | None = None
    profile: Path | None = None
    force: bool = False
    guard: bool = True
    accel: str | None = None
    static: bool = False
    cache_memory: str | None = None
    model: str | None = None
    compare: bool = False
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    fps: float | None = None
    dtype: str | None = None
    device: str | None = None
    negative: str | None = None
    output: Path | None = None
    overwrite: bool = False
    scenery: LayoutOptions = field(default_factory=LayoutOptions)

    def check(self) -> None:
        """Refuse what no model could accept.

        Raises:
            BadInput: naming the option, its value, and what is accepted.
        """
        self.scenery.check(self.prompt)
        if not self.prompt.strip() and self.scenery.layout is None:
            raise BadInput('PROMPT is empty: say what the clip shows, e.g. "a red circle"')
        _within("--threshold", self.threshold, 0.0)
        _within("--seed", self.seed, 0, LARGEST_SEED)
        _within("--guidance", self.guidance, 0.0)
        for name in ("steps", "height", "width", "frames"):
            _within(f"--{name}", getattr(self, name), 1)
        _within("--fps", self.fps, *FPS_RANGE)
        for name, accepted in (("site", SITES), ("dtype", DTYPE_NAMES), ("accel", ACCELS)):
            value = getattr(self, name)
            if value is not None and value not in accepted:
                raise BadInput(f"--{name} is {value!r}: must be one of {', '.join(accepted)}")
        self._check_target()
        _ = self.cache_bytes

    @property
    def preset(self) -> str | None:
        """The preset, where it is not the default."""
        return None if self.accel == ACCELS[0] else self.accel

    @property
    def cache_bytes(self) -> int | None:
        """What `--cache-memory` says.

        Raises:
            BadInput: it is no size.
        """
        return None if self.cache_memory is None else size_of("--cache-memory", self.cache_memory)

    @property
    def windowed(self) -> bool:
        """Whether windows were asked for, by a threshold or a place, and not a plan."""
        return self.threshold is not None or self.preset is not None or self.site != "model"

    def _check_target(self) -> None:
        """One target at most, and nothing beside it that it would leave undone."""
        check_target(self.quality, self.speedup, self.threshold)
        target = "--quality" if self.quality is not None else "--speedup"
        planned = self.quality is not None or self.speedup is not None
        if planned and self.site != "model":
            raise BadInput(f"--site is {self.site!r}: has no meaning with {target}; drop one")
        if planned and self.preset is not None:
            raise BadInput(f"--accel is {self.accel!r}: has no meaning with {target}; drop one")
        if self.accel == ACCELS[0] and self.threshold is not None:
            raise BadInput("--accel is 'unicp': plans by --quality or --speedup, not --threshold")
        if self.accel is not None and self.site != "model":
            works = "attentions" if self.preset is not None else "the denoiser's output"
            raise BadInput(f"--site is {self.site!r}: --accel {self.accel} works at {works}")
        given = {"--profile": self.profile, "--force": self.force, "--no-guard": not self.guard,
                 "--static": self.static, "--cache-memory": self.cache_memory}  # fmt: skip
        for option, value in given.items():
            if value and self.windowed:
                raise BadInput(f"{option} is given: applies to --quality and --speedup only")


def check_target(
    quality: float | None, speedup: float | None, threshold: float | None = None
) -> None:
    """Refuse more than one target, and one that is out of range.

    Raises:
        BadInput: naming those that were given.
    """
    targets = {"--quality": quality, "--speedup": speedup, "--threshold": threshold}
    given = [f"{option} {value:g}" for option, value in targets.items() if value is not None]
    if len(given) > 1:
        raise BadInput(f"{' and '.join(given)} are given: accepted is one of them")
    if quality is not None and not 0 < quality < math.inf:
        raise BadInput(f"--quality is {quality}: must be a number of dB above 0, e.g. 32")
    _within("--speedup", speedup, 1.0)


def size_of(option: str, text: str) -> int:
    """A size in bytes, as people write it: `2GiB`, `512 MiB`, `1.5gb`, `1000000`.

    Raises:
        BadInput: naming the option, its value, and what is accepted.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    size = int(float(found[1]) * UNITS.get(found[2], 0)) if found is not None else 0
    if size < 1:
        raise BadInput(f"{option} is {text!r}: must be a size above 0, e.g. 512MiB or 2GiB")
    return size


def slug(prompt: str, *, longest: int = 60) -> str:
    """A file name that reads like the prompt: lower case ASCII letters and digits, and hyphens."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    if len(words) > longest:
        words = words[: longest + 1].rpartition("-")[0] or words[:longest]
    return words or "clip"


def _within(option: str, value: float | None, low: float, high: float | None = None) -> None:
    if value is None:
        return
    if not math.isfinite(value) or value < low or (high is not None and value > high):
        upper = " and finite" if isinstance(low, float) else ""
        accepted = f"at least {low:g}{upper}" if high is None else f"from {low} to {high}"
        raise BadInput(f"{option} is {value}: must be {accepted}")
