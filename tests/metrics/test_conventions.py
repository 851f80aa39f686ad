"""Other tools' numbers against independent implementations of what they compute."""

from __future__ import annotations

import math
import re
import subprocess

import numpy as np
import pytest

from dit_accel.metrics import METRICS, Unavailable, lpips, psnr, ssim, yuv
from dit_accel.metrics.conventions import CONVENTIONS
from dit_accel.metrics.scoring import Scorer, rows_of

cv2 = pytest.importorskip("cv2")


def clip(shape=(3, 48, 64, 3)):
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return np.stack([cv2.GaussianBlur(frame, (0, 0), 2) for frame in noise])


def noisy(frames, levels=(8, 20, 40)):
    rng = np.random.default_rng(1)
    noise = np.stack([rng.normal(0, level, frames.shape[1:]) for level in levels])
    return np.clip(frames + noise, 0, 255).astype(np.uint8)


def value(convention, name, a, b, data_range=255):
    """By the accumulator, in uneven chunks; the row's function must agree."""
    row = CONVENTIONS[convention][name]
    scorer = Scorer(rows_of([name], convention=convention), data_range=data_range)
    scorer.update(a[:1], b[:1])
    scorer.update(a[1:], b[1:])
    score = scorer.compute()[name]
    assert score.value == row.function(a, b, data_range=data_range)
    return score.value


def ssim_by_windows(x, y, weights, unbias=1.0, border=0, mode="valid"):
    """SSIM of one frame in [0, 1] by its definition, every window by itself, in float64."""
    if border:
        pad = ((border, border), (border, border), (0, 0))
        x, y = np.pad(x, pad, mode=mode), np.pad(y, pad, mode=mode)
    width = len(weights)
    windows = [
        np.lib.stride_tricks.sliding_window_view(f, (width, width), axis=(0, 1)) for f in (x, y)
    ]
    mean_x, mean_y = ((w * weights).sum((-1, -2)) for w in windows)
    dx, dy = (w - m[..., None, None] for w, m in zip(windows, (mean_x, mean_y), strict=True))
    variances = unbias * ((dx**2 + dy**2) * weights).sum((-1, -2))
    covariance = unbias * (dx * dy * weights).sum((-1, -2))
    luminance = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
    return (luminance * (2 * covariance + 9e-4) / (variances + 9e-4)).mean()


def gaussian():
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    return np.outer(line, line) / line.sum() ** 2


BOX = np.full((11, 11), 1 / 121)


# teacache


def test_teacache_psnr_counts_exact_frames_as_100_and_never_says_infinity():
    a, b = clip(), noisy(clip())
    b[0] = a[0]
    errors = [((x / 255.0 - y / 255.0) ** 2).mean() for x, y in zip(a, b, strict=True)]
    expected = np.mean([100 if e < 1e-10 else 20 * math.log10(1 / math.sqrt(e)) for e in errors])
    assert value("teacache", "psnr_db", a, b) == pytest.approx(expected)
    assert value("teacache", "psnr_db", a, a) == 100.0
    assert psnr(a, a, data_range=255) == math.inf


def test_teacache_ssim_is_ours():
    a, b = clip(), noisy(clip())
    expected = np.mean(
        [ssim_by_windows(x / 255, y / 255, gaussian()) for x, y in zip(a, b, strict=True)]
    )
    assert value("teacache", "ssim", a, b) == pytest.approx(expected, abs=2e-6)
    assert value("teacache", "ssim", a, b) == ssim(a, b, data_range=255)


# cache-dit


def test_cache_dit_psnr_wraps_as_its_uint8_does():
    a = np.full((2, 16, 16, 3), 100, np.uint8)
    b = a.copy()
    b[0] -= 16  # 16² = 256, which is 0 in uint8: an exact frame, as it sees it, and left out
    b[1] += 20  # 20² = 400, which is 144: PSNR 26.55 where 22.11 is true
    expected = 20 * math.log10(255 / 12)
    assert value("cache-dit", "psnr_db", a, b) == pytest.approx(expected)
    assert psnr(a[1:], b[1:], data_range=255) == pytest.approx(20 * math.log10(255 / 20))
    assert "WRAP" in CONVENTIONS["cache-dit"]["psnr_db"].convention


