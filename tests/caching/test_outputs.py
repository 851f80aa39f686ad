"""Outputs of forwards: one prediction, or that of a video and its sound."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from diffusers.utils import BaseOutput

from dit_accel.caching.outputs import taken


@dataclass
class Both(BaseOutput):
    sample: torch.Tensor
    audio: torch.Tensor | None = None


def test_worked_example():
    """A video of 2 x 3 and a sound of 1 in each of two rows: rows of 7 numbers, and back."""
    video, sound = torch.arange(12.0).reshape(2, 2, 3), torch.tensor([[20.0], [21.0]])
    value, form = taken((video, sound))
    assert value.tolist() == [[0, 1, 2, 3, 4, 5, 20], [6, 7, 8, 9, 10, 11, 21]]
    twice = form.output(2 * value)
    assert torch.equal(twice[0], 2 * video) and torch.equal(twice[1], 2 * sound)
    assert torch.equal(form.first(value), video)


def values(output):
    return list(output.values()) if isinstance(output, dict) else list(output)


@pytest.mark.parametrize(
    "output",
    [
        (torch.ones(2, 3),),
        (torch.ones(2, 3), None),
        Both(torch.ones(2, 3)),
        Both(torch.ones(2, 3), torch.zeros(2, 1, dtype=torch.bfloat16)),
        (torch.ones(2, 3), torch.zeros(3, 1)),  # other rows: all in one
    ],
)
def test_an_output_comes_back_in_its_form(output):
    value, form = taken(output)
    again = form.output(value)
    assert type(again) is type(output)
    for one, other in zip(values(again), values(output), strict=True):
        if other is None:
            assert one is None
        else:
            assert torch.equal(one, other) and one.dtype == other.dtype
    assert torch.equal(form.first(value), output[0])


@pytest.mark.parametrize("output", [(torch.ones(1), {}), (None, {"cache": 1}), (None,)])
def test_something_else_than_predictions_is_refused(output):
    with pytest.raises(ValueError, match=r"a forward returns .*; accepted: tensors only"):
        taken(output)
