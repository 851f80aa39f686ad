"""Read clips, whole or in chunks, and tell how a file keeps them.

A file that decodes to fewer frames than its header promises was cut off or damaged, and is an
error, not a shorter clip. It does not notice a single missing frame, nor damage inside a frame that
decodes all the same.
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
    """How a file keeps its frames.

    Attributes:
        name: in lower case, as the file calls it: `ffv1`, `h264`, `vp90`, `npy`, ...
        lossless: whether RGB of 8 bits surely comes back bit-exact. False where the file does not
            tell, as with H.264, which has a lossless mode.
    """

    name: str
    lossless: bool


def read_video(path: str | os.PathLike[str]) -> tuple[Frames, float | None]:
    """Read a whole clip into memory.

    Args:
        path: ends in one of `READABLE`.

    Returns:
        frames `(T, H, W, 3)` uint8 RGB, and frames per second: None where the file keeps none.

    Raises:
        ValueError: if the suffix is not readable, or the file holds no whole clip.
        FileNotFoundError: if there is no such file.
    """
    chunks = list(stream_video(path))
    frames = chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
    source = Path(path)
    return frames, None if source.suffix.lower() == ".npy" else _read_fps(source)


def stream_video(path: str | os.PathLike[str], *, chunk: int = 16) -> Iterator[Frames]:
    """Read a clip some frames at a time; the path is checked at once, not at the first frame.

    Args:
        path: ends in one of `READABLE`.
        chunk: most frames at a time.

    Yields:
        `(t, H, W, 3)` uint8 RGB, t of 1 to `chunk`.

    Raises:
        ValueError: if the suffix is not readable or, at the end, the file holds no whole clip.
        FileNotFoundError: if there is no such file.
    """
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}: must be at least 1")
    source = _source(path)
    stream = _stream_npy if source.suffix.lower() == ".npy" else _stream_coded
    return stream(source, str(path), chunk)


def codec_of(path: str | os.PathLike[str]) -> Codec:
    """How a file keeps its frames.

    Args:
        path: ends in one of `READABLE`.

    Raises:
        ValueError: if the suffix is not readable, or the file is no clip.
        FileNotFoundError: if there is no such file.
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
    """The frames `(H, W, 3)` of a coded file one by one, as many as can be decoded."""
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
    kept: list[Frames] = []
    capture = cv2.VideoCapture(str(source), cv2.CAP_FFMPEG)
    try:
        promised = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        for frame in _frames(capture):
            count += 1
            kept.append(frame)
            if len(kept) == chunk:
                yield np.stack(kept)
                kept = []
    finally:
        capture.release()
    if count == 0:
        raise ValueError(f"path is {shown!r}: no frame of it can be decoded")
    if count < promised - 1:  # some containers round their duration up to one frame more
        raise ValueError(
            f"path is {shown!r}: {count} of {promised} frames can be decoded; "
            "the file is damaged or was cut off"
        )
    if kept:
        yield np.stack(kept)


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


def _read_fps(path: Path) -> float | None:
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    fps = capture.get(cv2.CAP_PROP_FPS)
    capture.release()
    return fps if fps > 0 else None


def _tag(value: float) -> str:
    """Four characters that OpenCV keeps in a number; those that are not printed are left out."""
    letters = (chr(int(value) >> shift & 255) for shift in (0, 8, 16, 24))
    return "".join(letter for letter in letters if letter.isascii() and letter.isalnum())