def test_cache_dit_reports_nothing_for_exact_clips_and_reads_uint8_only():
    a = clip()
    with pytest.raises(Unavailable, match="None where every frame is exact"):
        CONVENTIONS["cache-dit"]["psnr_db"].function(a, a, data_range=255)
    with pytest.raises(ValueError, match="dtype float64; accepted by cache-dit: uint8"):
        CONVENTIONS["cache-dit"]["psnr_db"].function(a / 255, a / 255, data_range=1.0)


def test_cache_dit_is_what_its_package_computes():
    theirs = pytest.importorskip("cache_dit.metrics.metrics")
    a, b = clip(), noisy(clip())
    for name, function in (
        ("psnr_db", theirs.calculate_psnr),
        ("ssim", theirs.compute_ssim_file),
    ):
        expected = np.mean([function(x, y) for x, y in zip(a, b, strict=True)])
        assert value("cache-dit", name, a, b) == pytest.approx(expected, abs=5e-6)


def test_cache_dit_ssim_is_scikit_images_default():
    metrics = pytest.importorskip("skimage.metrics")
    a, b = clip(), noisy(clip())
    expected = np.mean(
        [metrics.structural_similarity(x, y, channel_axis=2) for x, y in zip(a, b, strict=True)]
    )
    assert value("cache-dit", "ssim", a, b) == pytest.approx(expected, abs=2e-6)


# easycache, svg


def test_easycache_psnr_is_pooled():
    a, b = clip(), noisy(clip())
    expected = -10 * math.log10(((a / 255.0 - b / 255.0) ** 2).mean())
    assert value("easycache", "psnr_db", a, b) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("convention", "weights", "mode"),
    [("easycache", gaussian(), "reflect"), ("svg", BOX, "constant")],
)
def test_padded_ssims_are_their_definition(convention, weights, mode):
    a, b = clip(), noisy(clip())
    expected = np.mean(
        [
            ssim_by_windows(x / 255, y / 255, weights, border=5, mode=mode)
            for x, y in zip(a, b, strict=True)
        ]
    )
    assert value(convention, "ssim", a, b) == pytest.approx(expected, abs=2e-6)
    as_float = value(convention, "ssim", a / 255, b / 255, data_range=1.0)
    assert as_float == pytest.approx(expected, abs=1e-9)


def test_easycache_ssim_is_what_torchmetrics_computes():
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure as theirs
    except Exception as error:  # a torchvision beside another torch raises RuntimeError
        pytest.skip(f"torchmetrics cannot be imported: {error}")
    torch = pytest.importorskip("torch")
    a, b = clip(), noisy(clip())
    pair = [torch.from_numpy(c).permute(0, 3, 1, 2).double() / 255 for c in (b, a)]
    expected = float(theirs(*pair, data_range=1.0))
    assert value("easycache", "ssim", a, b) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("convention", ["svg", "cache-dit"])
def test_lpips_that_a_tool_does_not_give_here_says_why(convention):
    scorer = Scorer(rows_of(["lpips"], convention=convention), data_range=255)
    assert re.search("VGG16|wrong module", scorer.unavailable["lpips"])


@pytest.mark.parametrize("convention", ["teacache", "easycache"])
def test_spatial_lpips_takes_the_weights(convention, tmp_path):
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    shapes = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3)}
    shapes |= {8: (256, 384, 3), 10: (256, 256, 3)}
    tensors = {}
    for index, (layer, (out, into, width)) in enumerate(shapes.items()):
        weight = torch.randn(out, into, width, width, generator=generator)
        tensors[f"features.{layer}.weight"] = weight * (2 / (into * width * width)) ** 0.5
        tensors[f"features.{layer}.bias"] = torch.zeros(out)
        tensors[f"lin{index}.model.1.weight"] = torch.ones(1, out, 1, 1)
    torch.save(tensors, tmp_path / "w.pth")
    a, b = clip(), noisy(clip())
    rows = rows_of(["lpips"], convention=convention, lpips_weights=tmp_path / "w.pth")
    scorer = Scorer(rows, data_range=255)
    scorer.update(a, b)
    expected = lpips(a, b, data_range=255, weights=tmp_path / "w.pth", spatial=True)
    assert scorer.compute()["lpips"].value == pytest.approx(expected, rel=1e-6)


