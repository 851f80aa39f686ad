"""The key of a profile: the pipeline, the scheduler and the clips that it was measured on.

In: two keys. Out: the differences between a profile and a run. Over some of them the profile is
transferred; for others it is refused.
Knows names and numbers; `planning/lookup.py` makes the key of a pipeline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dit_accel.core.document import Field

# Maps each field to its name in the profile file. The names on the right are the file's format, and
# must not change.
KEY_NAMES = {
    "pipeline": "pipeline", "transformer": "transformer", "scheduler": "scheduler",
    "weights": "weights", "sampler": "sampler", "parts": "parts", "steps": "steps",
    "guidance": "guidance", "height": "height", "width": "width", "frames": "frames",
    "dtype": "dtype",
}  # fmt: skip


@dataclass(frozen=True)
class ProfileKey:
    """What a profile was measured on, or what a run needs a profile for.

    Args:
        pipeline, transformer, scheduler: class names.
        weights: a short hash of the transformer's shapes and some of its weights.
        sampler: a short hash of the scheduler's behaviour.
        parts: components of the guided prediction; 2 if guidance uses separate forward passes.
        steps, guidance, height, width, frames, dtype: settings of the clips.
    """

    pipeline: str
    transformer: str
    scheduler: str
    weights: str
    sampler: str
    parts: int = 1
    steps: int = 0
    guidance: float = 0.0
    height: int = 0
    width: int = 0
    frames: int = 0
    dtype: str = ""

    def refusals(self, run: ProfileKey) -> tuple[str, ...]:
        """The differences to a run for which the profile is refused, in words."""
        names = ["pipeline", "transformer", "scheduler", "weights", "sampler", "parts"]
        return self._differences(run, names + ["guidance"] * (self.parts == 1))

    def transfers(self, run: ProfileKey) -> tuple[str, ...]:
        """The differences to a run over which the profile is transferred, in words."""
        names = ["steps", "height", "width", "frames", "dtype"]
        return self._differences(run, names + ["guidance"] * (self.parts > 1))

    def _differences(self, run: ProfileKey, names: list[str]) -> tuple[str, ...]:
        pairs = ((name, getattr(self, name), getattr(run, name)) for name in names)
        return tuple(
            f"{name} is {mine} in the profile, {other} here"
            for name, mine, other in pairs
            if mine != other
        )

    def of_size(self, height: int, width: int, frames: int) -> bool:
        """Whether the key is for clips of this size; true if the key has no size."""
        own = (self.height, self.width, self.frames)
        return not any(own) or own == (height, width, frames)

    def to_json(self) -> dict[str, Any]:
        """The fields, by their names in the profile file."""
        return {filed: getattr(self, name) for name, filed in KEY_NAMES.items()}

    @classmethod
    def from_json(cls, values: Field) -> ProfileKey:
        """The key from the output of `to_json`.

        Raises:
            DocumentError: a name is missing or unknown, or a value is not accepted.
        """
        known = values.only(tuple(KEY_NAMES.values()))
        at = {name: known.at(filed) for name, filed in KEY_NAMES.items()}
        texts = ("pipeline", "transformer", "scheduler", "weights", "sampler", "dtype")
        sizes = ("steps", "height", "width", "frames")
        checked: dict[str, Any] = {name: at[name].text() for name in texts}
        checked |= {name: at[name].whole(0, 1_000_000) for name in sizes}
        return cls(
            **checked,
            parts=at["parts"].whole(1, 8),
            guidance=at["guidance"].number(-1e6, 1e6),
        )
