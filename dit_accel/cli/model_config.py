"""The token grid of a model's clips, from its configuration files alone.

In: a model and a size. Out: a `ModelConfig`.
Knows no weights: for a hub id, only configuration files are downloaded. Ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dit_accel.cli.run.request import check_within

if TYPE_CHECKING:
    from dit_accel.core.tokens import TokenGrid
    from dit_accel.models.folder import LoadableModel


@dataclass(frozen=True)
class ModelConfig:
    """A model's configuration, and the size of its clips."""

    model: LoadableModel
    height: int
    width: int
    frames: int
    call: dict[str, Any]  # defaults of the pipeline's call, from the folder or the pipeline

    @property
    def grid(self) -> TokenGrid:
        """The token grid of one clip. A size that the model cannot make is refused."""
        from dit_accel.cli.run.settings import check_sizes, latent_pixels, read_strides
        from dit_accel.core.tokens import TokenGrid, TokenStrides

        strides, pixels = read_strides(self.model), latent_pixels(self.model)
        check_sizes(strides, self.height, self.width, self.frames)
        tokens = TokenStrides(strides.temporal, pixels, strides.pixels_per_token // pixels)
        return TokenGrid.from_pixels(self.frames, self.height, self.width, strides=tokens)


def read(
    model: str | None, *, height: int | None, width: int | None, frames: int | None
) -> ModelConfig:
    """Read the configuration of a model.

    Args:
        height, width, frames: the size of its clips; None: the model's default.

    Raises:
        BadInput: the model or a size is not accepted.
    """
    from dit_accel.cli.run.settings import call_parameters, folder_defaults, given_or_default
    from dit_accel.models.loading import resolve_model

    found = resolve_model(model, whole=False)
    call = {**call_parameters(found), **folder_defaults(found)}
    sizes = {}
    for name, value in (("height", height), ("width", width), ("frames", frames)):
        default = call.get("num_frames" if name == "frames" else name)
        sizes[name] = int(given_or_default(value, default, name))
        check_within(f"--{name}", sizes[name], 1)
    return ModelConfig(found, sizes["height"], sizes["width"], sizes["frames"], call)
