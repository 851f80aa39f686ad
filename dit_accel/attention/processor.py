"""Staged self-attention: project, normalise, position, attend, output.

A `StagedAttnProcessor` replaces a module's attention processor and computes the same, bit for bit,
in stages that are attributes: a technique replaces one stage of one instance. A call that the
stages do not cover (cross-attention, an image's extra keys, context parallelism) goes to the stock
processor. A `JointAttnProcessor` has video and text in one sequence. There is one class for each
processor of diffusers, `PROCESSORS`. It has no state of a run and no formula. Shapes as in
`core/tokens.py`.

Source: diffusers' processors of these names (0.35 to 0.42), whose arithmetic is unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb

from dit_accel.attention.joint import JointText
from dit_accel.attention.pca import Linear
from dit_accel.core.compiling import outside_graphs
from dit_accel.core.patching import Patches
from dit_accel.core.tokens import TokenGrid

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # query, key, value
Attend = Callable[..., torch.Tensor]  # of query, key, value, and of a `JointText` if there is text


class WrappedProcessor:
    """A processor around the stock one. All private attributes that diffusers sets on it later (its
    backend, the parallel config) go to the stock processor. Only our patch mark stays here.

    It is copied and pickled as the stock processor: a copy of an accelerated pipeline is stock.
    """

    def __init__(self, stock: Any) -> None:
        self.stock = stock

    def __getattr__(self, name: str) -> Any:
        # while it is copied, there is no stock processor yet
        if name == "stock" or name.startswith("__"):
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

    `active` says whether a call belongs to the handle; other calls go to the stock processor. If
    `value` and `out` are not None, they replace the module's projections. `attend` maps `(B, N, H,
    D)` to the same shape. `position` takes queries, keys and the rotary angles.
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
        """Three tensors `(B, N, H D)` from `(B, N, C)`. The value may be narrower."""
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

    def dense(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
        text: JointText | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Full attention with the backend that the user chose in diffusers: SDPA, xformers, ..."""
        mask = self.mask(text)
        if not hasattr(self.stock, "_attention_backend"):  # it calls PyTorch's attention itself
            q, k, v = (rows.transpose(1, 2) for rows in (query, key, value))
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
        parallel = {"parallel_config": None} if hasattr(self.stock, "_parallel_config") else {}
        return dispatch_attention_fn(
            query, key, value, attn_mask=mask, dropout_p=0.0, is_causal=False,
            backend=self.stock._attention_backend, **parallel,
        )  # fmt: skip

    def mask(self, text: JointText | None) -> torch.Tensor | None:
        """The mask for full attention."""
        return None if text is None else text.mask

    def output(self, attn: Any, mixed: torch.Tensor, text: JointText | None = None) -> Any:
        """The output `(B, N, C)` from `(B, N, H D)`."""
        hidden = attn.to_out[0](mixed) if self.out is None else _linear(mixed, self.out)
        return attn.to_out[1](hidden)


class WholeWidthProcessor(StagedAttnProcessor):
    """The processor for LTX-Video, whose rotary embedding covers all heads at once: `(B, N, H D)`
    each."""

    def __init__(self, stock: Any, active: Callable[[], bool] = lambda: True) -> None:
        super().__init__(stock, active)
        self.position = rotate_whole_width


class JointAttnProcessor(StagedAttnProcessor):
    """The processor for both kinds of blocks of HunyuanVideo: video first, then text. A mask hides
    the text's padding.

    `attend` and `output` get the `JointText` as well, and `output` returns video and text.
    """

    def __call__(  # type: ignore[override]  # diffusers reads these names, and passes no others
        self, attn: Any, hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None, image_rotary_emb: Any = None,
    ) -> Any:  # fmt: skip
        video, words, text = hidden_states, encoder_hidden_states, None
        if self.active() and getattr(self.stock, "_parallel_config", None) is None:
            text = None if words is None else self.text(video, words, attention_mask)
        if text is None or words is None:
            return self.stock(attn, video, words, attention_mask, image_rotary_emb)
        query, key, value = self.heads(attn, video, words, image_rotary_emb)
        mixed = self.attend(query, key, value, text).flatten(2)
        return self.output(attn, mixed.to(query.dtype), text)

    def text(
        self, video: torch.Tensor, words: torch.Tensor, mask: torch.Tensor | None
    ) -> JointText | None:
        """The text of a call; None: the stages do not support it."""
        if mask is None:
            return JointText(words.shape[1])
        tokens = video.shape[1] + words.shape[1]
        if mask.dtype != torch.bool or mask.shape != (len(video), 1, 1, tokens):
            return None
        return JointText(words.shape[1], lengths=mask.sum(-1).flatten(), mask=mask)

    def heads(self, attn: Any, video: torch.Tensor, words: torch.Tensor, rotary: Any) -> Heads:
        """Three tensors `(B, V + L, H, D)` from `(B, V, C)` and `(B, L, C)`."""
        count = words.shape[1]
        if attn.add_q_proj is None:
            both = torch.cat([video, words], 1)
            query, key, value = self._split(attn, both, "to_q", "to_k", "to_v")
            query, key = _normed(attn.norm_q, query), _normed(attn.norm_k, key)
            if rotary is not None:
                query, key = (
                    torch.cat([self.turn(rows[:, :-count], rotary), rows[:, -count:]], 1)
                    for rows in (query, key)
                )
            return query, key, value
        query, key, value = self._split(attn, video, "to_q", "to_k", "to_v")
        query, key = _normed(attn.norm_q, query), _normed(attn.norm_k, key)
        if rotary is not None:
            query, key = self.turn(query, rotary), self.turn(key, rotary)
        of_text = self._split(attn, words, "add_q_proj", "add_k_proj", "add_v_proj")
        pairs = (
            (query, _normed(attn.norm_added_q, of_text[0])),
            (key, _normed(attn.norm_added_k, of_text[1])),
            (value, of_text[2]),
        )
        query, key, value = (torch.cat(pair, dim=1) for pair in pairs)
        return query, key, value

    @staticmethod
    def _split(attn: Any, rows: torch.Tensor, *layers: str) -> Heads:
        query, key, value = (
            torch.unflatten(getattr(attn, name)(rows), 2, (attn.heads, -1)) for name in layers
        )
        return query, key, value

    def turn(self, rows: torch.Tensor, rotary: Any) -> torch.Tensor:
        return apply_rotary_emb(rows, rotary, sequence_dim=1)

    def output(self, attn: Any, mixed: torch.Tensor, text: JointText | None = None) -> Any:
        """Video and text, `(B, V, C)` and `(B, L, C)`, from `(B, N, H D)`."""
        assert text is not None
        video, words = text.split(mixed)
        if getattr(attn, "to_out", None) is not None:
            video = attn.to_out[1](attn.to_out[0](video))
        if getattr(attn, "to_add_out", None) is not None:
            words = attn.to_add_out(words)
        return video, words


