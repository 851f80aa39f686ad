"""Clips survive the disk bit-exact in lossless formats, and no failure leaves a trace."""

from __future__ import annotations

import errno
import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest

from dit_accel.core import video
from dit_accel.core.video import (
    check_output,
    codec_of,
    read_video,
    side_by_side,
    stream_video,
    to_uint8,
    write_video,
    writing,
)
from dit_accel.metrics import psnr


def noise(shape=(5, 34, 50, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(shape=(6, 64, 96, 3)):
    frames, rows, columns, channels = np.indices(shape)
    return 0.5 + 0.4 * np.sin(rows / 9 + columns / 13 + frames / 5 + channels)


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


# Round trips


@pytest.mark.parametrize("suffix", video.LOSSLESS)
@pytest.mark.parametrize("size", [(2, 2), (34, 50), (64, 64)])
def test_lossless_formats_are_bit_exact_even_on_noise(tmp_path, suffix, size):
    clip = noise((4, *size, 3))
    write_video(tmp_path / f"clip{suffix}", clip, fps=16)
    back, _ = read_video(tmp_path / f"clip{suffix}")
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, clip)
    assert files_in(tmp_path) == [f"clip{suffix}"]


def test_npy_keeps_odd_sizes_and_no_frame_rate(tmp_path):
    clip = noise((3, 33, 17, 3))
    write_video(tmp_path / "clip.npy", clip, fps=16)
    back, fps = read_video(tmp_path / "clip.npy")
    np.testing.assert_array_equal(back, clip)
    assert fps is None


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("fps", [0.5, 8, 23.976, 60])
def test_frame_rate_comes_back(tmp_path, suffix, fps):
    write_video(tmp_path / f"clip{suffix}", noise((3, 32, 32, 3)), fps=fps)
    assert read_video(tmp_path / f"clip{suffix}")[1] == pytest.approx(fps, abs=5e-4)


def test_mp4_is_close_in_rgb_order_and_frame_order(tmp_path):
    clip = smooth()
    clip[..., 0] *= 0.3  # a clip with its channels swapped would miss by far
    write_video(tmp_path / "clip.mp4", clip, fps=16)
    back, _ = read_video(tmp_path / "clip.mp4")
    assert back.shape == clip.shape
    assert psnr(clip, back / 255, data_range=1.0) > 28
    errors = [np.abs(back[0] / 255 - frame).mean() for frame in clip]
    assert int(np.argmin(errors)) == 0


def test_a_single_frame_is_a_clip(tmp_path):
    for suffix in (".mp4", ".mkv", ".npy"):
        write_video(tmp_path / f"clip{suffix}", noise((1, 32, 32, 3)), fps=8)
        assert read_video(tmp_path / f"clip{suffix}")[0].shape == (1, 32, 32, 3)


def test_paths_may_be_strings_relative_uppercase_and_full_of_signs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clip = noise()
    for name in ("a b.MKV", "per%03d cent.mkv", "co:lon.mkv", "ünï.mkv"):
        write_video(name, clip, fps=8)
        np.testing.assert_array_equal(read_video(name)[0], clip)


def test_float_frames_are_rounded_not_truncated():
    values = np.array([0.0, 0.4 / 255, 0.6 / 255, 254.6 / 255, 1.0, 1.0 + 1e-6, -1e-6])
    clip = np.broadcast_to(values[:, None, None, None], (7, 2, 2, 3))
    for dtype in (np.float32, np.float64):
        levels = to_uint8(clip.astype(dtype))[:, 0, 0, 0]
        np.testing.assert_array_equal(levels, [0, 0, 1, 255, 255, 255, 0])


def test_every_level_survives_the_way_over_float():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, 3)
    for dtype in (np.float16, np.float32, np.float64):
        np.testing.assert_array_equal(to_uint8((levels / 255).astype(dtype)), levels)


def test_contact_sheet_holds_every_frame(tmp_path):
    clip = noise((5, 32, 32, 3))
    write_video(tmp_path / "sheet.png", clip, fps=8)
    sheet = cv2.imread(str(tmp_path / "sheet.png"))[..., ::-1]
    step = 32 + 4
    columns = (sheet.shape[1] + 4) // step
    for index, frame in enumerate(clip):
        y, x = index // columns * step, index % columns * step
        np.testing.assert_array_equal(sheet[y : y + 32, x : x + 32], frame)


