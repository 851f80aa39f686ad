"""Write clips in the format of their suffix.

A path and frames come in; a file goes out. It is written beside the target, read back, and only
then moved. So the old file is still there after a full disk, a failing encoder or Ctrl-C. Frames
are never rescaled. `.mp4` is H.264 if this OpenCV build can encode it (PyPI wheels seldom can),
else VP9, else MPEG-4 part 2, which browsers do not play. Source: ours, on OpenCV's FFmpeg.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib.util
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

from dit_accel.core.files import is_full, reason_of
from dit_accel.core.video.canvas import contact_sheet
from dit_accel.core.video.frames import Frames, to_uint8
from dit_accel.core.video.reading import decode, silent_stderr

LOSSLESS = (".mkv", ".npy")
WRITABLE = (".mp4", ".mkv", ".npy", ".png", ".gif")

_CODECS = {".mp4": ("avc1", "vp09", "mp4v"), ".mkv": ("FFV1", "png ")}
_FPS_RANGE = (0.01, 1000.0)


def write_video(path: str | os.PathLike[str], frames: npt.NDArray[Any], *, fps: float) -> None:
    """Write a clip in the format of the path's suffix, replacing the file only on success.

    Args:
        path: ends in one of `WRITABLE`; its folder exists.
        frames: `(T, H, W, 3)` RGB, uint8 or float in [0, 1]; H and W even for .mp4 and .mkv.
        fps: frames per second in [0.01, 1000]; .npy and .png do not store it.

    Raises:
        ValueError: an argument is not as above.
        OSError: the folder is not writable, or the file does not read back correctly.
    """
    clip = to_uint8(frames)
    if not _FPS_RANGE[0] <= fps <= _FPS_RANGE[1]:
        low, high = _FPS_RANGE
        raise ValueError(f"fps is {fps}; accepted: {low:g} to {high:g}")
    check_output(path, height=clip.shape[1], width=clip.shape[2])
    target = Path(path).absolute()
    try:
        with _scratch_beside(target) as scratch:
            try:
                _WRITERS[scratch.suffix](scratch, clip, fps)
            except OSError as error:  # OpenCV and Pillow do not say what failed
                raise _full(scratch) or error from error
            os.replace(scratch, target)
    except OSError as error:
        reason = f"path could not be written: {reason_of(error)}"
        raise OSError(error.errno or errno.EIO, reason, str(target)) from error


def check_output(
    path: str | os.PathLike[str], *, height: int | None = None, width: int | None = None
) -> None:
    """Refuse a path that `write_video` would refuse; sizes in pixels, if they are known.

    Raises:
        ValueError: the suffix is not writable here, or not with frames of this size.
        OSError: the path is a folder, or its folder is missing or not writable.
    """
    target = Path(path).absolute()
    suffix = target.suffix.lower()
    if suffix not in WRITABLE:
        accepted = f"a name that ends in {', '.join(WRITABLE)}"
        raise ValueError(f"path is {str(path)!r}; accepted: {accepted}")
    if suffix == ".gif" and importlib.util.find_spec("PIL") is None:
        raise ValueError(f"path is {str(path)!r}: .gif needs Pillow (pip install pillow)")
    if suffix in _CODECS:
        _codec(suffix)
        _check_even(suffix, height, width)
    _check_place(target)


def _check_even(suffix: str, height: int | None, width: int | None) -> None:
    for name, value in (("height", height), ("width", width)):
        if value is not None and value % 2:
            raise ValueError(
                f"{name} is {value}; accepted for {suffix}: an even number. Frames are never "
                "rescaled: crop them, or write .npy (lossless), .png or .gif"
            )


def _check_place(target: Path) -> None:
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "path is a folder, not a file", str(target))
    try:
        with _scratch_beside(target) as scratch:
            scratch.touch(exist_ok=False)
    except OSError as error:
        reason = f"no file can be created in the folder of path ({error.strerror})"
        raise OSError(error.errno, reason, str(target.parent)) from error


@contextlib.contextmanager
def _scratch_beside(target: Path) -> Iterator[Path]:
    """An unused path beside `target` with the same suffix. The file is removed at the end."""
    scratch = target.with_name(f".tmp-{secrets.token_hex(8)}{target.suffix.lower()}")
    try:
        yield scratch
    finally:
        scratch.unlink(missing_ok=True)


def _write_coded(scratch: Path, clip: Frames, fps: float) -> None:
    _encode(scratch, clip, fps, _codec(scratch.suffix))
    _verify(scratch, clip, exact=scratch.suffix in LOSSLESS)


def _full(scratch: Path) -> OSError | None:
    """The error of a full disk; None if the disk is not full."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if is_full(scratch) else None


