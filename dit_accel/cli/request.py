"""What the user asked for, and the checks of it that need no model: they run before torch does."""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from dit_accel.cli.errors import BadInput
from dit_accel.families import SITES

DTYPES = ("float32", "bfloat16", "float16")
FPS_RANGE = (0.01, 1000.0)
LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class Request:
    """The options of `generate`; None where the user left the choice to the model."""

    prompt: str
    threshold: float
    site: str
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

    def check(self) -> None:
        """Refuse what no model could accept.

        Raises:
            BadInput: naming the option, its value, and what is accepted.
        """
        if not self.prompt.strip():
            raise BadInput('PROMPT is empty: say what the clip shows, e.g. "a red circle"')
        _within("--threshold", self.threshold, 0.0)
        _within("--seed", self.seed, 0, LARGEST_SEED)
        _within("--guidance", self.guidance, 0.0)
        for name in ("steps", "height", "width", "frames"):
            _within(f"--{name}", getattr(self, name), 1)
        _within("--fps", self.fps, *FPS_RANGE)
        for name, accepted in (("site", SITES), ("dtype", DTYPES)):
            value = getattr(self, name)
            if value is not None and value not in accepted:
                raise BadInput(f"--{name} is {value!r}: must be one of {', '.join(accepted)}")


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
