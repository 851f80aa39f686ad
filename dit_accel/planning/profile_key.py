"""What a profile is of: the pipeline, the scheduler and the clips that it was measured on.

In: two keys. Out: how a profile differs from a run. Over some differences it is transferred, over
others it is refused.
Knows names and numbers; `planning/lookup.py` makes the key of a pipeline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dit_accel.core.document import Field

# By field its name in the profile file. The right sides are the file's format and stay.
KEY_NAMES = {
    "pipeline": "pipeline", "transformer": "transformer", "scheduler": "scheduler",
    "weights": "weights", "sampler": "sampler", "parts": "parts", "steps": "steps",
    "guidance": "guidance", "height": "height", "width": "width", "frames": "frames",
    "dtype": "dtype",
}  # fmt: skip


@dataclass(frozen=True)
class ProfileKey:
    """What a profile is of, or a run needs one of.

    Args:
        pipeline, transformer, scheduler: class names.
        weights: a short hash of the transformer's shapes and some of its weights.
        sampler: a short hash of what the scheduler does.
        parts: components of the guided prediction; 2 where guidance takes separate forwards.
        steps, guidance, height, width, frames, dtype: of the clips.
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
        """Differences of a run for which the profile is refused, in words."""
        names = ["pipeline", "transformer", "scheduler", "weights", "sampler", "parts"]
        return self._differences(run, names + ["guidance"] * (self.parts == 1))

    def transfers(self, run: ProfileKey) -> tuple[str, ...]:
        """Differences of a run over which the profile is transferred, in words."""
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
        """Whether it is of clips of this size; true where it has no size."""
        own = (self.height, self.width, self.frames)
        return not any(own) or own == (height, width, frames)

    def to_json(self) -> dict[str, Any]:
        """By the names that the profile file has."""
        return {filed: getattr(self, name) for name, filed in KEY_NAMES.items()}

    @classmethod
    def from_json(cls, values: Field) -> ProfileKey:
        """Of what `to_json` gives.

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