def _write_npy(scratch: Path, clip: Frames, fps: float) -> None:
    with scratch.open("wb") as file:
        # Not to the file itself, because numpy would hide the reason of a failed write.
        np.save(cast("Any", SimpleNamespace(write=file.write)), clip, allow_pickle=False)


def _write_sheet(scratch: Path, clip: Frames, fps: float) -> None:
    encoded, data = cv2.imencode(".png", contact_sheet(clip)[..., ::-1])
    if not encoded:
        raise OSError(errno.EIO, "OpenCV could not encode the contact sheet")
    scratch.write_bytes(data.tobytes())


def _write_gif(scratch: Path, clip: Frames, fps: float) -> None:
    from PIL import Image

    first, *rest = (Image.fromarray(frame) for frame in clip)
    milliseconds = max(2, round(100 / fps)) * 10  # players slow down frames below 20 ms
    first.save(scratch, save_all=True, append_images=rest, duration=milliseconds, loop=0)


_WRITERS: dict[str, Callable[[Path, Frames, float], None]] = {
    ".mp4": _write_coded,
    ".mkv": _write_coded,
    ".npy": _write_npy,
    ".png": _write_sheet,
    ".gif": _write_gif,
}


def _encode(path: Path, clip: Frames, fps: float, codec: str) -> None:
    size = clip.shape[2], clip.shape[1]
    fourcc = cv2.VideoWriter.fourcc(*codec)
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, fourcc, fps, size)
    try:
        if not writer.isOpened():
            raise OSError(errno.EIO, f"OpenCV could not start the {codec.strip()} encoder")
        for frame in clip:
            writer.write(np.ascontiguousarray(frame[..., ::-1]))
    finally:
        writer.release()


def _verify(path: Path, clip: Frames, *, exact: bool) -> None:
    """Read the file back, because OpenCV's writer reports neither a full disk nor lost bits."""
    count = 0
    for count, frame in enumerate(decode(path), start=1):
        expected = clip[min(count, len(clip)) - 1]
        if frame.shape != expected.shape:
            raise OSError(errno.EIO, f"frames of {expected.shape} were read back as {frame.shape}")
        if exact and not np.array_equal(frame, expected):
            raise OSError(errno.EIO, f"frame {count - 1} did not read back bit-exact; write .npy")
    if count != len(clip):
        reason = f"{len(clip)} frames were written, {count} can be read back: is the disk full?"
        raise OSError(errno.EIO, reason)


@functools.cache
def _codec(suffix: str) -> str:
    """The first codec for a suffix that this OpenCV build can encode and decode."""
    noise: Frames = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder, silent_stderr():
        path = Path(folder, f"probe{suffix}")
        if is_full(path):
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} in {folder}")
        for codec in _CODECS[suffix]:
            with contextlib.suppress(OSError):
                _encode(path, noise, 16.0, codec)
                _verify(path, noise, exact=suffix in LOSSLESS)
                return codec
    raise ValueError(
        f"path ends in {suffix}, but this OpenCV build (cv2 {cv2.__version__}) encodes none of "
        f"{', '.join(_CODECS[suffix])}: install opencv-python-headless, or write .npy"
    )
