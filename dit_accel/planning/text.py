"""Prompts encoded before a run, once: a plan is chosen by their text, and the run takes it over.

It is handed to those pipelines whose clip is then the same to the last bit, which a test shows of
each: WanPipeline. The others encode anew: HunyuanVideo has a second encoder, and it and LTX-Video
masks beside the embeddings; of CogVideoX no test has shown it, for want of a tiny text encoder.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dit_accel.core import measure
from dit_accel.planning.difficulty import pooled

TAKES_OVER = ("WanPipeline",)


@dataclass(frozen=True, eq=False)
class Text:
    """What a pipeline's own `encode_prompt` made of prompts.

    Args:
        embeddings: `(B, L, T)`.
        seconds: that it took.
        length: of prompts in tokens, that was asked for; None: the pipeline's own.
    """

    embeddings: torch.Tensor
    seconds: float
    length: int | None = None

    @property
    def pooled(self) -> torch.Tensor:
        """`(B, T)`, by which a plan is chosen."""
        return pooled(self.embeddings)

    def arguments(self, pipe: Any) -> dict[str, Any]:
        """What the pipeline's call is given in place of the prompts; nothing where it might then
        make another clip (its call and its `encode_prompt` may default to other lengths)."""
        if type(pipe).__name__ not in TAKES_OVER or self.length is None:
            return {}
        return {"prompt": None, "prompt_embeds": self.embeddings}


def encode(
    pipe: Any, prompts: Sequence[str], max_sequence_length: int | None = None
) -> Text | None:
    """Prompts as a run of the pipeline will have them.

    None where the pipeline encodes prompts in a way of its own.
    """
    own = getattr(pipe, "encode_prompt", None)
    if own is None:
        return None
    given = {
        "prompt": list(prompts),
        "do_classifier_free_guidance": False,
        "max_sequence_length": max_sequence_length,
    }
    accepted = inspect.signature(own).parameters
    begun = time.perf_counter()
    with torch.no_grad():
        found = own(**{k: v for k, v in given.items() if k in accepted and v is not None})
    text = found[0] if isinstance(found, tuple) else found
    if not isinstance(text, torch.Tensor) or text.ndim != 3:
        return None
    measure.synchronise(text.device)
    return Text(text, time.perf_counter() - begun, max_sequence_length)