def test_a_large_contact_sheet_is_shrunk():
    assert video.contact_sheet(np.zeros((30, 480, 832, 3), np.uint8)).shape[1] == 3840


def test_gif_has_every_frame(tmp_path):
    image = pytest.importorskip("PIL.Image")
    write_video(tmp_path / "clip.gif", noise((4, 15, 17, 3)), fps=8)
    with image.open(tmp_path / "clip.gif") as gif:
        assert (gif.n_frames, gif.size, gif.info["duration"]) == (4, (17, 15), 120)


def test_writing_and_reading_print_nothing(tmp_path):
    code = (
        "import sys, numpy as np; from dit_accel.core.video import *\n"
        "for s in ('.mp4', '.mkv', '.npy', '.png'):\n"
        "    write_video(sys.argv[1] + '/c' + s, np.zeros((2, 32, 32, 3), np.uint8), fps=8)\n"
        "    s == '.png' or read_video(sys.argv[1] + '/c' + s)\n"
    )
    root = pathlib.Path(video.__file__).parents[3]
    command = [sys.executable, "-c", code, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


# Failures leave what was there before


class DroppingWriter:
    """Opens as OpenCV's writer does, and like it says nothing when frames are lost."""

    keep = 2

    def __init__(self, *arguments):
        self.inner, self.count = REAL_WRITER(*arguments), 0

    def isOpened(self):
        return self.inner.isOpened()

    def write(self, frame):
        self.count += 1
        if self.count <= self.keep:
            self.inner.write(frame)

    def release(self):
        self.inner.release()

    fourcc = staticmethod(cv2.VideoWriter.fourcc)


class InterruptedWriter(DroppingWriter):
    def write(self, frame):
        super().write(frame)
        if self.count == 2:
            raise KeyboardInterrupt("Ctrl-C")


class ClosedWriter(DroppingWriter):
    def isOpened(self):
        return False


class BlurringWriter(DroppingWriter):
    def write(self, frame):
        self.inner.write(cv2.blur(frame, (3, 3)))


REAL_WRITER = cv2.VideoWriter


@pytest.fixture(params=["clip.mkv", "clip.mp4"])
def existing(tmp_path, request):
    """A file that a failing write must leave alone; the codecs are chosen by then."""
    path = tmp_path / request.param
    check_output(path)
    path.write_bytes(b"precious")
    return path


@pytest.mark.parametrize(
    ("writer", "error", "message"),
    [
        (DroppingWriter, OSError, "5 frames were written, 2 can be read back: is the disk full?"),
        (InterruptedWriter, KeyboardInterrupt, "Ctrl-C"),
        (ClosedWriter, OSError, "OpenCV could not start the"),
    ],
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    existing, monkeypatch, writer, error, message
):
    monkeypatch.setattr(cv2, "VideoWriter", writer)
    with pytest.raises(error, match=re.escape(message)):
        write_video(existing, noise(), fps=8)
    assert existing.read_bytes() == b"precious"
    assert files_in(existing.parent) == [existing.name]
    monkeypatch.undo()
    write_video(existing, noise(), fps=8)
    assert len(read_video(existing)[0]) == 5


def test_a_lossless_file_that_lost_bits_is_refused(tmp_path, monkeypatch):
    check_output(tmp_path / "clip.mkv")
    monkeypatch.setattr(cv2, "VideoWriter", BlurringWriter)
    with pytest.raises(OSError, match=r"frame 0 did not read back bit-exact; write \.npy"):
        write_video(tmp_path / "clip.mkv", noise(), fps=8)
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("suffix", [".npy", ".png"])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, suffix):
    def no_space(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    target = tmp_path / f"clip{suffix}"
    target.write_bytes(b"precious")
    monkeypatch.setattr(np, "save", no_space)
    monkeypatch.setattr(pathlib.Path, "write_bytes", no_space)
    with pytest.raises(
        OSError, match="path could not be written: the disk is full: No space left"
    ) as caught:
        write_video(target, noise(), fps=8)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(target))
    assert target.read_bytes() == b"precious"
    assert files_in(tmp_path) == [target.name]


def test_a_failing_replace_removes_the_scratch_file(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(errno.EPERM, "not permitted")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError):
        write_video(tmp_path / "clip.npy", noise(), fps=8)
    assert files_in(tmp_path) == []


