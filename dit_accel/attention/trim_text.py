"""Trim padded text and drop its mask: exact, where one prompt is denoised at a time.

HunyuanVideo pads a prompt to a fixed length, and every attention call carries a mask of what is
padding; fused kernels are faster without masks, and HunyuanVideo 1.5 even builds the N x N matrix
of the mask in each call. At batch 1 the padding can be cut off before the first block: no token
attends to it, so the outputs are those of the stock pipeline, up to the order of sums. HunyuanVideo
1.5 also pads text-to-video with the tokens of an image that is not there; they go too.

A call that cannot be trimmed (several prompts, padding elsewhere than behind the text, context
parallelism) is passed on as it is. How long the text is, is read from the device once a prompt.
Knows two classes by name, their arguments, and that their attention gives text no positions.

    with trim_text(pipe) as trim:
        video = pipe(prompt).frames
    print(trim.tokens)  # {"transformer": (256, 31)}: text tokens before and after

Source: ours; the arithmetic is diffusers' (`transformer_hunyuan_video.py`, `..._video15.py`).
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import torch

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
    """Trim the text of a HunyuanVideo pipeline from now on, until the handle is removed.

    Raises:
        ValueError: the pipeline's transformer is none of `MASKED`.
        RuntimeError: it is trimmed already; nothing is changed.
    """
    transformer = getattr(pipe, "transformer", None)
    name = type(transformer).__name__
    if transformer is None or name not in MASKED:
        raise ValueError(f"pipe's transformer is a {name}; accepted: {', '.join(MASKED)}")
    return Trim(transformer, MASKED[name])


class Trim:
    """An installed trimming: a context manager with `tokens` and `remove()`."""

    def __init__(self, transformer: Any, processor: str) -> None:
        self.tokens: dict[str, tuple[int, int]] = {}
        self.now = False  # whether this call's text has no padding left
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Restore the pipeline exactly; a second call does nothing."""
        self._patches.undo()
        self._hook.remove()
        self._lengths.clear()

    def _before(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self.now = False
        texts = [pair for pair in TEXTS if kwargs.get(pair[0]) is not None]
        if not texts or any(kwargs.get(mask) is None for _, mask in texts):
            return None
        if kwargs[texts[0][0]].shape[0] != 1:
            return None
        lengths = [self._length(kwargs[mask]) for _, mask in texts]
        if any(length is None for length in lengths):
            return None
        trimmed = dict(kwargs)
        for pair, length in zip(texts, lengths, strict=True):
            trimmed |= {name: kwargs[name][:, :length] for name in pair}
        image = kwargs.get(IMAGE)
        if image is not None and self._length(image) == 0:
            trimmed[IMAGE] = image[:, :0]
        self.now = True
        before, after = (sum(k[mask].shape[1] for _, mask in texts) for k in (kwargs, trimmed))
        self.tokens["transformer"] = (before, after)
        return args, trimmed

    def _length(self, mask: torch.Tensor) -> int | None:
        """Tokens `(1, L, ...)` up to the last that is not zero; None where zeros lie among them or
        nothing is left. Read once for as long as it is the same tensor."""
        for seen, length in self._lengths:
            if seen is mask:
                return length
        real = mask[0].flatten(1).any(1) if mask.ndim > 2 else mask[0].bool()
        kept, solid = torch.stack([real.sum(), (real.cumprod(0)).sum()]).tolist()
        length = int(kept) if kept == solid else None
        self._lengths = [(mask, length), *self._lengths[:7]]
        return length


class Unmasked:
    """The stock attention processor, without the mask where nothing is left to be masked."""

    def __init__(self, stock: Any, trim: Trim) -> None:
        object.__setattr__(self, "stock", stock)
        object.__setattr__(self, "trim", trim)

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:  # diffusers reads these names, and passes on no others
        free = self.trim.now and getattr(self.stock, "_parallel_config", None) is None
        processor = self._plain() if free else self.stock
        mask = None if free else attention_mask
        return processor(attn, hidden_states, encoder_hidden_states, mask, image_rotary_emb)

    def _plain(self) -> Any:
        """A processor that takes None for a mask: HunyuanVideo's own, whose arithmetic that of 1.5
        is; that of 1.5 would build a mask of it."""
        from diffusers.models.transformers import transformer_hunyuan_video as plain

        if isinstance(self.stock, plain.HunyuanVideoAttnProcessor2_0):
            return self.stock
        made = plain.HunyuanVideoAttnProcessor2_0()
        made._attention_backend = self.stock._attention_backend
        return made

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stock, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """What diffusers sets on a processor (its backend) is the stock one's; our mark is not."""
        here = self if name.startswith("_dit_accel") else self.stock
        object.__setattr__(here, name, value)
