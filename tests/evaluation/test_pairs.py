"""Pairs of files: pixel formats, alpha, frame rates, and the planes that ffmpeg compares.

The files in `core/videos` are of ffmpeg's `testsrc2=s=16x16:r=8:d=0.5`, in the codec and the pixel
format of their names. `h264-yuv420p-other` has half the saturation; what the filters of ffmpeg 9
print of the two is below.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from dit_accel.core import video
from dit_accel.evaluation import pairs, planes
from dit_accel.evaluation.pairs import Pair, UnfairPair, check_codecs, score_pair
from dit_accel.metrics import METRICS, ffmpeg
from dit_accel.metrics.conventions import CONVENTIONS

VIDEOS = Path(__file__).parents[1] / "core" / "videos"
MAE = {"mae": METRICS["mae"]}


def pair(one: str, other: str) -> Pair:
    return Pair("a", VIDEOS / one, VIDEOS / other)


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "lossless"),
    [
        ("ffv1-bgr0.mkv", "ffv1", "bgr0", True),
        ("ffv1-yuv444p.mkv", "ffv1", "yuv444p", False),
        ("ffv1-yuv420p10le.mkv", "ffv1", "yuv420p10le", False),
        ("h264-yuv420p.mp4", "h264", "yuv420p", False),
        ("h264-yuv444p.mp4", "h264", "yuv444p", False),
    ],
)
def test_the_pixel_format_decides_what_is_lossless(name, codec, pixels, lossless):
    found = video.codec_of(VIDEOS / name)
    assert (found.name, found.pixels, found.lossless) == (codec, pixels, lossless)
    assert not found.alpha


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ("ffv1-bgr0.mkv", "ffv1-yuv420p10le.mkv", "ffv1 in yuv420p10le (no 8-bit RGB)"),
        ("ffv1-bgr0.mkv", "ffv1-yuv444p.mkv", "ffv1 in yuv444p (no 8-bit RGB)"),
        ("h264-yuv444p.mp4", "h264-yuv420p.mp4", "h264 in yuv420p (lossy)"),
    ],
)
def test_files_of_other_pixel_formats_are_mixed(one, other, message):
    with pytest.raises(UnfairPair) as error:
        check_codecs(pair(one, other))
    assert message in str(error.value) and "allow_mixed=True" in str(error.value)


@pytest.mark.parametrize("name", ["ffv1-yuv444p.mkv", "h264-yuv420p.mp4"])
def test_two_files_of_one_format_that_is_not_exact_are_noted(name):
    _, notes = check_codecs(pair(name, name))
    assert len(notes) == 1 and video.codec_of(VIDEOS / name).format in notes[0]


@pytest.mark.parametrize("name", ["vp9-alpha.webm", "ffv1-alpha.mkv"])
def test_alpha_is_said(name):
    assert video.codec_of(VIDEOS / name).alpha
    _, notes = check_codecs(pair(name, name))
    assert f"{VIDEOS / name} has an alpha channel, which is not compared" in notes


def test_a_file_that_opencv_writes_has_no_alpha(tmp_path):
    frames, _ = video.read_video(VIDEOS / "ffv1-bgr0.mkv")
    video.write_video(tmp_path / "a.mkv", frames, fps=8)
    assert not video.codec_of(tmp_path / "a.mkv").alpha


@pytest.mark.parametrize(
    ("name", "count", "said"),
    [("uneven.mkv", 8, "frames at uneven times"), ("longer-audio.mkv", 4, "goes on for 1.0 s")],
)
def test_uneven_frames_and_longer_audio_are_read_and_noted(name, count, said):
    found = score_pair(pair(name, name), MAE)
    assert (found.frames, found.scores["mae"].value) == (count, 0)
    assert said in " ".join(found.notes) and str(VIDEOS / name) in " ".join(found.notes)


@pytest.mark.parametrize("name", ["uneven.mkv", "longer-audio.mkv", "ffv1-bgr0.mkv"])
def test_a_file_that_was_cut_off_is_refused(name, tmp_path):
    whole = (VIDEOS / name).read_bytes()
    cut = tmp_path / name
    cut.write_bytes(whole[: len(whole) * 3 // 4])
    with pytest.raises(ValueError, match=r"damaged or was cut off|no frame"):
        video.read_video(cut)


needs_ffmpeg = pytest.mark.skipif(ffmpeg.executable() is None, reason="no ffmpeg")


@needs_ffmpeg
def test_own_planes_score_as_ffmpeg_does():
    found = score_pair(pair("h264-yuv420p.mp4", "h264-yuv420p-other.mp4"), CONVENTIONS["ffmpeg"])
    assert found.scores["psnr_db"].value == pytest.approx(24.693898, abs=1e-5)
    assert found.scores["ssim"].value == pytest.approx(0.932174, abs=1e-6)
    mixed = score_pair(
        pair("h264-yuv444p.mp4", "ffv1-yuv444p.mkv"), CONVENTIONS["ffmpeg"], allow_mixed=True
    )
    assert mixed.scores["psnr_db"].value == pytest.approx(35.175133, abs=1e-5)
    assert mixed.scores["ssim"].value == pytest.approx(0.987792, abs=1e-6)


def test_planes_that_cannot_be_had_are_no_score(monkeypatch):
    rows = CONVENTIONS["ffmpeg"]
    two = score_pair(pair("h264-yuv420p.mp4", "h264-yuv444p.mp4"), rows, allow_mixed=True)
    assert two.scores["psnr_db"].value is None
    assert "planes of yuv420p and yuv444p" in str(two.scores["psnr_db"].reason)
    deep = score_pair(pair("ffv1-yuv420p10le.mkv", "ffv1-yuv420p10le.mkv"), rows)
    assert "a file has yuv420p10le" in str(deep.scores["ssim"].reason)
    monkeypatch.setattr(planes.ffmpeg, "executable", lambda: None)
    none = score_pair(pair("h264-yuv420p.mp4", "h264-yuv420p.mp4"), rows)
    assert "pip install imageio-ffmpeg" in str(none.scores["psnr_db"].reason)
    rgb = score_pair(pair("ffv1-bgr0.mkv", "ffv1-bgr0.mkv"), rows)  # needs no ffmpeg
    assert rgb.scores["ssim"].value == 1
    assert pairs.CAVEAT.format(name="h264 in yuv420p") in none.notes
