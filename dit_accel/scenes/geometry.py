"""Finds where the tokens of a family's call are, and rotates their keys at any position.

A transformer and the arguments of its forward come in; the token grid, and rotary embeddings at
real-valued positions, go out. For the other families, the model's own module makes the tables, from
positions instead of whole numbers. It knows no scene.

Source: diffusers' transformers of these names, whose arithmetic is unchanged; the rest is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed

from dit_accel.attention import processor
from dit_accel.scenes import reposition
from dit_accel.scenes.reposition import Rotary
from dit_accel.scenes.rows import Tables

Given = Mapping[str, Any]  # arguments of a transformer's forward, by name
Sizes = tuple[int, int, int]


@dataclass(frozen=True)
class Geometry:
    """The data about a family that a scene needs.

    Args:
        sizes: latent frames, rows and columns of tokens of a call.
        tables: rotary embedding of a call's module, at positions `(n, 3)`: `(1, n, 1 or H, D)`.
        turn: rotates queries or keys `(B, n, H, D)` by such tables, as the model does.
        depends: the arguments that the tables depend on, apart from the sizes.
    """

    sizes: Callable[[Any, Given], Sizes]
    tables: Callable[[Any, Given], Tables]
    turn: Callable[[torch.Tensor, Rotary], torch.Tensor]
    depends: Callable[[Given], Any] = lambda given: None


def _wan_sizes(module: Any, given: Given) -> Sizes:
    grid = processor.grid_of(module, (), dict(given))
    return grid.frames, grid.height, grid.width


def _wan_tables(module: Any, given: Given) -> Tables:
    return lambda positions: reposition.rotary(positions, module.config.attention_head_dim)


def _ltx_sizes(module: Any, given: Given) -> Sizes:
    """The sizes of packed latents, which are arguments of the call."""
    sizes = [given.get(name) for name in ("num_frames", "height", "width")]
    if given.get("video_coords") is not None or None in sizes:
        raise ValueError(
            "the transformer is called with video_coords; accepted with a layout: num_frames, "
            "height and width of the latents, as LTXPipeline passes them"
        )
    frames, height, width = (int(size or 0) for size in sizes)
    return frames, height, width


def _ltx_scale(given: Given) -> tuple[float, ...] | None:
    """Seconds and pixels per token; None: positions stay whole numbers."""
    scale = given.get("rope_interpolation_scale")
    return None if scale is None else tuple(float(part) for part in scale)


def _ltx_tables(module: Any, given: Given) -> Tables:
    heads, config = module.config.num_attention_heads, module.config
    patch = config.patch_size_t, config.patch_size, config.patch_size
    base = module.rope.base_num_frames, module.rope.base_height, module.rope.base_width
    scale = _ltx_scale(given)

    def tables(positions: torch.Tensor) -> Rotary:
        coordinates = positions.float()  # the same arithmetic as in the module, in its order
        for factors in (base,) if scale is None else (scale, patch):
            coordinates = coordinates * torch.tensor(factors, dtype=torch.float32)
        with torch.no_grad():
            found = module.rope(torch.empty(1, 1, 1), video_coords=coordinates.T[None])
        cos, sin = (table.unflatten(2, (heads, -1)) for table in found)
        return cos, sin

    return tables


def _hunyuan_sizes(module: Any, given: Given) -> Sizes:
    config, shape = module.config, given["hidden_states"].shape
    patches = config.patch_size_t, config.patch_size, config.patch_size
    frames, height, width = (n // patch for n, patch in zip(shape[2:], patches, strict=True))
    return frames, height, width


def _hunyuan_tables(module: Any, given: Given) -> Tables:
    def tables(positions: torch.Tensor) -> Rotary:
        axes = zip(module.rope.rope_dim, positions.float().T, strict=True)
        found = [get_1d_rotary_pos_embed(n, at, module.rope.theta, use_real=True) for n, at in axes]
        cos, sin = (torch.cat(parts, 1)[None, :, None] for parts in zip(*found, strict=True))
        return cos, sin

    return tables


GEOMETRIES: dict[str, Geometry] = {  # by the family's name
    "wan": Geometry(_wan_sizes, _wan_tables, processor.rotate),
    "hunyuan-video": Geometry(_hunyuan_sizes, _hunyuan_tables, processor.rotate_in_float32),
    "ltx": Geometry(_ltx_sizes, _ltx_tables, processor.rotate_in_float32, _ltx_scale),
}


def stock_tables(module: Any, family: str, sizes: Sizes) -> Rotary:
    """The tables that a model's own module makes for a call of these sizes, in the form of
    `Geometry.tables`. Ours must be equal to them."""
    with torch.no_grad():
        if family == "ltx":
            found = module.rope(torch.empty(1, 1, 1), *sizes)
            cos, sin = (t.unflatten(2, (module.config.num_attention_heads, -1)) for t in found)
            return cos, sin
        if family == "hunyuan-video":
            patches = module.config.patch_size_t, *[module.config.patch_size] * 2
            sides = [n * patch for n, patch in zip(sizes, patches, strict=True)]
            cos, sin = (t[None, :, None] for t in module.rope(torch.empty(1, 1, *sides)))
            return cos, sin
        sides = [n * patch for n, patch in zip(sizes, module.config.patch_size, strict=True)]
        cos, sin = module.rope(torch.empty(1, 1, *sides))
        return cos, sin
