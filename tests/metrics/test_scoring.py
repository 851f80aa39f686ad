"""Scoring clips: in chunks as in whole, several metrics at once, and the table of them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from clips import noisy, smooth

from dit_accel.metrics import (
    METRICS,
    Unavailable,
    psnr,
)
from dit_accel.metrics.accumulate import FrameScores
from dit_accel.metrics.scoring import Score, rows_of, score_clips

ROOT = Path(__file__).parents[2]
PIXELS = sorted(name for name, row in METRICS.items() if row.family == "pixels" and not row.needs)
NAMES = {
    "psnr_db", "psnr_pooled_db", "ssim", "mae", "tdiff", "flicker", "tof",
    "latent_rel_l2", "latent_cosine", "lpips", "jod", "st_lpips", "vmaf",
}  # fmt: skip


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
    with pytest.raises(ValueError, match=r"shape \(32, 64, 3\); accepted: uint8 of \(48, 64, 3\)"):
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


def test_frames_too_small_for_one_metric_have_the_scores_of_the_others():
    """In an evaluation, one such metric would lose the clip and all its scores."""
    a = smooth()[:, :10, :16]
    scores = score_clips(a, a, data_range=255, metrics=["mae", "ssim"])
    assert scores["mae"].value == 0.0
    why = "reference has frames of 10x16; accepted: at least 11x11"
    assert scores["ssim"] == Score(None, reason=why)


def test_scores_are_safe_in_json():
    scored = score_clips(smooth(), smooth(), data_range=255, metrics=["psnr_db", "tdiff"])
    text = json.dumps({name: score.to_dict() for name, score in scored.items()}, allow_nan=False)
    back = json.loads(text)
    assert back["psnr_db"]["value"] == "inf" and back["psnr_db"]["exact_frames"] == 6
    assert Score(-math.inf).to_dict()["value"] == "-inf"
    with pytest.raises(ValueError, match="a score is NaN"):
        Score(math.nan).to_dict()


def test_unknown_metrics_and_conventions_name_what_is_accepted():
    with pytest.raises(ValueError, match=r"metrics has 'beauty'; accepted: psnr_db, psnr_pooled"):
        score_clips(smooth(), smooth(), data_range=255, metrics=["beauty"])
    with pytest.raises(ValueError, match="convention is 'mine'; accepted: teacache, cache-d"):
        rows_of(["ssim"], convention="mine")


def test_the_names_are_the_stable_keys():
    assert set(METRICS) == NAMES
    assert all(name == row.name for name, row in METRICS.items())
    per_frame = {name for name, row in METRICS.items() if row.per_frame}
    assert per_frame == NAMES - {"psnr_pooled_db", "flicker", "latent_rel_l2", "latent_cosine"}
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
