"""Read clips, whole or in chunks, and find how a file codes them.

Paths come in; uint8 frames go out. A file with fewer frames than its header states is damaged or
cut off: that is an error, not a shorter clip. A single missing frame is not noticed, nor damage
inside a frame that can still be decoded. Source: ours, on OpenCV's FFmpeg.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import cv2
import numpy as np

from dit_accel.core.video.frames import Frames

READABLE = (".mp4", ".mkv", ".npy", ".avi", ".mov", ".webm")

_LOSSLESS_CODECS = frozenset({"ffv1", "png", "mpng", "hfyu", "ffvh", "ulrg", "ulra", "raw"})
_SUBSAMPLED = frozenset({"I420", "YV12", "NV12", "NV21", "Y42B", "YUY2", "UYVY", "422P", "411P"})


@dataclass(frozen=True)
class Codec:
    """How a file codes its frames.

    Attributes:
        name: the file's own, in lower case: `ffv1`, `h264`, `vp90`, `npy`, ...
        lossless: whether 8-bit RGB is surely bit-exact. False where the file does not say, as with
            H.264, which has a lossless mode.
    """

    name: str
    lossless: bool


def read_video(path: str | os.PathLike[str]) -> tuple[Frames, float | None]:
    """Read a whole clip: `(T, H, W, 3)` uint8 RGB, and frames per second (None: not in the file).

    Raises:
        ValueError: the suffix is not readable, or the file has no whole clip.
        FileNotFoundError: there is no such file.
    """
    chunks = list(stream_video(path))
    frames = chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
    source = Path(path)
    return frames, frame_rate(source)


def stream_video(path: str | os.PathLike[str], *, chunk: int = 16) -> Iterator[Frames]:
    """Read a clip in chunks of at most `chunk` frames; the path is checked at once.

    Yields:
        `(t, H, W, 3)` uint8 RGB, 1 <= t <= chunk.

    Raises:
        ValueError: the suffix is not readable or, at the end, the file has no whole clip.
        FileNotFoundError: there is no such file.
    """
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}: must be at least 1")
    source = _source(path)
    stream = _stream_npy if source.suffix.lower() == ".npy" else _stream_coded
    return stream(source, str(path), chunk)


def frame_rate(path: str | os.PathLike[str]) -> float | None:
    """Frames a second that a file states; None where it states none.

    Raises:
        ValueError: if the path's suffix is of no format.
        FileNotFoundError: if there is no such file.
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
        pixels = _tag(capture.get(cv2.CAP_PROP_CODEC_PIXEL_FORMAT))
    finally:
        capture.release()
    return Codec(name, lossless=name in _LOSSLESS_CODECS and pixels not in _SUBSAMPLED)


def decode(path: Path) -> Iterator[Frames]:
    """The frames `(H, W, 3)` of a coded file that can be decoded, one by one."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        yield from _frames(capture)
    finally:
        capture.release()


def _source(path: str | os.PathLike[str]) -> Path:
    source = Path(path).absolute()
    if source.suffix.lower() not in READABLE:
        raise ValueError(f"path is {str(path)!r}: must end in one of {', '.join(READABLE)}")
    if not source.is_file():
        raise FileNotFoundError(errno.ENOENT, "path is no file", str(path))
    return source


def _stream_coded(source: Path, shown: str, chunk: int) -> Iterator[Frames]:
    count = 0
    frames: list[Frames] = []
    capture = cv2.VideoCapture(str(source), cv2.CAP_FFMPEG)
    try:
        stated = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        for frame in _frames(capture):
            count += 1
            frames.append(frame)
            if len(frames) == chunk:
                yield np.stack(frames)
                frames = []
    finally:
        capture.release()
    if count == 0:
        raise ValueError(f"path is {shown!r}: no frame of it can be decoded")
    if count < stated - 1:  # some containers round their duration up by one frame
        raise ValueError(
            f"path is {shown!r}: {count} of {stated} frames can be decoded; "
            "the file is damaged or was cut off"
        )
    if frames:
        yield np.stack(frames)


def _frames(capture: cv2.VideoCapture) -> Iterator[Frames]:
    while (decoded := capture.read())[0]:
        yield cast("Frames", cv2.cvtColor(decoded[1], cv2.COLOR_BGR2RGB))


def _stream_npy(source: Path, shown: str, chunk: int) -> Iterator[Frames]:
    try:
        clip = np.load(source, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"path is {shown!r}: it holds no whole numpy array ({error})") from error
    if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[3] != 3 or 0 in clip.shape:
        raise ValueError(
            f"path holds {clip.dtype} of shape {clip.shape}: must be uint8 of (T, H, W, 3)"
        )
    for at in range(0, len(clip), chunk):
        yield np.array(clip[at : at + chunk])


def _tag(value: float) -> str:
    """The four characters that OpenCV codes as a number; unprintable ones are dropped."""
    letters = (chr(int(value) >> shift & 255) for shift in (0, 8, 16, 24))
    return "".join(letter for letter in letters if letter.isascii() and letter.isalnum())
