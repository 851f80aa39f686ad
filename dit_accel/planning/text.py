"""Encodes prompts once, before a run. The plan is chosen by their text, and the run reuses it.

In: a pipeline and prompts. Out: their `Text`, and the arguments that pass it to the pipeline's
call.
Knows `encode_prompt` of diffusers' pipelines. The text is passed only to a pipeline for which a
test shows that the clip stays bit-equal: WanPipeline. HunyuanVideo has a second encoder. It and
LTX-Video have masks beside the embeddings. For CogVideoX there is no test.
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

REUSES_TEXT = ("WanPipeline",)


@dataclass(frozen=True, eq=False)
class Text:
    """The output of a pipeline's own `encode_prompt` for some prompts.

    Args:
        embeddings: `(B, L, T)`.
        seconds: time that the encoding took.
        length: requested length of prompts, in tokens; None: the pipeline's default.
    """

    embeddings: torch.Tensor
    seconds: float
    length: int | None = None

    @property
    def pooled(self) -> torch.Tensor:
        """`(B, T)`: the mean over tokens, by which a plan is chosen."""
        return pooled(self.embeddings)

    def arguments(self, pipe: Any) -> dict[str, Any]:
        """The arguments that replace the prompts in the pipeline's call.

        There are none if they might change the clip. For instance, without a requested length, the
        call and `encode_prompt` may have different default lengths.
        """
        if type(pipe).__name__ not in REUSES_TEXT or self.length is None:
            return {}
        return {"prompt": None, "prompt_embeds": self.embeddings}


def encode(
    pipe: Any, prompts: Sequence[str], max_sequence_length: int | None = None
) -> Text | None:
    """Encode prompts as a run of the pipeline does; None if the pipeline does it in another way."""
    own = getattr(pipe, "encode_prompt", None)
    if own is None:
        return None
    arguments = {
        "prompt": list(prompts),
        "do_classifier_free_guidance": False,
        "max_sequence_length": max_sequence_length,
    }
    accepted = inspect.signature(own).parameters
    begun = time.perf_counter()
    with torch.no_grad():
        found = own(**{k: v for k, v in arguments.items() if k in accepted and v is not None})
    text = found[0] if isinstance(found, tuple) else found
    if not isinstance(text, torch.Tensor) or text.ndim != 3:
        return None
    measure.synchronise(text.device)
    return Text(text, time.perf_counter() - begun, max_sequence_length)