class MaskedPairsProcessor(JointAttnProcessor):
    """The processor for HunyuanVideo 1.5, whose mask covers only the text, and hides padding as
    query and as key."""

    def text(
        self, video: torch.Tensor, words: torch.Tensor, mask: torch.Tensor | None
    ) -> JointText | None:
        if mask is None or mask.shape != words.shape[:2]:
            return None
        seen = F.pad(mask, (video.shape[1], 0), value=True).bool()
        return JointText(words.shape[1], lengths=seen.sum(-1), mask=seen)

    def mask(self, text: JointText | None) -> torch.Tensor | None:
        """The mask `(B, 1, N, N)`, which pruned attention does not need."""
        assert text is not None and text.mask is not None
        pairs = text.mask[:, None, None].repeat(1, 1, text.mask.shape[1], 1)
        return pairs & pairs.transpose(2, 3)


class TextFirstProcessor(JointAttnProcessor):
    """The processor for CogVideoX: text first, then video, with the same weights."""

    def text(
        self, video: torch.Tensor, words: torch.Tensor, mask: torch.Tensor | None
    ) -> JointText | None:
        return None if mask is not None else JointText(words.shape[1], is_first=True)

    def heads(self, attn: Any, video: torch.Tensor, words: torch.Tensor, rotary: Any) -> Heads:
        count, rows = words.shape[1], torch.cat([words, video], 1)
        query, key, value = self._split(attn, rows, "to_q", "to_k", "to_v")
        # Heads before tokens, as in the stock processor, so that norms see the same memory layout.
        query, key = (rows.transpose(1, 2) for rows in (query, key))
        query, key = _normed(attn.norm_q, query), _normed(attn.norm_k, key)
        if rotary is not None:
            for part in (query, key):
                part[:, :, count:] = apply_rotary_emb(part[:, :, count:], rotary)
        return query.transpose(1, 2), key.transpose(1, 2), value

    def output(self, attn: Any, mixed: torch.Tensor, text: JointText | None = None) -> Any:
        assert text is not None
        return text.split(attn.to_out[1](attn.to_out[0](mixed)))


PROCESSORS: dict[str, type[StagedAttnProcessor]] = {
    "WanAttnProcessor": StagedAttnProcessor,
    "LTXVideoAttnProcessor": WholeWidthProcessor,
    "HunyuanVideoAttnProcessor2_0": JointAttnProcessor,
    "HunyuanVideo15AttnProcessor2_0": MaskedPairsProcessor,
    "CogVideoXAttnProcessor2_0": TextFirstProcessor,
}


def install(attn: Any, patches: Patches) -> StagedAttnProcessor:
    """Install stages on one attention module, as a patch.

    Raises:
        ValueError: its processor is not one of `PROCESSORS`.
        RuntimeError: the module is patched already.
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
    """Rotate as `rotate_pairs` does, with an angle for each channel of all heads: `rotary` is `(B,
    N, H D)` each."""
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


def grid_of(
    transformer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], frames: int = 2
) -> TokenGrid:
    """The token grid of a transformer's call, from the size of its latents, whose dimension
    `frames` is the latent frames."""
    latents = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    config = transformer.config
    patch = config.patch_size
    if isinstance(patch, int):  # of a side
        patch = (config.get("patch_size_t") or 1, patch, patch)
    sizes = zip((latents.shape[frames], *latents.shape[3:]), patch, strict=True)
    return TokenGrid(*(-(-size // side) for size, side in sizes))


def _normed(norm: Any, rows: torch.Tensor) -> torch.Tensor:
    return rows if norm is None else norm(rows)


def _linear(tokens: torch.Tensor, layer: Linear) -> torch.Tensor:
    return F.linear(tokens, layer.weight, layer.bias)