# Refusals


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((4, 8, 8)), "frames has shape (4, 8, 8); accepted: (T, H, W, 3)"),
        (np.zeros((4, 3, 8, 8)), "frames has shape (4, 3, 8, 8)"),
        (np.zeros((0, 8, 8, 3)), "none of them 0"),
        (np.zeros((2, 8, 8, 3), int), "frames has dtype int64; accepted: uint8, or float in [0,"),
        (np.full((2, 8, 8, 3), 255.0), "has values from 255.0 to 255.0 in frame 0; accepted: 0 to"),
        (np.full((2, 8, 8, 3), -0.5), "frames has values from -0.5 to -0.5"),
        (np.full((2, 8, 8, 3), np.nan), "frames has values from nan to nan"),
    ],
)
def test_frames_that_are_no_clip_are_refused(tmp_path, frames, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        write_video(tmp_path / "clip.npy", frames, fps=8)
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), 1e-3])
def test_frame_rates_out_of_range_are_refused(tmp_path, fps):
    with pytest.raises(ValueError, match=r"fps is .*; accepted: 0\.01 to 1000"):
        write_video(tmp_path / "clip.mp4", noise(), fps=fps)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize(("size", "name"), [((33, 50), "height"), ((34, 51), "width")])
def test_odd_sizes_are_refused_not_rescaled(tmp_path, suffix, size, name):
    message = rf"{name} is \d+; accepted for {suffix}: an even number.*write \.npy"
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / f"clip{suffix}", noise((2, *size, 3)), fps=8)
    with pytest.raises(ValueError, match=message):
        check_output(tmp_path / f"clip{suffix}", height=size[0], width=size[1])


@pytest.mark.parametrize("name", ["clip", "clip.wmv", "clip.mp4.tmp"])
def test_unknown_suffixes_are_refused_with_the_accepted_ones(tmp_path, name):
    with pytest.raises(ValueError, match=r"a name that ends in \.mp4, \.mkv, \.npy, \.png, \.gif"):
        check_output(tmp_path / name)


def test_a_missing_folder_a_file_as_folder_and_a_folder_as_file_are_refused(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(FileNotFoundError, match="no file can be created in the folder of path"):
        check_output(tmp_path / "missing" / "clip.mp4")
    with pytest.raises(NotADirectoryError, match="no file can be created in the folder of path"):
        check_output(tmp_path / "file" / "clip.mp4")
    with pytest.raises(IsADirectoryError, match="path is a folder, not a file"):
        check_output(tmp_path / "folder.mp4")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    def denied(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "touch", denied)
    with pytest.raises(PermissionError, match=r"no file can be created .*\(Permission denied\)"):
        check_output(tmp_path / "clip.npy")


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".npy", ".png"])
def test_a_good_output_is_accepted_and_nothing_is_created(tmp_path, suffix):
    check_output(tmp_path / f"clip{suffix}", height=480, width=832)
    assert files_in(tmp_path) == []


def test_a_suffix_without_a_working_codec_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, "VideoWriter", ClosedWriter)
    writing._codec.cache_clear()
    with pytest.raises(ValueError, match=r"encodes none of FFV1.*or write \.npy"):
        check_output(tmp_path / "clip.mkv")
    monkeypatch.undo()
    check_output(tmp_path / "clip.mkv")  # the failure was not remembered


def test_gif_without_pillow_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"\.gif needs Pillow"):
        check_output(tmp_path / "clip.gif")


def test_reading_refuses_pictures_missing_files_and_files_that_are_no_clip(tmp_path, capfd):
    (tmp_path / "sheet.png").touch()
    (tmp_path / "broken.mkv").write_bytes(b"not a video" * 100)
    np.save(tmp_path / "float.npy", np.zeros((2, 4, 4, 3)))
    with pytest.raises(ValueError, match=r"accepted: a name that ends in \.mp4, \.mkv, \.npy"):
        read_video(tmp_path / "sheet.png")
    with pytest.raises(FileNotFoundError, match="path is no file"):
        read_video(tmp_path / "missing.mp4")
    with pytest.raises(ValueError, match="no frame of it can be decoded"):
        read_video(tmp_path / "broken.mkv")
    with pytest.raises(ValueError, match=r"float64 of shape \(2, 4, 4, 3\); accepted: uint8"):
        read_video(tmp_path / "float.npy")


