"""VMAF by ffmpeg: None with the reason where there is none, else it falls with noise."""

from __future__ import annotations

import sys

import pytest
from clips import noisy, smooth

from dit_accel.metrics import (
    METRICS,
    Unavailable,
    vmaf,
)
from dit_accel.metrics.scoring import score_clips
from dit_accel.metrics.vmaf import find_ffmpeg


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
