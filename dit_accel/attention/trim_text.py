"""Trim padded text and drop its mask: exact, for one prompt at a time.

A HunyuanVideo pipeline comes in, and runs with shorter text until `remove()`. The stock pipeline
pads each prompt to a fixed length, and passes a mask to every attention. Fused kernels are faster
without a mask. At batch 1 no token attends to the padding, so outputs are those of the stock
pipeline up to the order of sums. Version 1.5 also pads text-to-video with tokens of an absent
image; they are removed, too. A call that cannot be trimmed (several prompts, padding inside the
text, context parallelism) is unchanged. One host sync per prompt. It knows two classes by name, and
that their attention gives text no positions.

    with trim_text(pipe) as trim:
        video = pipe(prompt).frames
    print(trim.tokens)  # {"transformer": (256, 31)}: text tokens before and after

Source: ours; the arithmetic is diffusers' (`transformer_hunyuan_video.py`, `..._video15.py`).
"""

from __future__ import annotations

from typing import Any, Self

import torch

from dit_accel.attention.processor import WrappedProcessor
from dit_accel.core.compiling import uncompiled
from dit_accel.core.patching import Patches

MASKED = {
    "HunyuanVideoTransformer3DModel": "HunyuanVideoAttnProcessor2_0",
    "HunyuanVideo15Transformer3DModel": "HunyuanVideo15AttnProcessor2_0",
}
TEXTS = (
    ("encoder_hidden_states", "encoder_attention_mask"),
    ("encoder_hidden_states_2", "encoder_attention_mask_2"),
)
IMAGE = "image_embeds"  # all zero: there is no image


def trim_text(pipe: Any) -> Trim:
    """Trim the text of a HunyuanVideo pipeline until the handle is removed.

    Args:
        pipe: a diffusers pipeline with one of the transformers in `MASKED`.

    Raises:
        ValueError: the pipeline has another transformer.
        RuntimeError: the pipeline is trimmed already; nothing is changed.
    """
    transformer = getattr(pipe, "transformer", None)
    name = type(uncompiled(transformer)).__name__
    if transformer is None or name not in MASKED:
        raise ValueError(f"pipe's transformer is a {name}; accepted: {', '.join(MASKED)}")
    return Trim(transformer, MASKED[name])


class Trim:
    """The handle of `trim_text`: a context manager with `tokens` and `remove()`."""

    def __init__(self, transformer: Any, processor: str) -> None:
        self.tokens: dict[str, tuple[int, int]] = {}
        self.trimmed = False  # whether the running call has no padding left
        self._lengths: list[tuple[torch.Tensor, int | None]] = []
        self._patches = Patches()
        try:
            for module in transformer.modules():
                if type(getattr(module, "processor", None)).__name__ == processor:
                    self._patches.wrap(module, "processor", lambda stock: Unmasked(stock, self))
                elif isinstance(getattr(module, "processor", None), Unmasked):
                    raise RuntimeError("pipe is trimmed already; call remove() on its handle first")
        except BaseException:
            self._patches.undo()
            raise
        self._hook = transformer.register_forward_pre_hook(self._before, with_kwargs=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Restore the pipeline exactly; a second call does nothing."""
        self._patches.undo()
        self._hook.remove()
        self._lengths.clear()

    def _before(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self.trimmed = False
        texts = [pair for pair in TEXTS if kwargs.get(pair[0]) is not None]
        masked = texts and all(kwargs.get(mask) is not None for _, mask in texts)
        if not masked or kwargs[texts[0][0]].shape[0] != 1:
            return None
        lengths = [self._length(kwargs[mask]) for _, mask in texts]
        if None in lengths:
            return None
        trimmed = dict(kwargs)
        for pair, length in zip(texts, lengths, strict=True):
            trimmed |= {name: kwargs[name][:, :length] for name in pair}
        image = kwargs.get(IMAGE)
        if image is not None and self._length(image) == 0:
            trimmed[IMAGE] = image[:, :0]
        self.trimmed = True
        before, after = (sum(k[mask].shape[1] for _, mask in texts) for k in (kwargs, trimmed))
        self.tokens["transformer"] = (before, after)
        return args, trimmed

    def _length(self, mask: torch.Tensor) -> int | None:
        """Tokens before the padding of `(1, L, ...)`; None if zeros are between tokens. A tensor
        that is passed again needs no second host sync."""
        for seen, length in self._lengths:
            if seen is mask:
                return length
        real = mask[0].flatten(1).any(1) if mask.ndim > 2 else mask[0].bool()
        count, leading = torch.stack([real.sum(), (real.cumprod(0)).sum()]).tolist()
        length = int(count) if count == leading else None
        self._lengths = [(mask, length), *self._lengths[:7]]
        return length


class Unmasked(WrappedProcessor):
    """The stock attention processor, called without the mask if the text is trimmed."""

    def __init__(self, stock: Any, trim: Trim) -> None:
        super().__init__(stock)
        self.trim = trim

    def __call__(  # diffusers reads these names, and passes no others
        self, attn: Any, hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None, image_rotary_emb: Any = None,
    ) -> Any:  # fmt: skip
        free = self.trim.trimmed and getattr(self.stock, "_parallel_config", None) is None
        processor = self._plain() if free else self.stock
        mask = None if free else attention_mask
        return processor(attn, hidden_states, encoder_hidden_states, mask, image_rotary_emb)

    def _plain(self) -> Any:
        """HunyuanVideo's processor accepts None as a mask. That of 1.5, with equal arithmetic,
        would make a mask from it."""
        from diffusers.models.transformers import transformer_hunyuan_video as plain

        if isinstance(self.stock, plain.HunyuanVideoAttnProcessor2_0):
            return self.stock
        made = plain.HunyuanVideoAttnProcessor2_0()
        made._attention_backend = self.stock._attention_backend
        return made
