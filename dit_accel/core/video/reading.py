"""Read clips, whole or in chunks, and find how a file codes them.

Paths come in; uint8 frames go out. If a file has fewer frames than its header states, it is damaged
or cut off; this is an error, not a shorter clip. A Matroska header states bytes instead of frames,
so its bytes are counted. Frames at uneven times are noted: the rate may vary, or frames may be
missing. One missing frame is not detected, and no damage inside a frame that can still be decoded.
Source: ours, on OpenCV's FFmpeg.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import cv2
import numpy as np

from dit_accel.core.video import container
from dit_accel.core.video.frames import Frames

READABLE = (".mp4", ".mkv", ".npy", ".avi", ".mov", ".webm")

_READ_WITH_ALPHA = "bgra"  # the only format that OpenCV hands over with its alpha
_LOSSLESS_CODECS = frozenset({"ffv1", "png", "mpng", "hfyu", "ffvh", "ulrg", "ulra", "raw"})


@dataclass(frozen=True)
class Codec:
    """How a file codes its frames.

    Attributes:
        name: the file's own, in lower case: `ffv1`, `h264`, `vp90`, `npy`, ...
        lossless: whether 8-bit RGB is certainly bit-exact: the codec is lossless and stores 8-bit
            RGB. False if the file does not say so; for instance, H.264 may be in a lossless mode.
        pixels: ffmpeg's name of the format of the decoded pixels; "" if it is not known.
        alpha: whether there is an alpha channel that is not opaque. It is not read.
    """

    name: str
    lossless: bool
    pixels: str = ""
    alpha: bool = False

    @property
    def loss(self) -> str:
        """Why frames of 8-bit RGB may not be exact; "" if they are exact."""
        if self.lossless:
            return ""
        return "no 8-bit RGB" if self.name in _LOSSLESS_CODECS else "lossy"

    @property
    def format(self) -> str:
        """The codec, and the pixels if it is not lossless."""
        return f"{self.name} in {self.pixels}" if self.pixels and not self.lossless else self.name


def read_video(path: str | os.PathLike[str]) -> tuple[Frames, float | None]:
    """Read a whole clip: `(T, H, W, 3)` uint8 RGB, and frames per second (None: not stated).

    Raises:
        ValueError: the suffix is not readable, or the file has no whole clip.
        FileNotFoundError: there is no such file.
    """
    chunks = list(stream_video(path))
    frames = chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
    source = Path(path)
    return frames, frame_rate(source)


def stream_video(
    path: str | os.PathLike[str], *, chunk: int = 16, notes: list[str] | None = None
) -> Iterator[Frames]:
    """Read a clip in chunks of at most `chunk` frames; the path is checked at once.

    Args:
        chunk: at least 1.
        notes: at the end, what is to be said of the file is added here.

    Yields:
        `(t, H, W, 3)` uint8 RGB, 1 <= t <= chunk.

    Raises:
        ValueError: the suffix is not readable or, at the end, the file has no whole clip.
        FileNotFoundError: there is no such file.
    """
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; accepted: 1 or more")
    source = _source(path)
    if source.suffix.lower() == ".npy":
        return _stream_npy(source, str(path), chunk)
    return _stream_coded(source, str(path), chunk, [] if notes is None else notes)


def frame_rate(path: str | os.PathLike[str]) -> float | None:
    """The frames per second that a file states; None if it states none.

    Raises:
        ValueError: the suffix is not readable.
        FileNotFoundError: there is no such file.
    """
    source = _source(path)
    if source.suffix.lower() == ".npy":
        return None
    capture = cv2.VideoCapture(str(source), cv2.CAP_FFMPEG)
    fps = capture.get(cv2.CAP_PROP_FPS)
    capture.release()
    return fps if fps > 0 else None


def codec_of(path: str | os.PathLike[str]) -> Codec:
    """How a file codes its frames.

    Raises:
        ValueError: the suffix is not readable, or the file is not a clip.
        FileNotFoundError: there is no such file.
    """
    source = _source(path)
    if source.suffix.lower() == ".npy":
        return Codec("npy", lossless=True)
    capture = cv2.VideoCapture(str(source), cv2.CAP_FFMPEG)
    try:
        if not capture.isOpened():
            raise ValueError(f"path is {str(path)!r}: no frame of it can be decoded")
        name = _tag(capture.get(cv2.CAP_PROP_FOURCC)).lower() or "raw"
        pixels = container.pixel_format(capture.get(cv2.CAP_PROP_CODEC_PIXEL_FORMAT))
    finally:
        capture.release()
    lossless = name in _LOSSLESS_CODECS and pixels in container.EIGHT_BIT_RGB
    alpha = container.has_hidden_alpha(source)
    if pixels in container.WITH_ALPHA:
        alpha = pixels != _READ_WITH_ALPHA or _is_transparent(source)
    return Codec(name, lossless, pixels, alpha)


def _is_transparent(source: Path) -> bool:
    """Whether the first frame's alpha is below 255 anywhere. OpenCV writes FFV1 with 255.

    OpenCV 4 returns only the first W bytes of each row, so only the left quarter is checked there.
    """
    with silent_stderr():  # OpenCV warns that colours are not converted; this is intended here
        capture = cv2.VideoCapture(str(source), cv2.CAP_FFMPEG, [cv2.CAP_PROP_CONVERT_RGB, 0])
        read, frame = capture.read()
        capture.release()
    if not read:
        return False
    alpha = frame[:, 3::4] if frame.ndim == 2 else frame[..., 3]
    return bool((alpha < 255).any())


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Mute file descriptor 2, where FFmpeg and OpenCV write messages that are expected here."""
    stderr = os.dup(2)
    try:
        with open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def decode(path: Path) -> Iterator[Frames]:
    """The decodable frames `(H, W, 3)` of a coded file, one by one."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        yield from (frame for frame, _ in _frames(capture))
    finally:
        capture.release()


def _source(path: str | os.PathLike[str]) -> Path:
    source = Path(path).absolute()
    if source.suffix.lower() not in READABLE:
        accepted = f"a name that ends in {', '.join(READABLE)}"
        raise ValueError(f"path is {str(path)!r}; accepted: {accepted}")
    if not source.is_file():
        raise FileNotFoundError(errno.ENOENT, "path is no file", str(path))
    return source


def _stream_coded(source: Path, shown: str, chunk: int, notes: list[str]) -> Iterator[Frames]:
    times: list[float] = []  # of all frames, in milliseconds
    frames: list[Frames] = []
    capture = cv2.VideoCapture(str(source), cv2.CAP_FFMPEG)
    try:
        stated = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        fps = capture.get(cv2.CAP_PROP_FPS)
        for frame, time in _frames(capture):
            times.append(time)
            frames.append(frame)
            if len(frames) == chunk:
                yield np.stack(frames)
                frames = []
    finally:
        capture.release()
    if not times:
        raise ValueError(f"path is {shown!r}: no frame of it can be decoded")
    _check_whole(source, shown, len(times), stated)
    notes += _remarks(shown, times, stated, fps)
    if frames:
        yield np.stack(frames)


def _check_whole(source: Path, shown: str, count: int, stated: int) -> None:
    """Refuse a file that lacks frames. One may be missing: some containers round their duration
    up."""
    damaged = "the file is damaged or was cut off"
    if container.is_matroska(source):  # `stated` comes from the duration, which may be the audio's
        if missing := container.missing_bytes(source):
            raise ValueError(
                f"path is {shown!r}: {count} of {stated} frames can be decoded; {damaged} "
                f"({missing} bytes are missing)"
            )
    elif count < stated - 1:
        raise ValueError(f"path is {shown!r}: {count} of {stated} frames can be decoded; {damaged}")


def _remarks(shown: str, times: list[float], stated: int, fps: float) -> list[str]:
    if container.uneven_times(times):
        return [f"{shown} has frames at uneven times: its frame rate varies, or frames are missing"]
    if len(times) < stated - 1 and fps > 0:
        seconds = (stated - len(times)) / fps
        return [f"{shown} goes on for {seconds:.1f} s after its last frame, as with longer audio"]
    return []


def _frames(capture: cv2.VideoCapture) -> Iterator[tuple[Frames, float]]:
    """Frames `(H, W, 3)` and their times in milliseconds."""
    while (decoded := capture.read())[0]:
        time = capture.get(cv2.CAP_PROP_POS_MSEC)
        yield cast("Frames", cv2.cvtColor(decoded[1], cv2.COLOR_BGR2RGB)), time


def _stream_npy(source: Path, shown: str, chunk: int) -> Iterator[Frames]:
    try:
        clip = np.load(source, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"path is {shown!r}: it has no complete numpy array ({error})") from error
    if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[3] != 3 or 0 in clip.shape:
        raise ValueError(
            f"path is {shown!r}, with {clip.dtype} of shape {clip.shape}; accepted: uint8 of shape "
            "(T, H, W, 3)"
        )
    for at in range(0, len(clip), chunk):
        yield np.array(clip[at : at + chunk])


def _tag(value: float) -> str:
    """The four characters that OpenCV codes as a number; unprintable ones are dropped."""
    letters = (chr(int(value) >> shift & 255) for shift in (0, 8, 16, 24))
    return "".join(letter for letter in letters if letter.isascii() and letter.isalnum())
