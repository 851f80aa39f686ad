"""Computes the structural similarity (SSIM) of a clip and its reference.

    luminance = 1 - μd² / ((μs² + μd²)/2 + C1)
    contrast · structure = 1 - var(d) / ((var(s) + var(d))/2 + C2)

with s and d the sum and the difference of two frames, and Ci = (Ki * data_range)². This equals the
form in the paper, and its rounding error vanishes with d.

In: two clips `(T, H, W, C)`. Out: the mean over windows, channels and frames.
Knows: 11x11 Gaussian of sigma 1.5, K1 = 0.01, K2 = 0.03, population covariance, windows completely
inside the frame, each RGB channel separately. uint8 is filtered in float32 (exact for s, d and
their squares; worst error seen 3e-6), floats in float64. Does not know colour perception or motion.
Source: Wang et al., IEEE TIP 13(4), 2004, III-B; the convention of the scripts that TeaCache, PAB
and MagCache share, and scikit-image's `structural_similarity(gaussian_weights=True, sigma=1.5,
use_sample_covariance=False)`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dit_accel.metrics.clips import Clip, Scores, check_pair
from dit_accel.metrics.mae import mean

WINDOW = 11
SIGMA = 1.5
K1 = 0.01
K2 = 0.03

Kernel = Scores  # weights along one axis, `(N, 1)`
# values of a frame that are filtered at once: five float32 buffers of them fit in the L2 cache
_STRIP_VALUES = 240_000


def ssim(reference: Clip, test: Clip, *, data_range: float) -> float:
    """SSIM of a clip: the mean over frames.

    Args:
        reference: `(T, H, W, C)`, uint8 or float, H and W of at least 11.
        test: same shape and kind of dtype.
        data_range: largest minus smallest possible value; 255 for uint8.

    Returns:
        At most 1, the value of exact clips only.

    Raises:
        ValueError: if the clips cannot be compared; see `clips.check_pair`.

    Example:
        >>> ramp = np.linspace(0, 1, 256).reshape(1, 16, 16, 1)
        >>> ssim(ramp, ramp, data_range=1.0)
        1.0
    """
    return mean(ssim_frames(reference, test, data_range=data_range))


def ssim_frames(reference: Clip, test: Clip, *, data_range: float) -> Scores:
    """SSIM of each frame `(T,)`. Arguments and errors: see `ssim`."""
    check_pair(reference, test, data_range=data_range, smallest=WINDOW)
    return windowed_frames(reference, test, data_range=data_range, kernel=gaussian())


def gaussian() -> Kernel:
    """The window's weights along one axis, `(11, 1)`; their sum is 1."""
    import cv2

    return np.asarray(cv2.getGaussianKernel(WINDOW, SIGMA, cv2.CV_64F), np.float64)


def windowed_frames(
    reference: Clip, test: Clip, *, data_range: float, kernel: Kernel, unbias: float = 1.0
) -> Scores:
    """SSIM of each frame with any separable window, without checks.

    Args:
        reference: `(T, H, W, C)`, uint8 or float.
        test: same shape and kind of dtype.
        data_range: largest minus smallest possible value; 255 for uint8.
        kernel: weights along one axis, `(N, 1)`, N odd, with sum 1; H and W are at least N.
        unbias: factor of variances and covariance; 1 for those of the population.

    Returns:
        `(T,)` float64.
    """
    return np.array(
        [
            _ssim_frame(expected, actual, data_range, kernel, unbias)
            for expected, actual in zip(reference, test, strict=True)
        ]
    )


def _ssim_frame(x: Clip, y: Clip, data_range: float, kernel: Kernel, unbias: float) -> float:
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
    """Ranges of rows to filter together. The windows of neighbouring strips overlap, but their
    centres do not."""
    centres = max(window, _STRIP_VALUES // (shape[1] * shape[2]))
    for top in range(0, shape[0] - window + 1, centres):
        yield slice(top, top + centres + window - 1)


def _ssim_map(x: Clip, y: Clip, data_range: float, kernel: Kernel, unbias: float) -> Clip:
    """SSIM of every window of two float frames `(H, W, C)`. The frames are overwritten.

    It works in place, because memory traffic takes most of the time. The sum is centred before it
    is squared, because a small difference of large numbers loses digits.
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


def _similarity(d: Clip, s: Clip, constant: float) -> Clip:
    """1 - d / ((s + d)/2 + constant), computed in place."""
    s += d
    s *= 0.5
    s += constant
    d /= s
    return np.subtract(1, d, out=d)


def _windowed(frame: Clip, kernel: Kernel) -> Clip:
    """Weighted mean around each pixel whose window is completely inside the frame `(H, W, C)`."""
    import cv2

    border = len(kernel) // 2
    filtered = cv2.sepFilter2D(frame, -1, kernel, kernel).reshape(frame.shape)
    return filtered[border:-border, border:-border]
