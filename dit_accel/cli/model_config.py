"""What the configuration files of a model say of its tokens; no weight is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dit_accel.cli.common.errors import BadInput
from dit_accel.models import miniature

if TYPE_CHECKING:
    from dit_accel.core.tokens import TokenGrid
    from dit_accel.models.loading import LoadableModel


@dataclass(frozen=True)
class Blueprint:
    """A model whose configuration was read, and the clip that is asked of it."""

    model: LoadableModel
    height: int
    width: int
    frames: int
    call: dict[str, Any]  # what the folder or the pipeline says a call should default to

    @property
    def grid(self) -> TokenGrid:
        """The tokens of one clip.

        Raises:
            BadInput: a size is not such as the model makes.
        """
        from dit_accel.cli.run.settings import check_sizes, read_strides
        from dit_accel.core.tokens import TokenGrid, TokenStrides

        strides = read_strides(self.model)
        check_sizes(strides, self.height, self.width, self.frames)
        patch = self.transformer.get("patch_size", 1)
        side = int(patch if isinstance(patch, int) else patch[-1])
        spans = TokenStrides(strides.temporal, strides.pixels_per_token // side, side)
        return TokenGrid.from_pixels(self.frames, self.height, self.width, strides=spans)

    @property
    def transformer(self) -> dict[str, Any]:
        """The denoiser's configuration."""
        from dit_accel.cli.run.settings import component_config

        model = self.model
        return component_config(model, "transformer") or component_config(model, "transformer_2")


def read(
    model: str | None, *, height: int | None, width: int | None, frames: int | None
) -> Blueprint:
    """Read the configuration of a model, of a hub id these files alone.

    Raises:
        BadInput: the model or a size is not accepted.
    """
    from dit_accel.cli.run.settings import call_parameters
    from dit_accel.models.loading import resolve_model

    found = resolve_model(model, whole=False)
    try:
        call = {**call_parameters(found), **miniature.call_defaults(found.folder)}
    except ValueError as error:
        raise BadInput(f"--model is {found.name!r}: {error}") from error
    asked = {"height": height, "width": width, "num_frames": frames}
    sizes = {}
    for name, value in asked.items():
        option = name.removeprefix("num_")
        chosen = call.get(name) if value is None else value
        if chosen is None:
            raise BadInput(f"--{option} is not given, and the model names no default: pass one")
        if chosen < 1:
            raise BadInput(f"--{option} is {chosen}: must be at least 1")
        sizes[option] = int(chosen)
    return Blueprint(found, sizes["height"], sizes["width"], sizes["frames"], call)
