"""Computes ST-LPIPS: the distance of two frames in features that a small shift hardly changes.

In: two clips, and the network's file. Out: the mean over the frame and over frames; lower is
closer.
Knows: it looks for the file in the given path, in `$DIT_ACCEL_ST_LPIPS_WEIGHTS`, and in an
installed `stlpips-pytorch`, which includes the file (9.9 MB). It imports nothing from that package,
and downloads nothing. It runs on the CPU in plain torch. The numbers are not those of LPIPS.
Source: shift-tolerant LPIPS, arXiv 2207.13686, section 3; AlexNet with a convolution of stride 1
and blurs before each halving. The package stlpips-pytorch 0.0.2 (BSD-2) gives the same number.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from dit_accel.metrics import networks
from dit_accel.metrics.accumulate import FrameScores
from dit_accel.metrics.clips import Clip, Scores, Unavailable, check_pair
from dit_accel.metrics.mae import mean
from dit_accel.metrics.networks import Tensors, WeightsFile

if TYPE_CHECKING:
    import torch

ST_VARIABLE = "DIT_ACCEL_ST_LPIPS_WEIGHTS"
PACKAGE, FILE = "stlpips_pytorch", "weights/vST0.0/alex_shift_tolerant.pth"
EXTRA = "pip install 'dit-accel[st-lpips]'"
SMALLEST_ST = 21
"""Least H and W at which every blur has enough to mirror."""

_LAYERS = {  # name in the file: padding of its convolution
    "net.slice1.0": 2,
    "net.slice2.5": 2,
    "net.slice3.9": 1,
    "net.slice4.11": 1,
    "net.slice5.13": 1,
}
_POOLED_BEFORE = ("net.slice2.5", "net.slice3.9")
_HEADS = tuple(f"lin{index}.model.1.weight" for index in range(len(_LAYERS)))
_BINOMIAL = (0.25, 0.5, 0.25)
_PIXELS = 2**18  # pixels of the frames that are processed at once


def st_lpips(
    reference: Clip, test: Clip, *, data_range: float, weights: WeightsFile | None = None
) -> float:
    """ST-LPIPS of a clip: the mean over frames.

    Args:
        reference: `(T, H, W, C)` RGB or grey, uint8 or float in [0, data_range]; H, W of at
            least 21.
        test: same shape and kind of dtype.
        data_range: largest possible value; 255 for uint8.
        weights: see `find_network`.

    Returns:
        At least 0, which exact clips reach.

    Raises:
        ValueError: if the clips cannot be compared, or the file holds other weights.
        Unavailable: if there are no weights here.
    """
    return mean(st_lpips_frames(reference, test, data_range=data_range, weights=weights))


def st_lpips_frames(
    reference: Clip, test: Clip, *, data_range: float, weights: WeightsFile | None = None
) -> Scores:
    """ST-LPIPS of each frame, `(T,)`. Arguments and errors: see `st_lpips`."""
    check_pair(reference, test, data_range=data_range, smallest=SMALLEST_ST)
    network = _load(find_network(weights))
    return networks.distances(
        reference, test, data_range, features=functools.partial(_features, network),
        heads=[network[name] for name in _HEADS],
        at_once=max(1, _PIXELS // (reference.shape[1] * reference.shape[2])),
    )  # fmt: skip


def start_st_lpips(data_range: float, *, weights: WeightsFile | None = None) -> FrameScores:
    """Find and load the weights, and return an accumulator. Errors: see `st_lpips`."""
    _load(find_network(weights))
    frames = functools.partial(st_lpips_frames, weights=weights)
    return FrameScores(frames, mean, span=1, data_range=data_range)


def find_network(path: WeightsFile | None = None) -> Path:
    """Find the file of the network on this machine.

    Args:
        path: a file like the package's `alex_shift_tolerant.pth`; else
            `$DIT_ACCEL_ST_LPIPS_WEIGHTS`, else that of an installed `stlpips-pytorch`.

    Raises:
        Unavailable: the file is missing; the message says how to get it.
    """
    named = networks.named_file(path, ST_VARIABLE)
    if named is not None:
        return named
    spec = importlib.util.find_spec(PACKAGE)  # not imported: it imports torchvision
    if spec is not None and spec.origin is not None:
        packaged = Path(spec.origin).parent / FILE
        if packaged.is_file():
            return packaged
    raise Unavailable(f"no weights: {EXTRA}, or set {ST_VARIABLE}")


@functools.lru_cache(maxsize=4)
def _load(path: Path) -> Tensors:
    names = [f"{layer}.{part}" for layer in _LAYERS for part in ("weight", "bias")]
    return networks.chosen((*names, *_HEADS), path, "the shift-tolerant AlexNet")


def _features(network: Tensors, frames: torch.Tensor) -> list[torch.Tensor]:
    """The outputs of the five convolutions, after ReLU."""
    import torch.nn.functional as F

    features: list[torch.Tensor] = []
    for layer, padding in _LAYERS.items():
        if layer in _POOLED_BEFORE:
            frames = _halved(F.max_pool2d(frames, 3, 1))
        weight, bias = (network[f"{layer}.{part}"] for part in ("weight", "bias"))
        frames = F.conv2d(frames, weight, bias, padding=padding)
        if not features:  # the blur of the first convolution is before its ReLU
            frames = _halved(frames)
        frames = F.relu(frames)
        features.append(frames)
    return features


def _halved(maps: torch.Tensor) -> torch.Tensor:
    """The map blurred with 1-2-1 in both directions, at every second position. Two positions are
    mirrored at each edge."""
    import torch.nn.functional as F

    padded = F.pad(maps, (2, 2, 2, 2), mode="reflect")
    return _second_rows(_second_rows(padded).transpose(-1, -2)).transpose(-1, -2)


def _second_rows(padded: torch.Tensor) -> torch.Tensor:
    last = (padded.shape[-2] - 3) // 2 * 2 + 1  # after the first row of the last window
    above, middle, below = (padded[..., tap : tap + last : 2, :] for tap in range(3))
    return _BINOMIAL[0] * above + _BINOMIAL[1] * middle + _BINOMIAL[2] * below
