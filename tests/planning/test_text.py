"""Prompts that are encoded once: the clip is the same to the last bit."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from diffusers import WanPipeline

from dit_accel.core.generation import ClipSpec, call_arguments
from dit_accel.planning.text import REUSES_TEXT, Text, encode

CLIP = ClipSpec("a red circle moving right", "blue square", 0, 4, 4.0, 16, 16, 9, None, 16)


@contextlib.contextmanager
def counted(kind: type[torch.nn.Module]) -> Any:
    """One entry a forward of the text encoders of this class."""
    calls: list[int] = []
    stock = kind.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return stock(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "forward", forward)
        yield calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"guidance": 1.0},
        {"negative": None},
        {"max_sequence_length": 5},
        {"prompt": "a “RED”  circle &amp; a green square"},
    ],
    ids=str,
)
@pytest.mark.parametrize("experts", [False, True], ids=["wan2.1", "wan2.2"])
def test_a_text_that_is_taken_over_makes_the_same_clip(experts, changes, dtype):
    assert REUSES_TEXT == ("WanPipeline",), "another pipeline needs a case of its own here"
    pipe = tiny.tiny_wan(transformer_2=experts).to(dtype)
    clip = dataclasses.replace(CLIP, **changes)
    stock = pipe(**call_arguments(pipe, clip)).frames
    with counted(type(pipe.text_encoder)) as calls:
        text = encode(pipe, [clip.prompt], clip.max_sequence_length)
        given = text.arguments(pipe)
        made = pipe(**call_arguments(pipe, clip) | given).frames
    assert np.array_equal(made, stock)
    assert len(calls) == (1 if clip.guidance <= 1 else 2)  # the prompt once, and what is not shown
    other = encode(pipe, ["blue square"], clip.max_sequence_length).arguments(pipe)
    moved = pipe(**call_arguments(pipe, clip) | other).frames
    assert not np.array_equal(moved, stock), "the control: the text that is handed over counts"


def test_what_might_be_another_clip_is_not_handed_over():
    """Wan's call takes 512 tokens by default, its `encode_prompt` 226."""

    class Other(WanPipeline):
        pass

    text = Text(torch.zeros(1, 4, 8), 0.5, 4)
    assert text.arguments(Other.__new__(Other)) == {}
    assert Text(torch.zeros(1, 4, 8), 0.5).arguments(WanPipeline.__new__(WanPipeline)) == {}
    assert encode(object(), ["a red circle"]) is None
