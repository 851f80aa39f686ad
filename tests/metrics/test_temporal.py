"""Temporal metrics and MAE: closed forms, and what they see that PSNR does not."""

from __future__ import annotations

import numpy as np
import pytest
from clips import smooth

from dit_accel.metrics import (
    METRICS,
    flicker,
    mae,
    mae_frames,
    psnr,
    tdiff,
    tdiff_frames,
    tof,
)

PIXELS = sorted(name for name, row in METRICS.items() if row.family == "pixels" and not row.needs)


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
    with pytest.raises(ValueError, match=r"reference has values from -.* in frame 0.*: 0 to 2$"):
        tof(a, a, data_range=2.0)
    small = np.zeros((2, 11, 16, 3), np.uint8)
    with pytest.raises(ValueError, match="frames of 11x16; accepted: at least 12x12"):
        tof(small, small, data_range=255)


def test_a_flickering_warp_of_equal_psnr_scores_worse_than_a_still_one():
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
