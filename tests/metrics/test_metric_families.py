"""Temporal and latent metrics, streaming, LPIPS, VMAF and the table, beside PSNR and SSIM."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dit_accel.metrics import (
    METRICS,
    Unavailable,
    flicker,
    latent_cosine,
    latent_rel_l2,
    lpips,
    mae,
    mae_frames,
    psnr,
    ssim,
    tdiff,
    tdiff_frames,
    tof,
    vmaf,
)
from dit_accel.metrics.accumulate import FrameScores
from dit_accel.metrics.latents import LatentSums
from dit_accel.metrics.lpips import find_weights
from dit_accel.metrics.scoring import Score, Scorer, rows_of, score_clips
from dit_accel.metrics.ssim import ssim_frames
from dit_accel.metrics.vmaf import find_ffmpeg

ROOT = Path(__file__).parents[2]
PIXELS = sorted(name for name, row in METRICS.items() if row.family == "pixels" and not row.needs)
NAMES = {
    "psnr_db", "psnr_pooled_db", "ssim", "mae", "tdiff", "flicker", "tof",
    "latent_rel_l2", "latent_cosine", "lpips", "vmaf",
}  # fmt: skip


def smooth(seed=0, shape=(6, 48, 64, 3)):
    """A clip of sliding waves, uint8."""
    rng = np.random.default_rng(seed)
    t, y, x, c = np.indices(shape)
    waves = np.sin(x / rng.uniform(3, 6) + t / 3 + c) + np.cos(y / rng.uniform(3, 6) - t / 4)
    return np.rint(127.5 + 60 * waves).clip(0, 255).astype(np.uint8)


def noisy(clip, levels, seed=1):
    noise = np.random.default_rng(seed).integers(-levels, levels + 1, clip.shape)
    return np.clip(clip.astype(int) + noise, 0, 255).astype(np.uint8)


# Closed forms


@pytest.mark.parametrize("sign", [1, -1])
def test_mae_of_a_shift_is_the_shift_and_does_not_wrap(sign):
    base = np.full((2, 16, 16, 3), 100, np.uint8)
    shifted = (base.astype(int) + 40 * sign).astype(np.uint8)
    assert mae(base, shifted, data_range=255) == 40.0
    np.testing.assert_array_equal(mae_frames(base, shifted, data_range=255), [40.0, 40.0])
    assert mae(base / 255.0, shifted / 255.0, data_range=1.0) == pytest.approx(40.0)


def test_tdiff_sees_only_what_changes_between_frames():
    a = np.zeros((3, 16, 16, 3), np.uint8)
    standing, jumping = a + np.uint8(50), a.copy()
    jumping[1] = 200
    assert tdiff(a, standing, data_range=255) == 0.0
    # 0 -> 200 -> 0: both changes are off by 200; in uint8, -200 would read 56.
    np.testing.assert_array_equal(tdiff_frames(a, jumping, data_range=255), [200.0, 200.0])


def test_tdiff_of_opposite_changes_is_their_sum():
    a, b = np.zeros((2, 16, 16, 3), np.uint8), np.zeros((2, 16, 16, 3), np.uint8)
    a[0], b[1] = 255, 255
    assert tdiff(a, b, data_range=255) == 510.0


@pytest.mark.parametrize("step", [10, 30])
def test_flicker_is_the_distance_of_vbenchs_scores(step):
    a = np.zeros((4, 16, 16, 3), np.uint8)
    b = a + (np.arange(4, dtype=np.uint8) * step)[:, None, None, None]

    def temporal_flickering(clip):
        changes = np.abs(np.diff(clip.astype(float), axis=0)).mean(axis=(1, 2, 3))
        return (255 - changes.mean()) / 255

    expected = temporal_flickering(a) - temporal_flickering(b)
    assert expected == pytest.approx(step / 255)
    assert flicker(a, b, data_range=255) == pytest.approx(expected)
    assert flicker(b, a, data_range=255) == pytest.approx(expected)  # frozen is as wrong


def test_tof_of_two_pans_is_the_difference_of_their_speeds():
    cv2 = pytest.importorskip("cv2")
    noise = np.random.default_rng(0).integers(0, 256, (160, 240, 3), np.uint8)
    picture = cv2.GaussianBlur(noise, (0, 0), 3).astype(int)
    picture = np.clip((picture - 128) * 5 + 128, 0, 255).astype(np.uint8)
    still = np.stack([picture] * 3)
    pan = np.stack([np.roll(picture, 2 * t, axis=1) for t in range(3)])
    # Every pixel moves by 2 to the right; the wrapped edge is a small part of the frame.
    assert tof(still, pan, data_range=255) == pytest.approx(2.0, abs=0.15)
    assert tof(pan, pan.copy(), data_range=255) == 0.0
    assert tof(still / 255.0, pan / 255.0, data_range=1.0) == pytest.approx(
        tof(still, pan, data_range=255)
    )


def test_tof_refuses_floats_outside_its_range_and_small_frames():
    a = smooth() / 127.5 - 1
    with pytest.raises(ValueError, match=r"reference spans \[-.*must be in \[0, 2.0\] here"):
        tof(a, a, data_range=2.0)
    small = np.zeros((2, 11, 16, 3), np.uint8)
    with pytest.raises(ValueError, match="frames of 11x16: must be at least 12x12"):
        tof(small, small, data_range=255)


# What temporal metrics are for


def test_a_flickering_warp_of_equal_psnr_is_told_from_a_standing_one():
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 256, (128, 192, 3), np.uint8)
    picture = cv2.GaussianBlur(noise, (0, 0), 4).astype(int)
    picture = np.clip((picture - 128) * 6 + 128, 0, 255).astype(np.uint8)
    reference = np.stack([np.roll(picture, t, axis=1) for t in range(8)])

    def field():
        return np.dstack([cv2.GaussianBlur(rng.normal(0, 60, (128, 192)), (0, 0), 12)] * 2)

    def warped(fields):
        y, x = np.indices((128, 192)).astype(np.float32)
        pairs = zip(reference, fields, strict=True)
        return np.stack([
            cv2.remap(frame, x + f[..., 0].astype("f4"), y + f[..., 1].astype("f4"), 1)
            for frame, f in pairs
        ])  # fmt: skip

    standing = warped([field()] * 8)
    target = psnr(reference, standing, data_range=255)
    fields, low, high = [field() for _ in range(8)], 0.2, 5.0
    for _ in range(12):  # as strong as gives the same PSNR
        middle = (low + high) / 2
        flickering = warped([middle * one for one in fields])
        if psnr(reference, flickering, data_range=255) > target:
            low = middle
        else:
            high = middle
    scores = {
        name: [row.function(reference, clip, data_range=255) for clip in (standing, flickering)]
        for name, row in METRICS.items()
        if name in PIXELS
    }
    assert scores["psnr_db"][0] == pytest.approx(scores["psnr_db"][1], abs=0.05)
    for name in ("tdiff", "flicker", "tof"):
        better, worse = scores[name]
        assert worse > 1.3 * better, (name, scores)


# Latents


def test_latent_metrics_have_their_closed_forms_in_any_shape():
    x = np.random.default_rng(0).normal(size=(1, 4, 2, 3, 5)).astype(np.float32)
    assert latent_rel_l2(x, 1.25 * x) == pytest.approx(0.25, rel=1e-6)
    assert latent_cosine(x, 3 * x) == pytest.approx(1.0)
    assert latent_cosine(x, -x) == -1.0
    assert latent_cosine(np.array([1.0, 0.0]), np.array([1.0, 1.0])) == pytest.approx(0.5**0.5)
    assert latent_rel_l2(np.array([3.0, 4.0]), np.array([3.0, 9.0])) == 1.0
    assert latent_rel_l2(x, x) == 0.0


def test_latents_in_parts_score_as_the_whole():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 7, 9)), rng.normal(size=(2, 7, 9))
    for of, function in (("rel_l2", latent_rel_l2), ("cosine", latent_cosine)):
        sums = LatentSums(of)
        for part in (slice(0, 2), slice(2, 7)):
            sums.update(x[:, part], y[:, part])
        assert sums.compute() == pytest.approx(function(x, y), rel=1e-12)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.ones(3), np.ones(4), "test has shape (4,), reference has (3,)"),
        (np.ones(3), np.ones((3, 1)), "latents must be of equal shape"),
        (np.ones(3, int), np.ones(3), "reference has dtype int64: latents must be float"),
        (np.ones(3), np.array([1, np.nan, 1]), "test has NaN or infinite values"),
        (np.ones(0), np.ones(0), "must hold at least one value"),
    ],
)
def test_latents_that_cannot_be_compared_are_refused(x, y, message):
    for function in (latent_rel_l2, latent_cosine):
        with pytest.raises(ValueError, match=re.escape(message)):
            function(x, y)


def test_latents_of_zeros_have_no_score():
    with pytest.raises(Unavailable, match="the reference latents are all zero"):
        latent_rel_l2(np.zeros(3), np.ones(3))
    with pytest.raises(Unavailable, match="the test latents are all zero"):
        latent_cosine(np.ones(3), np.zeros(3))


# Streaming


@pytest.mark.parametrize("name", PIXELS)
@pytest.mark.parametrize("sizes", [(6,), (1, 5), (2, 2, 2), (1,) * 6, (5, 1)])
@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_chunks_score_exactly_as_the_function(name, sizes, kind):
    a, b, data_range = smooth(), noisy(smooth(), 20), 255
    if kind == "float":
        a, b, data_range = a / 255, b / 255, 1.0
    row = METRICS[name]
    running = row.start(data_range=data_range)
    at = 0
    for size in sizes:
        running.update(a[at : at + size], b[at : at + size])
        at += size
    assert running.compute() == row.function(a, b, data_range=data_range)
    assert len(running.frames()) == len(a) - row.span + 1


def test_chunks_of_another_size_or_dtype_are_refused():
    running = METRICS["tdiff"].start(data_range=255)
    running.update(smooth()[:2], smooth()[:2])
    small = smooth(shape=(2, 32, 64, 3))
    with pytest.raises(ValueError, match=r"shape \(32, 64, 3\): must be uint8 of \(48, 64, 3\)"):
        running.update(small, small)


def test_an_empty_accumulator_has_no_score():
    running = METRICS["tdiff"].start(data_range=255)
    with pytest.raises(Unavailable, match="needs at least 2 frames, and has 0"):
        running.compute()
    running.update(smooth()[:1], smooth()[:1])
    with pytest.raises(Unavailable, match="needs at least 2 frames, and has 1"):
        running.compute()


def test_latent_rows_take_no_clips():
    assert isinstance(METRICS["mae"].start(data_range=255), FrameScores)
    assert METRICS["latent_cosine"].start(data_range=1.0).frames() is None


# score_clips


def test_score_clips_gives_values_frames_and_reasons():
    a, b = smooth(), noisy(smooth(), 9)
    b[2] = a[2]
    names = ["ssim", "psnr_db", "psnr_pooled_db", "flicker", "tdiff", "latent_cosine"]
    scores = score_clips(a, b, data_range=255, metrics=names)
    assert list(scores) == names
    assert scores["psnr_db"].value == psnr(a, b, data_range=255)
    assert scores["psnr_db"].exact_frames == 1 and math.isinf(scores["psnr_db"].frames[2])
    assert scores["psnr_pooled_db"].value == psnr(a, b, data_range=255, pooled=True)
    assert scores["psnr_pooled_db"].frames is None
    assert len(scores["ssim"].frames) == 6 and scores["ssim"].exact_frames is None
    assert len(scores["tdiff"].frames) == 5 and scores["flicker"].frames is None
    assert scores["latent_cosine"] == Score(None, reason="no latents were given")


def test_score_clips_takes_latents_apart_from_pixels():
    x = np.random.default_rng(0).normal(size=(16, 2, 4, 4)).astype(np.float32)
    names = ["latent_rel_l2", "mae", "latent_cosine"]
    a = smooth()
    scores = score_clips(a, a, data_range=255, metrics=names, latents=(x, 2 * x))
    assert list(scores) == names
    assert scores["latent_rel_l2"].value == pytest.approx(1.0)
    zeros = score_clips(a, a, data_range=255, metrics=names, latents=(0 * x, x))
    assert zeros["latent_cosine"].reason == "the reference latents are all zero"


def test_a_single_frame_has_no_temporal_score_and_says_why():
    a = smooth()[:1]
    scores = score_clips(a, a, data_range=255, metrics=["mae", "tof"])
    assert scores["mae"].value == 0.0
    assert scores["tof"] == Score(None, reason="needs at least 2 frames, and has 1")


def test_scores_are_safe_in_json():
    told = score_clips(smooth(), smooth(), data_range=255, metrics=["psnr_db", "tdiff"])
    text = json.dumps({name: score.to_dict() for name, score in told.items()}, allow_nan=False)
    back = json.loads(text)
    assert back["psnr_db"]["value"] == "inf" and back["psnr_db"]["exact_frames"] == 6
    assert Score(-math.inf).to_dict()["value"] == "-inf"
    with pytest.raises(ValueError, match="a score is NaN"):
        Score(math.nan).to_dict()


def test_unknown_metrics_and_conventions_name_what_is_accepted():
    with pytest.raises(ValueError, match=r"metrics has 'beauty': must be of psnr_db, psnr_pooled"):
        score_clips(smooth(), smooth(), data_range=255, metrics=["beauty"])
    with pytest.raises(ValueError, match="convention is 'mine': must be one of teacache, cache-d"):
        rows_of(["ssim"], convention="mine")


# The table


def test_the_names_are_the_stable_keys():
    assert set(METRICS) == NAMES
    assert all(name == row.name for name, row in METRICS.items())
    per_frame = {name for name, row in METRICS.items() if row.per_frame}
    assert per_frame == {"psnr_db", "ssim", "mae", "tdiff", "tof", "lpips", "vmaf"}
    assert {n for n, row in METRICS.items() if row.family == "latents"} == {
        "latent_rel_l2",
        "latent_cosine",
    }


def test_importing_the_metrics_imports_neither_torch_nor_opencv():
    code = (
        "import sys, dit_accel.metrics.scoring\n"
        "assert not {'torch', 'diffusers', 'cv2', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


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
    a, b = smooth(), noisy(smooth(), 30)
    as_float = ssim(a / 255.0, b / 255.0, data_range=1.0)
    assert ssim(a, b, data_range=255) == pytest.approx(as_float, abs=2e-6)


# LPIPS


@pytest.fixture
def no_weights(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no-cache"))
    monkeypatch.delenv("DIT_ACCEL_LPIPS_WEIGHTS", raising=False)
    return tmp_path


@pytest.fixture
def weights(no_weights):
    """A file of random weights: enough for the arithmetic, no measure of anything."""
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    shapes = {
        0: (64, 3, 11),
        3: (192, 64, 5),
        6: (384, 192, 3),
        8: (256, 384, 3),
        10: (256, 256, 3),
    }
    tensors = {}
    for index, (layer, (out, into, width)) in enumerate(shapes.items()):
        scale = (2 / (into * width * width)) ** 0.5
        tensors[f"features.{layer}.weight"] = scale * torch.randn(
            out, into, width, width, generator=generator
        )
        tensors[f"features.{layer}.bias"] = 0.1 * torch.randn(out, generator=generator)
        tensors[f"lin{index}.model.1.weight"] = torch.rand(1, out, 1, 1, generator=generator)
    path = no_weights / "alex-and-heads.pth"
    torch.save(tensors, path)
    return path


def test_without_weights_lpips_is_none_with_the_reason(no_weights):
    a = smooth()
    score = score_clips(a, a, data_range=255, metrics=["lpips"])["lpips"]
    assert score.value is None
    for place in ("lpips_weights", "DIT_ACCEL_LPIPS_WEIGHTS", "alexnet-owt-7be5be79.pth"):
        assert place in score.reason
    with pytest.raises(Unavailable, match="no weights"):
        lpips(a, a, data_range=255)


def test_weights_are_found_by_path_then_variable_then_cache(weights, no_weights, monkeypatch):
    cached = no_weights / "no-cache" / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(weights.read_bytes())
    assert find_weights().backbone == cached
    named = no_weights / "named.pth"
    named.write_bytes(weights.read_bytes())
    monkeypatch.setenv("DIT_ACCEL_LPIPS_WEIGHTS", str(named))
    assert find_weights().backbone == named
    assert find_weights(weights).backbone == weights
    with pytest.raises(Unavailable, match=r"no weights: gone\.pth is no file"):
        find_weights("gone.pth")


def test_a_backbone_without_heads_is_refused_by_name(weights, no_weights, monkeypatch):
    torch = pytest.importorskip("torch")
    tensors = {k: v for k, v in torch.load(weights).items() if k.startswith("features")}
    torch.save(tensors, no_weights / "bare.pth")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="no linear heads"):
        find_weights(no_weights / "bare.pth")
    heads = {k: v for k, v in torch.load(weights).items() if k.startswith("lin")}
    torch.save(heads, no_weights / "alex.pth")
    a, b = smooth(), noisy(smooth(), 20)
    apart = lpips(a, b, data_range=255, weights=no_weights / "bare.pth")
    assert apart == lpips(a, b, data_range=255, weights=weights)


def test_a_file_that_is_no_network_is_refused(no_weights):
    (no_weights / "bad.pth").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="torch cannot read it"):
        lpips(smooth(), smooth(), data_range=255, weights=no_weights / "bad.pth")


def lpips_by_modules(a, b, tensors, spatial):
    """LPIPS as its paper's code is built: a Sequential like torchvision's, tapped at each ReLU."""
    torch = pytest.importorskip("torch")
    nn = torch.nn
    net = nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
    )  # fmt: skip
    net.load_state_dict(
        {k.removeprefix("features."): v for k, v in tensors.items() if k.startswith("features")}
    )

    def taps(clip):
        x = torch.tensor(clip).permute(0, 3, 1, 2).float() / 255 * 2 - 1
        x = (x - torch.tensor([-0.030, -0.088, -0.188])[:, None, None]) / torch.tensor(
            [0.458, 0.448, 0.450]
        )[:, None, None]
        found = []
        for layer in net:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                found.append(x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10))
        return found

    total = 0
    with torch.no_grad():
        for index, (x, y) in enumerate(zip(taps(a), taps(b), strict=True)):
            head = tensors[f"lin{index}.model.1.weight"]
            error = (head[:, :, 0, 0][0][None, :, None, None] * (x - y) ** 2).sum(1, keepdim=True)
            if spatial:
                error = nn.Upsample(a.shape[1:3], mode="bilinear", align_corners=False)(error)
            total = total + error.mean(dim=(2, 3))
    return float(total.mean())


@pytest.mark.parametrize("spatial", [False, True])
def test_lpips_is_what_its_definition_says(weights, spatial):
    torch = pytest.importorskip("torch")
    a, b = smooth(), noisy(smooth(), 20)
    expected = lpips_by_modules(a, b, torch.load(weights), spatial)
    ours = lpips(a, b, data_range=255, weights=weights, spatial=spatial)
    assert ours == pytest.approx(expected, rel=1e-5)
    assert lpips(a, a, data_range=255, weights=weights, spatial=spatial) == 0.0
    as_float = lpips(a / 255.0, b / 255.0, data_range=1.0, weights=weights, spatial=spatial)
    assert as_float == pytest.approx(ours, rel=1e-5)


def test_lpips_streams_and_grows_with_noise(weights):
    a = smooth()
    scores = [lpips(a, noisy(a, n), data_range=255, weights=weights) for n in (4, 16, 64)]
    assert scores == sorted(scores) and scores[0] > 0
    scorer = Scorer(rows_of(["lpips"], lpips_weights=weights), data_range=255)
    for part in (slice(0, 1), slice(1, 6)):
        scorer.update(a[part], noisy(a, 16)[part])
    told = scorer.compute()["lpips"]
    assert told.value == pytest.approx(scores[1], rel=1e-6) and len(told.frames) == 6


# VMAF


def test_without_an_ffmpeg_vmaf_is_none_with_the_reason(monkeypatch):
    from dit_accel.metrics import vmaf as _  # noqa: F401

    module = sys.modules["dit_accel.metrics.vmaf"]
    find_ffmpeg.cache_clear()
    monkeypatch.setattr(module, "_has_libvmaf", lambda path: False)
    score = score_clips(smooth(), smooth(), data_range=255, metrics=["vmaf"])["vmaf"]
    find_ffmpeg.cache_clear()
    assert score.value is None and "no ffmpeg with libvmaf" in score.reason


def test_vmaf_falls_with_noise_and_streams():
    try:
        find_ffmpeg()
    except Unavailable as reason:
        pytest.skip(str(reason))
    a = smooth(shape=(4, 64, 96, 3))
    scores = [vmaf(a, noisy(a, n), data_range=255) for n in (0, 20, 60)]
    assert scores[0] > 95 and scores == sorted(scores, reverse=True)
    running = METRICS["vmaf"].start(data_range=255)
    for part in (slice(0, 3), slice(3, 4)):
        running.update(a[part], noisy(a, 20)[part])
    assert running.compute() == pytest.approx(scores[1]) and len(running.frames()) == 4
    odd = a[:, :, :63]
    with pytest.raises(ValueError, match="frames of 64x63: VMAF needs even sizes"):
        vmaf(odd, odd, data_range=255)
