"""PSNR and SSIM against closed forms, against scikit-image, and for what they refuse."""

from __future__ import annotations

import math
import re

import clips
import numpy as np
import pytest

from dit_accel.metrics import METRICS, psnr, psnr_frames, psnr_mean, ssim, ssim_frames

PIXELS = sorted(name for name, row in METRICS.items() if row.family == "pixels" and not row.needs)


def clip_of(seed, shape=(3, 24, 20, 3)):
    """A smooth clip in [0, 1]: noise alone has no structure that SSIM could lose."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[1], : shape[2]][..., None]
    waves = [
        np.sin(rows / rng.uniform(2, 6) + columns / rng.uniform(2, 6)) for _ in range(shape[0])
    ]
    return np.clip(0.5 + 0.4 * np.stack(waves) * rng.uniform(0.5, 1, shape[3]), 0, 1)


def noisy(clip, sigma, seed=0):
    return np.clip(clip + np.random.default_rng(seed).normal(0, sigma, clip.shape), 0, 1)


def as_uint8(clip):
    return np.rint(clip * 255).astype(np.uint8)


# PSNR: closed forms


def test_black_against_white_is_zero_db():
    black, white = np.zeros((2, 16, 16, 3), np.uint8), np.full((2, 16, 16, 3), 255, np.uint8)
    # MSE = 255², so 10·log10(255² / 255²) = 0; wrapped uint8 would read (0 - 255) mod 256 = 1.
    assert psnr(black, white, data_range=255) == 0.0
    assert psnr(white, black, data_range=255) == 0.0


@pytest.mark.parametrize("sign", [1, -1])
def test_a_shift_of_16_levels_is_24_05_db_in_both_directions(sign):
    base = np.full((2, 16, 16, 3), 100, np.uint8)
    shifted = (base.astype(int) + 16 * sign).astype(np.uint8)
    expected = 20 * math.log10(255 / 16)
    assert expected == pytest.approx(24.05, abs=0.005)
    assert psnr(base, shifted, data_range=255) == pytest.approx(expected, abs=1e-9)


def test_psnr_of_uint8_and_of_the_same_values_as_float_is_equal():
    a, b = as_uint8(clip_of(0)), as_uint8(clip_of(1))
    as_float = psnr(a / 255.0, b / 255.0, data_range=1.0)
    assert psnr(a, b, data_range=255) == pytest.approx(as_float, abs=1e-9)


def test_psnr_scales_with_its_data_range():
    a, b = clip_of(0), clip_of(1)
    one = psnr(a, b, data_range=1.0)
    assert psnr(2 * a - 1, 2 * b - 1, data_range=2.0) == pytest.approx(one, abs=1e-9)


def test_frames_have_their_own_psnr_and_an_exact_frame_is_infinite():
    a = np.zeros((3, 16, 16, 3))
    b = a.copy()
    b[1], b[2] = 0.1, 0.01
    np.testing.assert_allclose(psnr_frames(a, b, data_range=1.0), [math.inf, 20.0, 40.0])


def test_an_exact_frame_counts_as_100_db_in_the_mean():
    a = np.zeros((2, 16, 16, 3))
    b = a.copy()
    b[1] = 0.1
    assert psnr(a, b, data_range=1.0) == pytest.approx((100 + 20) / 2)


def test_no_inexact_frame_counts_more_than_an_exact_one():
    assert psnr_mean(np.array([130.0, 20.0])) == psnr_mean(np.array([math.inf, 20.0])) == 60.0


@pytest.mark.parametrize("pooled", [False, True])
def test_an_exact_clip_is_infinite(pooled):
    a = as_uint8(clip_of(0))
    assert psnr(a, a.copy(), data_range=255, pooled=pooled) == math.inf


def test_pooled_psnr_takes_one_error_for_the_clip():
    a = np.zeros((2, 16, 16, 3))
    b = a.copy()
    b[0], b[1] = 0.1, 0.3
    # (0.1² + 0.3²) / 2 = 0.05; the mean over frames is (20 + 10.46) / 2 = 15.23 instead of 13.01.
    assert psnr(a, b, data_range=1.0, pooled=True) == pytest.approx(-10 * math.log10(0.05))
    assert psnr(a, b, data_range=1.0) == pytest.approx(-5 * math.log10(0.01 * 0.09))


# SSIM: closed forms


def test_an_exact_clip_has_ssim_one():
    for clip, data_range in ((clip_of(0), 1.0), (as_uint8(clip_of(1)), 255)):
        np.testing.assert_array_equal(ssim_frames(clip, clip.copy(), data_range=data_range), 1.0)


def test_ssim_of_flat_clips_is_the_luminance_term():
    x, y, c1 = 0.2, 0.6, 0.01**2
    a, b = np.full((1, 16, 16, 3), x), np.full((1, 16, 16, 3), y)
    expected = (2 * x * y + c1) / (x * x + y * y + c1)
    assert ssim(a, b, data_range=1.0) == pytest.approx(expected, abs=1e-9)


def test_ssim_of_black_against_white_is_nearly_zero_and_does_not_wrap():
    black, white = np.zeros((1, 16, 16, 3), np.uint8), np.full((1, 16, 16, 3), 255, np.uint8)
    c1 = 2.55**2
    assert ssim(black, white, data_range=255) == pytest.approx(c1 / (255**2 + c1), abs=2e-7)


def ssim_by_loops(reference, test, data_range):
    """SSIM of one frame by the definition: every window by itself, moments about its own mean."""
    weights = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(weights, weights) / weights.sum() ** 2
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    scores = []
    for top, left, channel in np.ndindex(*np.subtract(reference.shape, (10, 10, 0))):
        x, y = (f[top : top + 11, left : left + 11, channel] for f in (reference, test))
        mean_x, mean_y = (window * x).sum(), (window * y).sum()
        covariance = (window * (x - mean_x) * (y - mean_y)).sum()
        variances = (window * ((x - mean_x) ** 2 + (y - mean_y) ** 2)).sum()
        luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        scores.append(luminance * (2 * covariance + c2) / (variances + c2))
    return np.mean(scores)


@pytest.mark.parametrize("sigma", [0.003, 0.1])
def test_ssim_is_its_definition_also_where_bright_flat_regions_cancel(sigma):
    # Where x is about 1 and its variance 1e-5, E[x²] - E[x]² in float32 has two digits left.
    noise = np.random.default_rng(0).normal(0, sigma, (18, 16, 3))
    a, b = 0.97 + noise, 0.97 - noise
    expected = ssim_by_loops(a, b, 1.0)
    assert ssim(a[None], b[None], data_range=1.0) == pytest.approx(expected, abs=1e-9)


def test_a_corner_pixel_counts_and_only_in_its_own_frame():
    a = clip_of(0)
    b = a.copy()
    b[1, 0, 0] = 0.0
    frames = ssim_frames(a, b, data_range=1.0)
    assert frames[0] == frames[2] == 1.0
    assert frames[1] < 1.0


# Both: other implementations, properties


@pytest.mark.parametrize("sigma", [0.005, 0.03, 0.1, 0.3])
@pytest.mark.parametrize("kind", ["float", "uint8"])
def test_equal_to_scikit_image(sigma, kind):
    metrics = pytest.importorskip("skimage.metrics")
    a, data_range = clip_of(3, (2, 37, 41, 3)), 1.0
    b = noisy(a, sigma)
    if kind == "uint8":
        a, b, data_range = as_uint8(a), as_uint8(b), 255
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    for index, score in enumerate(ssim_frames(a, b, data_range=data_range)):
        theirs = metrics.structural_similarity(
            a[index], b[index], data_range=data_range, channel_axis=-1, **settings
        )
        assert score == pytest.approx(theirs, abs=1e-6)
    for index, score in enumerate(psnr_frames(a, b, data_range=data_range)):
        theirs = metrics.peak_signal_noise_ratio(a[index], b[index], data_range=data_range)
        assert score == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("name", PIXELS)
def test_more_noise_scores_worse(name):
    metric = METRICS[name]
    a = clip_of(5)
    scores = [metric.function(a, noisy(a, s), data_range=1.0) for s in (0.01, 0.03, 0.1, 0.3)]
    order = sorted(scores, reverse=metric.direction == "higher")
    assert scores == order
    assert len(set(scores)) == len(scores)


@pytest.mark.parametrize("name", PIXELS)
def test_a_row_is_consistent(name):
    metric = METRICS[name]
    a, b = clip_of(1), clip_of(2)
    score = metric.function(a, b, data_range=1.0)
    assert metric.name == name
    assert metric.range[0] <= score <= metric.range[1]
    if metric.frames is not None and metric.mean is not None:
        frames = metric.frames(a, b, data_range=1.0)
        assert frames.shape == (len(a) - metric.span + 1,)
        assert metric.mean(frames) == score


@pytest.mark.parametrize("name", PIXELS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_one_channel_and_every_float_are_scored_and_inputs_are_left_alone(name, dtype):
    a = clip_of(1, (2, 16, 16, 1)).astype(dtype)
    b = noisy(a, 0.1).astype(dtype)
    before = a.copy(), b.copy()
    grey = METRICS[name].function(a, b, data_range=1.0)
    rgb = METRICS[name].function(a.repeat(3, 3), b.repeat(3, 3), data_range=1.0)
    assert grey == pytest.approx(rgb, abs=1e-9)
    np.testing.assert_array_equal(a, before[0])
    np.testing.assert_array_equal(b, before[1])


# Both: what they refuse

GOOD = np.zeros((2, 16, 16, 3))
NAN = np.where(np.arange(2)[:, None, None, None] == 1, np.nan, GOOD)


@pytest.mark.parametrize("name", PIXELS)
@pytest.mark.parametrize(
    ("reference", "test", "data_range", "message"),
    [
        (GOOD, GOOD[:1], 1.0, "test has shape (1, 16, 16, 3), reference has (2, 16, 16, 3)"),
        (GOOD[0], GOOD[0], 1.0, "reference has shape (16, 16, 3); accepted: (T, H, W, C)"),
        (
            GOOD[..., :2],
            GOOD[..., :2],
            1.0,
            "accepted: (T, H, W, C) with T at least 1 and C 1 or 3",
        ),
        (GOOD[:0], GOOD[:0], 1.0, "has shape (0, 16, 16, 3); accepted: (T, H, W, C) with T at"),
        (GOOD.astype(np.uint8), GOOD, 255, "reference has dtype uint8, test has float64"),
        (GOOD.astype(int), GOOD.astype(int), 255, "reference has dtype int64; accepted: uint8"),
        (GOOD, GOOD.astype(int), 255, "test has dtype int64; accepted: uint8 or float"),
        (GOOD, GOOD, 0, "data_range is 0; accepted: a finite number above 0"),
        (GOOD, GOOD, -1.0, "data_range is -1.0"),
        (GOOD, GOOD, math.nan, "data_range is nan"),
        (GOOD.astype(np.uint8), GOOD.astype(np.uint8), 1.0, "data_range is 1.0; accepted: 255"),
        (NAN, GOOD, 1.0, "reference has NaN or infinite values in frame 1"),
        (GOOD, NAN, 1.0, "test has NaN or infinite values in frame 1"),
        (GOOD + np.inf, GOOD, 1.0, "reference has NaN or infinite values in frame 0"),
    ],
)
def test_refusals_name_the_argument_and_what_is_accepted(
    name, reference, test, data_range, message
):
    with pytest.raises(ValueError, match=re.escape(message)):
        METRICS[name].function(reference, test, data_range=data_range)


def test_ssim_refuses_frames_smaller_than_its_window():
    small = np.zeros((1, 10, 16, 3))
    with pytest.raises(
        ValueError, match=r"reference has frames of 10x16; accepted: at least 11x11"
    ):
        ssim(small, small, data_range=1.0)
    assert ssim(np.zeros((1, 11, 11, 3)), np.zeros((1, 11, 11, 3)), data_range=1.0) == 1.0


def test_data_range_is_mandatory():
    with pytest.raises(TypeError, match="data_range"):
        psnr(GOOD, GOOD)


# SSIM in float32


@pytest.mark.parametrize("level", [0, 1, 128, 254, 255])
@pytest.mark.parametrize("size", [(11, 11), (40, 33), (300, 520)])
def test_float32_ssim_keeps_five_digits_in_flat_and_saturated_frames(level, size):
    metrics = pytest.importorskip("skimage.metrics")
    rng = np.random.default_rng(0)
    pair = [
        np.clip(level + rng.integers(-2, 3, (1, *size, 3)), 0, 255).astype(np.uint8)
        for _ in range(2)
    ]
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    theirs = metrics.structural_similarity(
        pair[0][0], pair[1][0], data_range=255, channel_axis=-1, **settings
    )
    assert ssim_frames(*pair, data_range=255)[0] == pytest.approx(theirs, abs=5e-6)


def test_uint8_and_float_ssim_agree():
    a, b = clips.smooth(), clips.noisy(clips.smooth(), 30)
    as_float = ssim(a / 255.0, b / 255.0, data_range=1.0)
    assert ssim(a, b, data_range=255) == pytest.approx(as_float, abs=2e-6)
