"""Takes the prediction out of a forward's output, and puts another prediction into the same form.

In: the output of a transformer: a tuple, or an output class of diffusers. Out: one tensor, and its
`Form`. A forward that predicts a video and its sound has two predictions. They are joined into one
tensor `(B, X)` here, so that a plan gives both the same weights. It knows no model. Ours; there is
no source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, eq=False)
class Form:
    """How a forward returns its predictions.

    Args:
        make: makes an output from a list of values, in order; None for a value that is missing.
        like: the values as tensors without data ("meta"); None for a value that is missing.
    """

    make: Callable[[list[torch.Tensor | None]], Any]
    like: tuple[torch.Tensor | None, ...]

    def first(self, value: torch.Tensor) -> torch.Tensor:
        """The first prediction, in the sampler's shape; with sound, that is the video's."""
        kinds = [one for one in self.like if one is not None]
        if len(kinds) == 1:
            return value
        return _shaped(kinds[0], value[:, : kinds[0].numel() // len(value)])

    def output(self, value: torch.Tensor) -> Any:
        """The output that the forward would return with this prediction. `value` has the shape that
        `taken` returned."""
        kinds = [one for one in self.like if one is not None]
        if len(kinds) == 1:
            return self.make([None if one is None else value for one in self.like])
        rows = len(value)
        widths = [one.numel() // rows for one in kinds]
        parts = iter(zip(kinds, torch.split(value, widths, dim=1), strict=True))
        made = [None if one is None else _shaped(*next(parts)) for one in self.like]
        return self.make(made)


def taken(output: Any) -> tuple[torch.Tensor, Form]:
    """The prediction in an output, and its form.

    Raises:
        ValueError: the output has no tensor, or has something other than tensors.

    Example:
        >>> value, form = taken((torch.zeros(2, 3), torch.ones(2, 2, 2)))
        >>> value.shape
        torch.Size([2, 7])
        >>> [tuple(one.shape) for one in form.output(value)]
        [(2, 3), (2, 2, 2)]
    """
    values, make = _entries(output)
    found = [one for one in values if isinstance(one, torch.Tensor)]
    if not found or len(found) < sum(one is not None for one in values):
        names = ", ".join(type(one).__name__ for one in values if one is not None)
        raise ValueError(f"a forward returns {names or 'nothing'}; accepted: tensors only")
    form = Form(make, tuple(None if one is None else one.to("meta") for one in values))
    if len(found) == 1:
        return found[0], form
    rows = len(found[0]) if len({len(one) for one in found}) == 1 else 1
    return torch.cat([one.reshape(rows, -1) for one in found], dim=1), form


def _entries(output: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """The values of an output, and a function that makes such an output from other values."""
    if isinstance(output, Mapping):  # an output class of diffusers
        kind, names = type(output), list(output)
        return list(output.values()), lambda made: kind(**dict(zip(names, made, strict=True)))
    if isinstance(output, (tuple, list)):
        return list(output), tuple
    return [output], lambda made: made[0]


def _shaped(like: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    return part.reshape(like.shape).to(like.dtype)
