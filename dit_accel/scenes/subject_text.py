"""Subjects' own texts at the cross-attentions: a subject's tokens read their own prompt too.

`SubjectPrompts` has a layout's prompts encoded by the pipeline itself, in the same phase as the
user's, and
passes them through the transformer's own embedding once a run. `SubjectTextProcessor` stands for
a processor of
cross-attention: the stock call first, then the subjects' tokens alone with their own text, blended.

Source: IR-Diffusion (arXiv 2411.19261), whose code weighs 0.9 to 0.1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from dit_accel.core.families import Family
from dit_accel.core.patching import Patches
from dit_accel.core.session import Session, outside_graphs

Ask = Callable[[int], list[tuple[int, int, str]]]  # clips of a call -> row, class, prompt
Told = tuple[int, torch.Tensor, torch.Tensor, float]  # row, tokens, text, weight


class SubjectPrompts:
    """The subjects' prompts of a call, encoded."""

    def __init__(self, session: Session, family: Family) -> None:
        self.session, self.family = session, family
        self.clear()

    def clear(self) -> None:
        """Free what is held."""
        self.encoded: dict[tuple[int, int], torch.Tensor] = {}
        self._embedded: dict[str, dict[tuple[int, int], torch.Tensor]] = {}

    def install(self, patches: Patches, pipe: Any, ask: Ask) -> None:
        """Encode along with the pipeline, where it encodes."""
        if hasattr(pipe, "encode_prompt"):
            patches.wrap(pipe, "encode_prompt", partial(self._wrap, ask))

    def _wrap(self, ask: Ask, inner: Any) -> Any:
        def encode_prompt(*args: Any, **kwargs: Any) -> Any:
            given: Any = kwargs.get("prompt", args[0] if args else None)
            ready = kwargs.get("prompt_embeds")
            many = [given] if isinstance(given, str) else given if ready is None else ready
            wanted = ask(len(many) * (kwargs.get("num_videos_per_prompt") or 1))
            found = inner(*args, **kwargs)
            self.clear()
            if wanted:
                names = ("max_sequence_length", "device", "dtype")
                same = {name: kwargs[name] for name in names if name in kwargs}
                prompts = sorted({text for _, _, text in wanted})
                rows = inner(prompt=prompts, do_classifier_free_guidance=False, **same)[0]
                at = {text: rows[i : i + 1] for i, text in enumerate(prompts)}
                self.encoded = {(row, label): at[text] for row, label, text in wanted}
            return found

        return encode_prompt

    def embedded(self, transformer: str) -> dict[tuple[int, int], torch.Tensor]:
        """Texts `(1, L, C)` as a transformer's blocks take them, by row and class."""
        if transformer not in self._embedded:
            module = self.session.transformers[transformer]
            embed = module.get_submodule(self.family.text_embedder or "")
            like = self.session.text
            self._embedded[transformer] = {
                key: embed(text.to(like.device, like.dtype)) for key, text in self.encoded.items()
            }
        return self._embedded[transformer]


class SubjectTextProcessor:
    """A cross-attention's stock processor, and the subjects' own texts after it."""

    def __init__(self, stock: Any, told: Callable[[], list[Told]]) -> None:
        object.__setattr__(self, "stock", stock)
        object.__setattr__(self, "blend", outside_graphs(partial(_blend, stock, told)))

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: Any = None,
        **kwargs: Any,
    ) -> Any:
        out = self.stock(
            attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb, **kwargs
        )
        return self.blend(attn, hidden_states, out)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stock, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """What diffusers sets on a processor (its backend) is the stock one's; our mark is not."""
        here = self if name.startswith("_dit_accel") else self.stock
        object.__setattr__(here, name, value)


def _blend(
    stock: Any, told: Callable[[], list[Told]], attn: Any, hidden: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    for row, tokens, text, weight in told():
        mine = stock(attn, hidden[row : row + 1, tokens], text, None, None)
        out[row, tokens] = torch.lerp(out[row, tokens], mine[0], weight)
    return out


def flops(tokens: int, length: int, width: int) -> int:
    """FLOPs of one subject's own text at one cross-attention: projections and both products."""
    return 4 * tokens * width**2 + 4 * length * width**2 + 4 * tokens * length * width
