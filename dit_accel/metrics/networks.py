"""Shared by distances in features of a trained network: reading of weights, inputs, the distance.

In: a file of tensors; two clips, and a network's features. Out: the tensors by name; one distance
for each frame.
Knows: a file is read as tensors only, never as code. Does not know the networks (`lpips`,
`st_lpips`), nor where their files are.
Source: LPIPS, arXiv 1801.03924, section 3.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dit_accel.metrics.clips import Clip, Scores, Unavailable, to_levels

if TYPE_CHECKING:
    import torch

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
Tensors = dict[str, Any]
WeightsFile = str | os.PathLike[str]


def named_file(path: WeightsFile | None, variable: str) -> Path | None:
    """The file that was given, else the one that an environment variable names; None: neither.

    Raises:
        Unavailable: it does not exist.
    """
    named = path or os.environ.get(variable)
    if named and not Path(named).is_file():
        raise Unavailable(f"no weights: {os.fspath(named)} is no file")
    return Path(named) if named else None


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


def distances(
    reference: Clip, test: Clip, data_range: float, *,
    features: Callable[[torch.Tensor], Sequence[torch.Tensor]], heads: Sequence[torch.Tensor],
    at_once: int, spatial: bool = False,
) -> Scores:  # fmt: skip
    """The distance of each frame, `(T,)`.

    Args:
        features: those of each layer, `(T, C, h, w)`, of a network's input `(T, 3, H, W)`.
        heads: weights of the channels of each layer, `(1, C, 1, 1)`.
        at_once: how many frames are processed together.
        spatial: whether each layer's map is enlarged to the frame's size before its mean.
    """
    import torch

    size = reference.shape[1:3] if spatial else None
    found = []
    for at in range(0, len(reference), at_once):
        part = slice(at, at + at_once)
        pair = (("reference", reference[part]), ("test", test[part]))
        levels = [to_levels(name, clip, data_range) for name, clip in pair]
        with torch.no_grad():
            expected, actual = (features(as_input(clip)) for clip in levels)
            found.append(distance(expected, actual, heads, size))
    return np.concatenate(found)


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