# ffmpeg


def test_ffmpeg_psnr_of_grey_steps_is_closed_form():
    # Y = 16 + 219/255 grey: 100 -> 102, 110 -> 110, so the luma error is 8 and chroma is exact.
    a = np.full((2, 16, 16, 3), 100, np.uint8)
    b = np.full((2, 16, 16, 3), 110, np.uint8)
    planes = yuv.to_planes(a[0]), yuv.to_planes(b[0])
    assert [int(p[0, 0]) for p in planes[0]] == [102, 128, 128]
    assert [int(p[0, 0]) for p in planes[1]] == [110, 128, 128]
    expected = 10 * math.log10(255**2 / (8**2 * 4 / 6))
    assert value("ffmpeg", "psnr_db", a, b) == pytest.approx(expected)


def test_ffmpeg_ssim_of_grey_steps_is_closed_form():
    a = np.full((2, 16, 16, 3), 100, np.uint8)
    b = np.full((2, 16, 16, 3), 110, np.uint8)
    # Flat planes: only the luminance term, of sums over 64 pixels, and two exact chroma planes.
    x, y, c1 = 64 * 102, 64 * 110, 416
    luma = (2 * x * y + c1) / (x * x + y * y + c1)
    assert value("ffmpeg", "ssim", a, b) == pytest.approx((4 * luma + 1 + 1) / 6)


@pytest.mark.parametrize("given", ["rgb", "planes"])
def test_ffmpeg_prints_the_same(given, tmp_path):
    try:
        import imageio_ffmpeg

        ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    except Exception as error:
        pytest.skip(f"no ffmpeg: {error}")
    a, b = clip(), noisy(clip())
    for name, frames in (("a", a), ("b", b)):
        planes = b"".join(p.tobytes() for frame in frames for p in yuv.to_planes(frame))
        (tmp_path / name).write_bytes(frames.tobytes() if given == "rgb" else planes)
    pixels = "rgb24" if given == "rgb" else "yuv420p"
    raw = ["-f", "rawvideo", "-pix_fmt", pixels, "-s", "64x48"]
    printed = {}
    for name, pattern in (("psnr", r"average:(\S+)"), ("ssim", r"All:(\S+)")):
        chain = f"[0:v]format=yuv420p[x];[1:v]format=yuv420p[y];[x][y]{name}"
        command = [ffmpeg, "-hide_banner", *raw, "-i", "b", *raw, "-i", "a", "-lavfi", chain]
        run = subprocess.run(
            [*command, "-f", "null", "-"], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        printed[name] = float(re.search(pattern, run.stderr)[1])
    exact = given == "planes"
    assert value("ffmpeg", "psnr_db", a, b) == pytest.approx(
        printed["psnr"], abs=2e-6 if exact else 0.02
    )
    assert value("ffmpeg", "ssim", a, b) == pytest.approx(
        printed["ssim"], abs=2e-6 if exact else 0.002
    )


def test_ffmpeg_needs_even_rgb():
    odd = np.zeros((1, 17, 16, 3), np.uint8)
    with pytest.raises(ValueError, match="frames of 17x16x3: 4:2:0 needs RGB of even sizes"):
        CONVENTIONS["ffmpeg"]["ssim"].function(odd, odd, data_range=255)


# All


def test_conventions_differ_on_the_same_clips_and_are_never_ours():
    a, b = clip(), noisy(clip())
    values = {name: value(name, "ssim", a, b) for name in CONVENTIONS}
    assert len(set(values.values())) == len(values)
    for rows in CONVENTIONS.values():
        for name, row in rows.items():
            assert row.convention != METRICS[name].convention
            assert row.direction == METRICS[name].direction


@pytest.mark.parametrize("convention", sorted(CONVENTIONS))
def test_more_noise_scores_worse_in_ssim(convention):
    a = clip()
    scores = [value(convention, "ssim", a, noisy(a, (n,) * 3)) for n in (4, 16, 48)]
    assert scores == sorted(scores, reverse=True)
