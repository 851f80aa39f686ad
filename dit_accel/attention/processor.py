"""Staged self-attention: project, normalise, position, attend, output.

A `StagedAttnProcessor` replaces a module's attention processor and computes the same, bit for bit,
in stages that are attributes: a technique replaces one stage of one instance. A call that the
stages do not cover (cross-attention, a mask, an image's extra keys, context parallelism) goes to
the stock processor. It has no state of a run and no formula. Shapes as in `core/tokens.py`.

Source: diffusers' `WanAttnProcessor` (0.35 to 0.42), whose arithmetic is unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import dispatch_attention_fn

from dit_accel.attention.pca import Linear
from dit_accel.core.patching import Patches, outside_graphs
from dit_accel.core.tokens import TokenGrid

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # query, key, value
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class WrappedProcessor:
    """A processor around the stock one, which gets all private attributes that diffusers sets on a
    processor later (its backend, the parallel config); only our patch mark stays here.

    It copies and pickles as the stock one: a copy of an accelerated pipeline is stock."""

    def __init__(self, stock: Any) -> None:
        self.stock = stock

    def __getattr__(self, name: str) -> Any:
        if name == "stock" or name.startswith("__"):  # while it is copied there is no stock yet
            raise AttributeError(name)
        return getattr(self.stock, name)

    def __setattr__(self, name: str, value: Any) -> None:
        here = name.startswith("_dit_accel") or not name.startswith("_")
        object.__setattr__(self if here else self.stock, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return _same, (self.stock,)


def _same(processor: Any) -> Any:
    return processor


class StagedAttnProcessor(WrappedProcessor):
    """An attention processor in stages, each an attribute.

    `active` says whether a call is the handle's; others are the stock processor's. `value` and
    `out`, where not None, replace the module's projections; `attend` maps `(B, N, H, D)` to the
    same; `position` takes queries, keys and the rotary angles.
    """

    def __init__(self, stock: Any, active: Callable[[], bool] = lambda: True) -> None:
        super().__init__(stock)
        self.active = outside_graphs(active)
        self.value: Linear | None = None
        self.out: Linear | None = None
        self.position: Callable[..., tuple[torch.Tensor, torch.Tensor]] = rotate_pairs
        self.attend: Attend = self.dense

    def __call__(
        self, attn: Any, hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None, rotary_emb: Any = None, **kwargs: Any,
    ) -> torch.Tensor:  # fmt: skip
        parallel = getattr(self.stock, "_parallel_config", None)
        given = (encoder_hidden_states, attention_mask, parallel)
        if not self.active() or any(one is not None for one in given) or kwargs:
            return self.stock(
                attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb, **kwargs
            )
        query, key, value = self.normalise(attn, *self.project(attn, hidden_states))
        if rotary_emb is not None:
            query, key = self.position(query, key, rotary_emb)
        return self.output(attn, self.attend(query, key, value).flatten(2).type_as(query))

    def project(self, attn: Any, tokens: torch.Tensor) -> Heads:
        """`(B, N, C)` -> three of `(B, N, H D)`; the value may be narrower."""
        if getattr(attn, "fused_projections", False):
            query, key, value = attn.to_qkv(tokens).chunk(3, dim=-1)
            return query, key, value if self.value is None else _linear(tokens, self.value)
        value = attn.to_v(tokens) if self.value is None else _linear(tokens, self.value)
        return attn.to_q(tokens), attn.to_k(tokens), value

    def normalise(
        self, attn: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> Heads:
        """Normalise queries and keys over all heads, then split the heads: `(B, N, H, D)`."""
        query, key = attn.norm_q(query), attn.norm_k(key)

        def split(rows: torch.Tensor) -> torch.Tensor:
            return torch.unflatten(rows, 2, (attn.heads, -1))

        return split(query), split(key), split(value)

    def dense(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Full attention with the backend that the user chose in diffusers: SDPA, xformers, ..."""
        parallel = {"parallel_config": None} if hasattr(self.stock, "_parallel_config") else {}
        return dispatch_attention_fn(
            query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False,
            backend=getattr(self.stock, "_attention_backend", None), **parallel,
        )  # fmt: skip

    def output(self, attn: Any, mixed: torch.Tensor) -> torch.Tensor:
        """`(B, N, H D)` -> `(B, N, C)`."""
        hidden = attn.to_out[0](mixed) if self.out is None else _linear(mixed, self.out)
        return attn.to_out[1](hidden)


class WholeWidthProcessor(StagedAttnProcessor):
    """LTX-Video's, whose rotary embedding is of all heads at once: `(B, N, H D)` each."""

    def __init__(self, stock: Any, active: Callable[[], bool] = lambda: True) -> None:
        super().__init__(stock, active)
        self.position = rotate_whole_width


PROCESSORS: dict[str, type[StagedAttnProcessor]] = {
    "WanAttnProcessor": StagedAttnProcessor,
    "LTXVideoAttnProcessor": WholeWidthProcessor,
}


def install(attn: Any, patches: Patches) -> StagedAttnProcessor:
    """Install stages on one attention module, as a patch.

    Raises:
        ValueError: its processor is not one of `PROCESSORS`.
        RuntimeError: it is patched already.
    """
    stock = attn.processor
    name = type(stock).__name__
    if name not in PROCESSORS:
        raise ValueError(f"attention processor is {name}; accepted: {', '.join(PROCESSORS)}")
    staged = PROCESSORS[name](stock, patches.active)
    patches.wrap(attn, "processor", lambda _: staged, replaceable=True)
    return staged


def rotate_pairs(
    query: torch.Tensor, key: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate neighbouring channels of queries and keys `(B, N, H, D)` by their positions' angles.

    `rotary` is cosines and sines, `(1, N, 1, D)` each, every angle twice.
    """
    return rotate(query, rotary), rotate(key, rotary)


def rotate(rows: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotate neighbouring channels of `(B, N, H, D)`; `rotary` as in `rotate_pairs`."""
    x1, x2 = torch.unflatten(rows, -1, (-1, 2)).unbind(-1)
    cos, sin = rotary[0][..., 0::2], rotary[1][..., 1::2]
    out = torch.empty_like(rows)
    out[..., 0::2] = x1 * cos - x2 * sin
    out[..., 1::2] = x1 * sin + x2 * cos
    return out.type_as(rows)


def rotate_whole_width(
    query: torch.Tensor, key: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `rotate_pairs`, with an angle for each channel of all heads: `rotary` is `(B, N, H D)`
    each."""
    heads = query.shape[2]
    cos, sin = (torch.unflatten(table, 2, (heads, -1)) for table in rotary)
    return rotate_in_float32(query, (cos, sin)), rotate_in_float32(key, (cos, sin))


def rotate_in_float32(
    rows: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """Rotate neighbouring channels of `(B, N, H, D)`, in the order of LTX-Video's arithmetic."""
    real, imaginary = torch.unflatten(rows, -1, (-1, 2)).unbind(-1)
    turned = torch.stack([-imaginary, real], dim=-1).flatten(-2)
    return (rows.float() * rotary[0] + turned.float() * rotary[1]).to(rows.dtype)


def grid_of(transformer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TokenGrid:
    """The token grid of a transformer's call, from the size of its latents."""
    latents = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    sizes = zip(latents.shape[2:], transformer.config.patch_size, strict=True)
    return TokenGrid(*(size // patch for size, patch in sizes))


def _linear(tokens: torch.Tensor, layer: Linear) -> torch.Tensor:
    return F.linear(tokens, layer.weight, layer.bias)
