"""Computes PSNR and SSIM as ffmpeg's filters do: from 4:2:0 planes, weighted by their pixels.

In: two RGB clips of even sizes. Out: scores of the frames: `average` of the `psnr` filter, `All` of
the `ssim` filter (windows of 8x8 every 4 pixels, no Gaussian).
Knows: RGB becomes BT.601 of limited range. Chroma is halved as swscale does by default: the mean of
two columns, then a cubic filter over eight rows. Because of rounding, one value in ten differs by
one level. Both metrics are high, because chroma is smooth and small.
Source: ffmpeg's `vf_psnr.c`, `vf_ssim.c` and swscale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dit_accel.metrics.clips import Clip, Scores, check_pair, to_levels

SMALLEST_YUV = 16
"""Least H and W at which a chroma plane holds one window."""

_MATRIX = np.array(
    [[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]
)
_OFFSET = np.array([16.0, 128.0, 128.0])
_C1 = int(0.01**2 * 255**2 * 64 + 0.5)
_C2 = int(0.03**2 * 255**2 * 64 * 63 + 0.5)

Plane = npt.NDArray[np.uint8]
Frames = Sequence[Sequence[tuple[Plane, Plane]]]  # the planes of each frame, for both clips


def psnr_frames(reference: Clip, test: Clip, *, data_range: float) -> Scores:
    """PSNR of each frame's planes in dB, infinite if they are exact.

    Arguments and errors: see `psnr.psnr`; RGB, floats in [0, data_range], H and W even and at least
    16.

    Returns:
        `(T,)` float64; pool them with `psnr.psnr_pooled_mean`.
    """
    return psnr_of_planes(_planes(reference, test, data_range))


def psnr_of_planes(frames: Frames) -> Scores:
    """The same for frames that are planes already: `(T,)`."""
    errors = []
    for planes in frames:
        differences = [(x.astype(float) - y.astype(float)) ** 2 for x, y in planes]
        count = sum(difference.size for difference in differences)
        errors.append(sum(float(difference.sum()) for difference in differences) / count)
    with np.errstate(divide="ignore"):
        return 10.0 * np.log10(255.0**2 / np.array(errors))


def ssim_frames(reference: Clip, test: Clip, *, data_range: float) -> Scores:
    """SSIM of each frame's planes, `(T,)`. Arguments and errors: see `psnr_frames`."""
    return ssim_of_planes(_planes(reference, test, data_range))


def ssim_of_planes(frames: Frames) -> Scores:
    """The same for frames that are planes already: `(T,)`."""
    scores = []
    for planes in frames:
        count = sum(x.size for x, _ in planes)
        scores.append(sum(_plane_ssim(x, y) * x.size for x, y in planes) / count)
    return np.array(scores)


def to_planes(frame: npt.NDArray[np.uint8]) -> tuple[Plane, Plane, Plane]:
    """Y `(H, W)`, U and V `(H/2, W/2)`, from RGB `(H, W, 3)`."""
    yuv = frame @ (_MATRIX.T / 255.0) + _OFFSET
    height, width = frame.shape[:2]
    columns = yuv[..., 1:].reshape(height, width // 2, 2, 2).mean(axis=2)
    rows = np.pad(columns, ((3, 3), (0, 0), (0, 0)), mode="edge")
    chroma = sum(weight * rows[at : at + height : 2] for at, weight in enumerate(_halving()))
    luma, halves = (_rounded(part) for part in (yuv[..., 0], chroma))
    return luma, halves[..., 0], halves[..., 1]


def _halving() -> npt.NDArray[np.float64]:
    """A cubic filter (B = 0, C = 0.6) over eight rows, centred between two rows: `(8,)`, with sum
    1."""
    near, far = np.array([0.25, 0.75]), np.array([1.25, 1.75])
    half = np.concatenate(
        [1.4 * near**3 - 2.4 * near**2 + 1, -0.6 * (far**3 - 5 * far**2 + 8 * far - 4)]
    )
    weights = np.concatenate([half[::-1], half])
    return weights / weights.sum()


def _rounded(plane: npt.NDArray[np.float64]) -> Plane:
    return np.rint(plane).clip(0, 255).astype(np.uint8)


def _planes(reference: Clip, test: Clip, data_range: float) -> Frames:
    """The three pairs of planes of each frame."""
    check_pair(reference, test, data_range=data_range, smallest=SMALLEST_YUV)
    _, height, width, channels = reference.shape
    if channels != 3 or height % 2 or width % 2:
        raise ValueError(
            f"reference has frames of {height}x{width}x{channels}: 4:2:0 needs RGB of even sizes"
        )
    pairs = zip(
        to_levels("reference", reference, data_range),
        to_levels("test", test, data_range),
        strict=True,
    )
    return [list(zip(to_planes(x), to_planes(y), strict=True)) for x, y in pairs]


def _plane_ssim(x: Plane, y: Plane) -> float:
    a, b = x.astype(np.int64), y.astype(np.int64)
    sum_a, sum_b = _windows(a), _windows(b)
    product, squares = sum_a * sum_b, sum_a**2 + sum_b**2
    variances = _windows(a * a + b * b) * 64 - squares
    covariance = _windows(a * b) * 64 - product
    upper = (2.0 * product + _C1) * (2.0 * covariance + _C2)
    lower = (squares + float(_C1)) * (variances + float(_C2))
    return float((upper / lower).mean())


def _windows(plane: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Sums of 8x8 pixels, every 4 pixels. Pixels outside of complete 4x4 blocks are left out."""
    rows, columns = plane.shape[0] // 4, plane.shape[1] // 4
    blocks = plane[: rows * 4, : columns * 4].reshape(rows, 4, columns, 4).sum(axis=(1, 3))
    return blocks[:-1, :-1] + blocks[:-1, 1:] + blocks[1:, :-1] + blocks[1:, 1:]


# Maps the functions that score RGB to those that score a file's planes.
OF_PLANES: dict[Any, Any] = {psnr_frames: psnr_of_planes, ssim_frames: ssim_of_planes}
