"""Subjects' own prompts at the cross-attentions: a subject's tokens also read their own prompt.

Prompts come in; blended outputs of the cross-attentions go out. `SubjectPrompts` makes the pipeline
encode them together with the user's prompt, and embeds them once per run. `SubjectTextProcessor`
makes the stock call, then a second one for each subject's tokens with its own text, and blends
them. It does not know which parts are active (`scenes/isolation.py`).

Source: IR-Diffusion (arXiv 2411.19261), whose code has weights of 0.9 and 0.1.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from dit_accel.attention.processor import WrappedProcessor
from dit_accel.core.compiling import outside_graphs
from dit_accel.core.families import Family
from dit_accel.core.patching import Patches
from dit_accel.core.session import Session

# from the number of clips in a call: row, class, prompt
Wanted = Callable[[int], list[tuple[int, int, str]]]
SubjectText = tuple[int, torch.Tensor, torch.Tensor, float]  # row, tokens, text, weight


class SubjectPrompts:
    """The encoded prompts of the subjects, for one call of the pipeline."""

    def __init__(self, session: Session, family: Family) -> None:
        self.session, self.family = session, family
        self.clear()

    def clear(self) -> None:
        """Free all tensors."""
        self.encoded: dict[tuple[int, int], torch.Tensor] = {}
        self._embedded: dict[str, dict[tuple[int, int], torch.Tensor]] = {}

    def install(self, patches: Patches, pipe: Any, wanted: Wanted) -> None:
        """Patch `encode_prompt`, if the pipeline has one."""
        if hasattr(pipe, "encode_prompt"):
            patches.wrap(pipe, "encode_prompt", partial(self._wrap, wanted))

    def _wrap(self, wanted: Wanted, inner: Any) -> Any:
        def encode_prompt(*args: Any, **kwargs: Any) -> Any:
            given: Any = kwargs.get("prompt", args[0] if args else None)
            ready = kwargs.get("prompt_embeds")
            many = [given] if isinstance(given, str) else given if ready is None else ready
            needed = wanted(len(many) * (kwargs.get("num_videos_per_prompt") or 1))
            encoded = inner(*args, **kwargs)
            self.clear()
            if needed:
                names = ("prompt_template", "max_sequence_length", "device", "dtype")
                same = {name: kwargs[name] for name in names if name in kwargs}
                if "do_classifier_free_guidance" in inspect.signature(inner).parameters:
                    same["do_classifier_free_guidance"] = False
                prompts = sorted({text for _, _, text in needed})
                at = dict(
                    zip(prompts, _without_padding(*inner(prompt=prompts, **same)), strict=True)
                )
                self.encoded = {(row, label): at[text] for row, label, text in needed}
            return encoded

        return encode_prompt

    def embedded(self, transformer: str) -> dict[tuple[int, int], torch.Tensor]:
        """The embedded texts `(1, L, C)` for a transformer's blocks, by row and class."""
        if transformer not in self._embedded:
            module = self.session.transformers[transformer]
            embed = module.get_submodule(self.family.text_embedder or "")
            like = self.session.text
            self._embedded[transformer] = {
                key: embed(text.to(like.device, like.dtype)) for key, text in self.encoded.items()
            }
        return self._embedded[transformer]


def _without_padding(rows: torch.Tensor, *others: Any) -> list[torch.Tensor]:
    """Texts `(1, L, C)` from `(P, L, C)`. If the others include a mask `(P, L)`, padding is cut
    off."""
    shaped = (x for x in others if isinstance(x, torch.Tensor) and x.shape == rows.shape[:2])
    mask = next((x for x in shaped if not x.is_floating_point()), None)
    lengths = [rows.shape[1]] * len(rows) if mask is None else mask.sum(1).long().tolist()
    return [row[None, :length] for row, length in zip(rows, lengths, strict=True)]


class SubjectTextProcessor(WrappedProcessor):
    """A cross-attention's stock processor, followed by the subjects' own texts."""

    def __init__(self, stock: Any, texts: Callable[[], list[SubjectText]]) -> None:
        super().__init__(stock)
        self.blend = outside_graphs(partial(_blend, stock, texts))

    def __call__(
        self, attn: Any, hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None, rotary_emb: Any = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        out = self.stock(
            attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb, **kwargs
        )
        return self.blend(attn, hidden_states, out)


def _blend(
    stock: Any, texts: Callable[[], list[SubjectText]], attn: Any, hidden: torch.Tensor,
    out: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    for row, tokens, text, weight in texts():
        own = stock(attn, hidden[row : row + 1, tokens], text, None, None)
        out[row, tokens] = torch.lerp(out[row, tokens], own[0], weight)
    return out


def flops(tokens: int, length: int, width: int) -> int:
    """FLOPs of a subject's own text at one cross-attention: projections and both products."""
    return 4 * tokens * width**2 + 4 * length * width**2 + 4 * tokens * length * width
