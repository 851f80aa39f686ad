"""Structural similarity of a clip against its reference.

11x11 Gaussian of sigma 1.5, K1 = 0.01 and K2 = 0.03, population covariance, only windows that lie
wholly inside the frame, each RGB channel by itself, then the mean over windows, channels and
frames. That is the convention of the scripts that TeaCache, PAB and MagCache share, and equals
scikit-image's `structural_similarity(gaussian_weights=True, sigma=1.5,
use_sample_covariance=False)`. Luma, a box window or padded borders score other digits.

It works in float64: in float32, `E[x²] - E[x]²` loses the variance of flat bright regions. It does
not know perception of colour or motion; frames are scored one by one. Source: Wang et al., "Image
Quality Assessment: From Error Visibility to Structural Similarity", IEEE TIP 13(4), 2004, III-B.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import numpy.typing as npt

from dit_accel.metrics.clips import check_pair

WINDOW = 11
SIGMA = 1.5
K1 = 0.01
K2 = 0.03


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
    pairs = zip(reference, test, strict=True)
    return np.array(
        [
            _ssim_frame(expected.astype(np.float64), actual.astype(np.float64), data_range)
            for expected, actual in pairs
        ]
    )


def ssim_mean(frames: npt.NDArray[np.float64]) -> float:
    """Mean of frame scores `(T,)`."""
    return float(frames.mean())


def _ssim_frame(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], data_range: float) -> float:
    """The mean of the SSIM map of two frames `(H, W, C)`; four filters serve all its moments."""
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    mean_x, mean_y = _windowed(x), _windowed(y)
    mean_xy, mean_squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
    covariance = _windowed(x * y) - mean_xy
    variances = _windowed(x * x + y * y) - mean_squares
    luminance = (2.0 * mean_xy + c1) / (mean_squares + c1)
    contrast_structure = (2.0 * covariance + c2) / (variances + c2)
    return float((luminance * contrast_structure).mean())


def _windowed(frame: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Gaussian mean around each pixel whose window lies wholly inside the frame `(H, W, C)`."""
    import cv2

    kernel = cv2.getGaussianKernel(WINDOW, SIGMA, cv2.CV_64F)
    border = WINDOW // 2
    filtered = cv2.sepFilter2D(frame, cv2.CV_64F, kernel, kernel)
    return cast("npt.NDArray[np.float64]", filtered[border:-border, border:-border])
