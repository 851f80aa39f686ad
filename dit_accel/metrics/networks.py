"""Shared by distances in features of a trained network: reading of weights, inputs, the distance.

In: a file of tensors; frames; features of two clips. Out: the tensors by name; the network's input;
one distance for each frame.
Knows: a file is read as tensors only, never as code. Does not know the networks (`lpips`,
`st_lpips`), nor where their files are.
Source: LPIPS, arXiv 1801.03924, section 3.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dit_accel.metrics.clips import Scores

if TYPE_CHECKING:
    import torch

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
Tensors = dict[str, Any]


@functools.lru_cache(maxsize=4)
def read_tensors(path: Path) -> Tensors:
    """The tensors of a file by name.

    Raises:
        ValueError: the file has other content.
    """
    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"weights is {str(path)!r}: torch cannot read it ({error})") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"weights is {str(path)!r}; accepted: a file with a dict of tensors")
    return loaded


def chosen(names: Iterable[str], path: Path, network: str) -> Tensors:
    """Some tensors of a file, in float32.

    Raises:
        ValueError: the file lacks one; `network` is named as the network that has it.
    """
    tensors = read_tensors(path)
    names = list(names)
    for name in names:
        if name not in tensors:
            raise ValueError(f"weights is {str(path)!r}: it has no {name!r}; {network} has")
    return {name: tensors[name].float() for name in names}


def as_input(clip: npt.NDArray[np.uint8]) -> torch.Tensor:
    """The network's input `(T, 3, H, W)` from uint8 frames `(T, H, W, C)`, in the networks'
    scale."""
    import torch

    rgb = np.repeat(clip, 3, axis=3) if clip.shape[3] == 1 else clip
    frames = torch.from_numpy(np.ascontiguousarray(rgb.transpose(0, 3, 1, 2))).float()
    shift, scale = (torch.tensor(row).view(1, 3, 1, 1) for row in (_SHIFT, _SCALE))
    return (frames / 127.5 - 1 - shift) / scale


def distance(
    reference: Sequence[torch.Tensor],
    test: Sequence[torch.Tensor],
    heads: Sequence[torch.Tensor],
    enlarged: tuple[int, ...] | None = None,
) -> Scores:
    """The weighted squared difference of features of unit length, summed over layers.

    Args:
        reference: features of each layer, `(T, C, H, W)`.
        test: the same.
        heads: weights of the channels of each layer, `(1, C, 1, 1)`.
        enlarged: (H, W) to which each layer's map is enlarged before its mean.

    Returns:
        One distance for each frame, `(T,)`.
    """
    import torch
    import torch.nn.functional as F

    total = torch.zeros(len(reference[0]))
    for expected, actual, head in zip(reference, test, heads, strict=True):
        error = F.conv2d((_unit(expected) - _unit(actual)) ** 2, head)
        if enlarged is not None:
            error = F.interpolate(error, size=enlarged, mode="bilinear")
        total += error.mean(dim=(1, 2, 3))
    return total.double().numpy()


def _unit(features: torch.Tensor) -> torch.Tensor:
    """The features, with the channels of each position scaled to a vector of length 1."""
    return features / (features.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