# Side by side


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (120, 64), (96, 161), (300, 301)])
def test_panes_are_the_clips_enlarged_by_whole_factors(size):
    left, right = noise((2, *size, 3), 1), noise((2, *size, 3), 2)
    both = side_by_side(left, right)
    factor = -(-256 // size[0])
    height, width = size[0] * factor, size[1] * factor
    assert both.shape[1] % 2 == both.shape[2] % 2 == 0
    for clip, pane in ((left, both[:, -height:, :width]), (right, both[:, -height:, -width:])):
        assert pane.shape[1] >= 256
        np.testing.assert_array_equal(pane, np.kron(clip, np.ones((1, factor, factor, 1))))


@pytest.mark.parametrize("labels", [("uncached", "accelerated"), ("x" * 500, "y")])
def test_captions_are_drawn_inside_the_strip_of_their_own_clip(labels):
    left = right = np.zeros((1, 64, 64, 3), np.uint8)
    both = side_by_side(left, right, labels=labels)[0]
    ink = (both[: both.shape[0] - 256] > 128).any(axis=2)
    assert ink[:, :256].any()
    assert ink[:, 264:].any()
    edges = (ink[0], ink[-1], ink[:, 0], ink[:, -1], ink[:, 256:264])
    assert not any(edge.any() for edge in edges)


def test_side_by_side_is_encodable(tmp_path):
    clip = smooth((3, 33, 47, 3))
    both = side_by_side(clip, 1 - clip)
    write_video(tmp_path / "both.mkv", both, fps=8)
    np.testing.assert_array_equal(read_video(tmp_path / "both.mkv")[0], both)


def test_side_by_side_refuses_unequal_clips():
    with pytest.raises(ValueError, match=r"right has shape .*, left has .*; accepted: equal"):
        side_by_side(noise(), noise()[:3])
    with pytest.raises(ValueError, match="left has values from"):
        side_by_side(noise() * 1.0, noise())


# Streaming, and what a file says of itself


@pytest.mark.parametrize("suffix", [".mkv", ".npy", ".mp4"])
@pytest.mark.parametrize("chunk", [1, 4, 5, 6])
def test_a_stream_in_chunks_is_the_clip(tmp_path, suffix, chunk):
    path = tmp_path / f"clip{suffix}"
    write_video(path, noise((5, 34, 50, 3)), fps=8)
    chunks = list(stream_video(path, chunk=chunk))
    assert [len(part) for part in chunks[:-1]] == [chunk] * (len(chunks) - 1)
    np.testing.assert_array_equal(np.concatenate(chunks), read_video(path)[0])


def test_a_stream_checks_its_arguments_at_once(tmp_path):
    with pytest.raises(ValueError, match="chunk is 0; accepted: 1 or more"):
        stream_video(tmp_path / "clip.npy", chunk=0)
    with pytest.raises(FileNotFoundError, match="path is no file"):
        stream_video(tmp_path / "missing.mkv")
    with pytest.raises(ValueError, match=r"accepted: a name that ends in \.mp4"):
        stream_video(tmp_path / "clip.txt")


@pytest.mark.parametrize("suffix", [".mkv", ".npy"])
def test_a_clip_that_was_cut_off_is_refused(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    write_video(path, noise((20, 64, 64, 3)), fps=8)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 6 // 10])
    with pytest.raises(ValueError, match=r"cut off|no complete numpy array"):
        read_video(path)


@pytest.mark.parametrize(
    ("suffix", "name", "lossless"),
    [(".mkv", "ffv1", True), (".npy", "npy", True), (".mp4", None, False)],
)
def test_the_codec_of_a_file(tmp_path, suffix, name, lossless):
    path = tmp_path / f"clip{suffix}"
    write_video(path, noise((2, 32, 32, 3)), fps=8)
    codec = codec_of(path)
    assert codec.lossless is lossless
    assert codec.name == name or name is None


def test_an_unreadable_file_has_no_codec(tmp_path):
    (tmp_path / "clip.mkv").write_bytes(b"no clip" * 99)
    with pytest.raises(ValueError, match="no frame of it can be decoded"):
        codec_of(tmp_path / "clip.mkv")
