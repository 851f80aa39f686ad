"""Structural similarity of a clip against its reference.

11x11 Gaussian of sigma 1.5, K1 = 0.01 and K2 = 0.03, population covariance, only windows that lie
wholly inside the frame, each RGB channel by itself, then the mean over windows, channels and
frames. That is the convention of the scripts that TeaCache, PAB and MagCache share, and equals
scikit-image's `structural_similarity(gaussian_weights=True, sigma=1.5,
use_sample_covariance=False)`. Luma, a box window or padded borders score other digits.

It filters sum and difference of the two frames, s and d, instead of the frames themselves:

    luminance = 1 - μd² / ((μs² + μd²)/2 + C1)
    contrast · structure = 1 - var(d) / ((var(s) + var(d))/2 + C2)

which is the same by algebra. What is subtracted from 1 vanishes with d, and rounding with it. So
uint8 frames, whose s, d and squares float32 holds exactly, are filtered in float32, to five digits
(worst seen: 3e-6, in a single window of noise near black); floats are filtered in float64. Strips
of rows keep the work in the CPU's cache.

It does not know perception of colour or motion; frames are scored one by one. Source: Wang et al.,
"Image Quality Assessment: From Error Visibility to Structural Similarity", IEEE TIP 13(4), 2004,
III-B.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from dit_accel.metrics.clips import check_pair

WINDOW = 11
SIGMA = 1.5
K1 = 0.01
K2 = 0.03

_STRIP_VALUES = 240_000  # of a frame, filtered at once: five float32 buffers of it fit in L2


def ssim(reference: npt.NDArray[Any], test: npt.NDArray[Any], *, data_range: float) -> float:
    """SSIM of a clip: the mean over frames.

    Args:
        reference: `(T, H, W, C)`, uint8 or float, H and W of at least 11.
        test: same shape and kind of dtype.
        data_range: largest minus smallest possible value; 255 for uint8.

    Returns:
        At most 1, which only exact clips reach.

    Raises:
        ValueError: if the clips cannot be compared; see `clips.check_pair`.
    """
    return ssim_mean(ssim_frames(reference, test, data_range=data_range))


def ssim_frames(
    reference: npt.NDArray[Any], test: npt.NDArray[Any], *, data_range: float
) -> npt.NDArray[np.float64]:
    """SSIM of each frame.

    Args:
        reference: `(T, H, W, C)`, uint8 or float, H and W of at least 11.
        test: same shape and kind of dtype.
        data_range: largest minus smallest possible value; 255 for uint8.

    Returns:
        `(T,)` float64.

    Raises:
        ValueError: if the clips cannot be compared; see `clips.check_pair`.
    """
    check_pair(reference, test, data_range=data_range, smallest=WINDOW)
    return windowed_frames(reference, test, data_range=data_range, kernel=gaussian())


def ssim_mean(frames: npt.NDArray[np.float64]) -> float:
    """Mean of frame scores `(T,)`."""
    return float(frames.mean())


def gaussian() -> npt.NDArray[np.float64]:
    """The window's weights along one axis, `(11, 1)`, of sum 1."""
    import cv2

    return np.asarray(cv2.getGaussianKernel(WINDOW, SIGMA, cv2.CV_64F), np.float64)


def windowed_frames(
    reference: npt.NDArray[Any],
    test: npt.NDArray[Any],
    *,
    data_range: float,
    kernel: npt.NDArray[np.float64],
    unbias: float = 1.0,
) -> npt.NDArray[np.float64]:
    """SSIM of each frame with any separable window; checks nothing.

    Args:
        reference: `(T, H, W, C)`, uint8 or float.
        test: same shape and kind of dtype.
        data_range: largest minus smallest possible value; 255 for uint8.
        kernel: weights along one axis, `(N, 1)`, N odd, of sum 1; H and W are at least N.
        unbias: factor on variances and covariance; 1 for those of the population.

    Returns:
        `(T,)` float64.
    """
    return np.array(
        [
            _ssim_frame(expected, actual, data_range, kernel, unbias)
            for expected, actual in zip(reference, test, strict=True)
        ]
    )


def _ssim_frame(
    x: npt.NDArray[Any],
    y: npt.NDArray[Any],
    data_range: float,
    kernel: npt.NDArray[np.float64],
    unbias: float,
) -> float:
    """The mean of the SSIM map of two frames `(H, W, C)`."""
    dtype = np.float32 if x.dtype == np.uint8 else np.float64
    total, count = 0.0, 0
    for rows in _strips(x.shape, len(kernel)):
        strips = x[rows].astype(dtype), y[rows].astype(dtype)
        scores = _ssim_map(*strips, data_range, kernel, unbias)
        total += float(scores.sum(dtype=np.float64))
        count += scores.size
    return total / count


def _strips(shape: tuple[int, ...], window: int) -> Iterator[slice]:
    """Rows to filter together: windows of neighbouring strips overlap, their centres do not."""
    centres = max(window, _STRIP_VALUES // (shape[1] * shape[2]))
    for top in range(0, shape[0] - window + 1, centres):
        yield slice(top, top + centres + window - 1)


def _ssim_map(
    x: npt.NDArray[Any],
    y: npt.NDArray[Any],
    data_range: float,
    kernel: npt.NDArray[np.float64],
    unbias: float,
) -> npt.NDArray[Any]:
    """SSIM of every window of two float frames `(H, W, C)`, which it overwrites.

    In place, as most of the time would go to fetching memory. The sum is centred before it is
    squared, so that its variance is not a small difference of large numbers.
    """
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2 / unbias
    d = x - y
    s = np.add(x, y, out=x)
    s -= data_range
    mean_s, mean_d = _windowed(s, kernel), _windowed(d, kernel)
    variance_s = _windowed(np.multiply(s, s, out=s), kernel)
    variance_d = _windowed(np.multiply(d, d, out=d), kernel)
    variance_s -= mean_s * mean_s
    mean_d *= mean_d
    variance_d -= mean_d
    mean_s += data_range
    mean_s *= mean_s
    return _similarity(mean_d, mean_s, c1) * _similarity(variance_d, variance_s, c2)


def _similarity(d: npt.NDArray[Any], s: npt.NDArray[Any], constant: float) -> npt.NDArray[Any]:
    """1 - d / ((s + d)/2 + constant), in the memory of both."""
    s += d
    s *= 0.5
    s += constant
    d /= s
    return np.subtract(1, d, out=d)


def _windowed(frame: npt.NDArray[Any], kernel: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
    """Weighted mean around each pixel whose window lies wholly inside the frame `(H, W, C)`."""
    import cv2

    border = len(kernel) // 2
    filtered = cv2.sepFilter2D(frame, -1, kernel, kernel).reshape(frame.shape)
    return filtered[border:-border, border:-border]
