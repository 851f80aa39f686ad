"""Computes LPIPS: the distance of two frames in the features of a trained AlexNet; lower is closer.

In: two clips, and the weights' files. Out: the mean over the frame and over frames.
Knows: it looks for the weights of the backbone in the given path, in `$DIT_ACCEL_LPIPS_WEIGHTS`,
and in torchvision's download cache. Without weights there is no score. It runs on the CPU in plain
torch, some frames at a time. It does not need torchvision, uses the `lpips` package only for its
linear heads, and downloads nothing.
Source: LPIPS v0.1, Zhang et al., arXiv 1801.03924, section 3.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dit_accel.metrics import networks
from dit_accel.metrics.accumulate import FrameScores
from dit_accel.metrics.clips import Clip, Scores, Unavailable, check_pair
from dit_accel.metrics.mae import mean
from dit_accel.metrics.networks import Tensors, WeightsFile

if TYPE_CHECKING:
    import torch

VARIABLE = "DIT_ACCEL_LPIPS_WEIGHTS"
BACKBONE = "alexnet-owt-7be5be79.pth"
HEADS = "alex.pth"
SMALLEST_ALEXNET = 31
"""Least H and W from which AlexNet's last convolution still gets a value."""

_CONVOLUTIONS = ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1))  # layer, stride, padding
_POOLED_BEFORE = (3, 6)
_HEADS = tuple(f"lin{index}.model.1.weight" for index in range(len(_CONVOLUTIONS)))
_BATCH = 4


@dataclass(frozen=True)
class Weights:
    """The files of a network. `heads` may be the file of the backbone."""

    backbone: Path
    heads: Path


def lpips(
    reference: Clip,
    test: Clip,
    *,
    data_range: float,
    weights: WeightsFile | None = None,
    spatial: bool = False,
) -> float:
    """LPIPS of a clip: the mean over frames.

    Args:
        reference: `(T, H, W, C)` RGB or grey, uint8 or float in [0, data_range]; H, W of at
            least 31.
        test: same shape and kind of dtype.
        data_range: largest possible value; 255 for uint8.
        weights: see `find_weights`.
        spatial: enlarge each layer's map to the frame's size before its mean; this changes the
            sixth digit.

    Returns:
        At least 0, which exact clips reach.

    Raises:
        ValueError: if the clips cannot be compared, or a file holds other weights.
        Unavailable: if there are no weights here.
    """
    frames = lpips_frames(reference, test, data_range=data_range, weights=weights, spatial=spatial)
    return mean(frames)


def lpips_frames(
    reference: Clip,
    test: Clip,
    *,
    data_range: float,
    weights: WeightsFile | None = None,
    spatial: bool = False,
) -> Scores:
    """LPIPS of each frame, `(T,)`. Arguments and errors: see `lpips`."""
    check_pair(reference, test, data_range=data_range, smallest=SMALLEST_ALEXNET)
    network = _load(find_weights(weights))
    return networks.distances(
        reference, test, data_range, features=functools.partial(_features, network),
        heads=[network[name] for name in _HEADS], at_once=_BATCH, spatial=spatial,
    )  # fmt: skip


def start_lpips(
    data_range: float, *, weights: WeightsFile | None = None, spatial: bool = False
) -> FrameScores:
    """Find and load the weights, and return an accumulator. Errors: see `lpips`."""
    _load(find_weights(weights))
    frames = functools.partial(lpips_frames, weights=weights, spatial=spatial)
    return FrameScores(frames, mean, span=1, data_range=data_range)


def find_weights(path: WeightsFile | None = None) -> Weights:
    """Find the files of the network on this machine.

    Args:
        path: torchvision's AlexNet (keys `features.*`), with or without the heads
            (`lin0.model.1.weight`, ...) in the same file; else `$DIT_ACCEL_LPIPS_WEIGHTS`, else
            torch's hub cache. If it has no heads, they are read from an `alex.pth` beside it, else
            from an installed `lpips` or `torchmetrics`.

    Raises:
        Unavailable: a file is missing; the message says which, and where it was expected.
    """
    backbone = _find_backbone(path)
    if _HEADS[0] in networks.read_tensors(backbone):
        return Weights(backbone, backbone)
    for heads in (backbone.with_name(HEADS), *_packaged_heads()):
        if heads.is_file():
            return Weights(backbone, heads)
    raise Unavailable(
        f"no linear heads: neither {HEADS} beside {backbone}, nor in the lpips package "
        "(pip install --no-deps lpips)"
    )


def _find_backbone(path: WeightsFile | None) -> Path:
    named = networks.named_file(path, VARIABLE)
    if named is not None:
        return named
    home = os.environ.get("TORCH_HOME") or Path(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "torch"
    )
    cached = Path(home, "hub", "checkpoints", BACKBONE)
    if not cached.is_file():
        raise Unavailable(
            f"no weights: pass lpips_weights, set {VARIABLE}, or put {BACKBONE} of torchvision "
            f"at {cached}"
        )
    return cached


def _packaged_heads() -> list[Path]:
    """The heads in an installed package. It is not imported, because it would import
    torchvision."""
    places = {"lpips": "weights/v0.1", "torchmetrics": "functional/image/lpips_models"}
    found = []
    for package, folder in places.items():
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            found.append(Path(spec.origin).parent / folder / HEADS)
    return found


@functools.lru_cache(maxsize=4)
def _load(weights: Weights) -> Tensors:
    """The tensors of the network, by the names of torchvision and lpips."""
    layers = [f"features.{n}.{part}" for n, _, _ in _CONVOLUTIONS for part in ("weight", "bias")]
    return networks.chosen(layers, weights.backbone, "AlexNet") | networks.chosen(
        _HEADS, weights.heads, "AlexNet"
    )


def _features(network: Tensors, frames: torch.Tensor) -> list[torch.Tensor]:
    """The outputs of AlexNet's five convolutions, after ReLU."""
    import torch.nn.functional as F

    features = []
    for layer, stride, padding in _CONVOLUTIONS:
        if layer in _POOLED_BEFORE:
            frames = F.max_pool2d(frames, 3, 2)
        weight, bias = (network[f"features.{layer}.{part}"] for part in ("weight", "bias"))
        frames = F.relu(F.conv2d(frames, weight, bias, stride=stride, padding=padding))
        features.append(frames)
    return features
