"""Checks whether a pipeline's attentions can carry out a scene, and installs their stages.

A family, a transformer or an attention comes in; an error names what is not accepted, before
anything runs. It knows which attentions the stages support, and does not know what a scene does
with them. Source: ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dit_accel.attention import processor as attention_processor
from dit_accel.attention.processor import StagedAttnProcessor
from dit_accel.core.families import FAMILIES, Family
from dit_accel.core.patching import Patches
from dit_accel.core.tokens import TokenGrid, TokenStrides
from dit_accel.scenes import reposition
from dit_accel.scenes.geometry import GEOMETRIES, stock_tables


def check_family(family: Family) -> None:
    """Refuse a family whose attentions have no stages.

    Raises:
        ValueError: the family has none; the message names the families that have stages.
    """
    if family.name not in GEOMETRIES:
        accepted = ", ".join(f.name for f in FAMILIES.values() if f.name in GEOMETRIES)
        raise ValueError(f"family is {family.name!r}; accepted with a layout: {accepted}")


def check_files(family: Family, frames: Sequence[torch.Tensor]) -> None:
    """Refuse references that are files, if the family encodes and packs latents in another way."""
    if frames and family.name != "wan":
        raise ValueError(
            f"a reference is a file, and the family is {family.name}; accepted: another shot of "
            "the layout, or a pipeline of wan"
        )


def check_text_only(cross: Any) -> None:
    """Refuse a cross-attention that also reads an image."""
    if getattr(cross, "add_k_proj", None) is not None:
        raise ValueError("the transformer reads an image too; accepted: text to video")


def check_no_image(module: Any) -> None:
    """Refuse a transformer that gets an image, as its first frame or in further channels."""
    kind = module.config.get("image_condition_type")
    if kind is not None:
        raise ValueError(f"the transformer reads an image too ({kind}); accepted: text to video")


def check_undivided(processor: Any) -> None:
    """Refuse an attention whose tokens are divided among devices."""
    if getattr(processor, "_parallel_config", None) is not None:
        raise ValueError("context parallelism is on; accepted with a layout: no parallelism")


def check_rotary(module: Any, family: Family) -> torch.dtype:
    """Refuse rotary angles other than those of `scenes/geometry.py`. Returns their dtype."""
    if getattr(module, family.rotary or "", None) is None:
        raise ValueError(f"{type(module).__name__} has no {family.rotary}; accepted: rotary angles")
    theirs = stock_tables(module, family.name, (2, 2, 2))
    tables = GEOMETRIES[family.name].tables(module, {})
    ours = tables(reposition.token_positions(TokenGrid(2, 2, 2)))
    if any(not torch.equal(a.cpu(), b.to(a.dtype)) for a, b in zip(theirs, ours, strict=True)):
        raise ValueError(
            f"{type(module).__name__} has other rotary angles; accepted: those of {family.name}"
        )
    dtype: torch.dtype = theirs[0].dtype
    return dtype


def staged(attn: Any, patches: Patches) -> StagedAttnProcessor:
    """Install stages on one attention.

    Raises:
        ValueError: pruned attention uses the stages, and its blocks do not know classes.
    """
    if isinstance(attn.processor, StagedAttnProcessor):
        raise ValueError(
            "accel prunes attention, but with a layout each subject would need its own blocks; "
            "accepted: accel=UniCP(pcas=None, shift=None)"
        )
    check_undivided(attn.processor)
    return attention_processor.install(attn, patches)


def strides_of(pipe: Any, module: Any) -> TokenStrides:
    """Pixels per token of a pipeline."""
    patch = module.config.patch_size
    old = "vae_temporal_compression_ratio", "vae_spatial_compression_ratio"  # LTX-Video's names
    return TokenStrides(
        int(getattr(pipe, "vae_scale_factor_temporal", getattr(pipe, old[0], 4))),
        int(getattr(pipe, "vae_scale_factor_spatial", getattr(pipe, old[1], 8))),
        int(patch if isinstance(patch, int) else patch[-1]),
    )
