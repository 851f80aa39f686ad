"""Read and write clips, and lay two of them side by side.

The suffix of the path says how a clip is kept:

- `.mkv`, `.npy`: bit-exact (FFV1; a numpy array of uint8, which keeps no frame rate).
- `.mp4`: lossy, for sharing. H.264 where this OpenCV build encodes it (PyPI wheels seldom do),
  else VP9, which browsers play too, else MPEG-4 part 2, which they do not.
- `.png` (contact sheet), `.gif` (Pillow; frames last whole hundredths of a second): for the eye.

Score lossless files: 4:2:0 codecs read 34 to 39 dB against their own source, and so hide every
difference above that. A file takes its place only after it was read back, so a full disk, a
failing encoder or Ctrl-C leaves what was there before. Frames are never rescaled.

It knows no audio, colour space tags, variable frame rate or more than 8 bits; frame rates are kept
to 1/1000; and a file that was cut off by someone else may read as a shorter clip.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib.util
import math
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]

LOSSLESS = (".mkv", ".npy")
READABLE = (".mp4", ".mkv", ".npy", ".avi", ".mov", ".webm")
WRITABLE = (".mp4", ".mkv", ".npy", ".png", ".gif")

_CODECS = {".mp4": ("avc1", "vp09", "mp4v"), ".mkv": ("FFV1", "png ")}
_FPS_RANGE = (0.01, 1000.0)
_SHEET_GAP = 4
_SHEET_WIDTH = 3840
_BACKGROUND = 24
_INK = (235, 235, 235)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_CAPITALS = 21  # pixels that a capital letter rises at scale 1, in OpenCV 4 and 5 alike
_SMALLEST_TEXT = 0.45


def write_video(path: str | os.PathLike[str], frames: npt.NDArray[Any], *, fps: float) -> None:
    """Write a clip in the format of the path's suffix, replacing the file only on success.

    Args:
        path: ends in one of `WRITABLE`; its folder exists.
        frames: `(T, H, W, 3)` RGB, uint8 or float in [0, 1]; H and W even for .mp4 and .mkv.
        fps: frames per second in [0.01, 1000]; not kept by .npy and .png.

    Raises:
        ValueError: if an argument is not as above.
        OSError: if the folder cannot be written, or the file does not read back as it should.
    """
    clip = to_uint8(frames)
    if not _FPS_RANGE[0] <= fps <= _FPS_RANGE[1]:
        raise ValueError(f"fps is {fps}: must be in {list(_FPS_RANGE)}")
    check_output(path, height=clip.shape[1], width=clip.shape[2])
    target = Path(path).absolute()
    try:
        with _scratch_beside(target) as scratch:
            _WRITERS[scratch.suffix](scratch, clip, fps)
            os.replace(scratch, target)
    except OSError as error:
        reason = f"path could not be written: {error.strerror or error}"
        raise OSError(error.errno or errno.EIO, reason, str(target)) from error


def read_video(path: str | os.PathLike[str]) -> tuple[Frames, float | None]:
    """Read a whole clip into memory.

    Args:
        path: ends in one of `READABLE`.

    Returns:
        frames `(T, H, W, 3)` uint8 RGB, and frames per second: None where the file keeps none.

    Raises:
        ValueError: if the suffix is not readable, or the file holds no such clip.
        FileNotFoundError: if there is no such file.
    """
    source = Path(path).absolute()
    suffix = source.suffix.lower()
    if suffix not in READABLE:
        raise ValueError(f"path is {str(path)!r}: must end in one of {', '.join(READABLE)}")
    if not source.is_file():
        raise FileNotFoundError(errno.ENOENT, "path is no file", str(path))
    if suffix == ".npy":
        return _read_npy(source), None
    frames = list(_decode(source))
    if not frames:
        raise ValueError(f"path is {str(path)!r}: no frame of it can be decoded")
    return np.stack(frames), _read_fps(source)


def check_output(
    path: str | os.PathLike[str], *, height: int | None = None, width: int | None = None
) -> None:
    """Refuse a path that `write_video` would refuse: call it before the work, not after.

    Args:
        path: where the clip is to go.
        height: of the frames in pixels, if known.
        width: of the frames in pixels, if known.

    Raises:
        ValueError: if the suffix is not writable here, or not with frames of this size.
        OSError: if the path is a folder, or its folder is missing or not writable.
    """
    target = Path(path).absolute()
    suffix = target.suffix.lower()
    if suffix not in WRITABLE:
        raise ValueError(f"path is {str(path)!r}: must end in one of {', '.join(WRITABLE)}")
    if suffix == ".gif" and importlib.util.find_spec("PIL") is None:
        raise ValueError(f"path is {str(path)!r}: .gif needs Pillow (pip install pillow)")
    if suffix in _CODECS:
        _codec(suffix)
        _check_even(suffix, height, width)
    _check_place(target)


def to_uint8(frames: npt.NDArray[Any], *, name: str = "frames") -> Frames:
    """Round a clip to 8 bits: the one quantiser of every file, so that equal clips stay equal.

    Args:
        frames: `(T, H, W, 3)` RGB, uint8 or float in [0, 1]; rounding noise outside is clipped.
        name: what error messages call it.

    Returns:
        `(T, H, W, 3)` uint8; the same array if it was uint8 already.

    Raises:
        ValueError: naming the argument, its value and what is accepted.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise ValueError(f"{name} has shape {frames.shape}: must be (T, H, W, 3), none of them 0")
    if frames.dtype == np.uint8:
        return cast("Frames", frames)
    if not np.issubdtype(frames.dtype, np.floating):
        raise ValueError(f"{name} has dtype {frames.dtype}: must be uint8, or float in [0, 1]")
    clip: Frames = np.empty(frames.shape, np.uint8)
    for index, frame in enumerate(frames):
        low, high = float(frame.min()), float(frame.max())
        if not (low >= -1e-3 and high <= 1 + 1e-3):
            raise ValueError(f"{name} spans [{low}, {high}] in frame {index}: must be in [0, 1]")
        clip[index] = np.rint(np.clip(frame.astype(np.float32), 0, 1) * 255)
    return clip


def side_by_side(
    left: npt.NDArray[Any],
    right: npt.NDArray[Any],
    *,
    labels: tuple[str, str] = ("uncached", "accelerated"),
    min_height: int = 256,
    gap: int = 8,
) -> Frames:
    """Two clips beside each other under a caption each, on even sizes that every codec takes.

    Args:
        left: `(T, H, W, 3)` RGB, uint8 or float in [0, 1].
        right: same shape.
        labels: captions; ASCII; what does not fit the width of a clip ends in "...".
        min_height: smaller clips are enlarged by whole factors, pixels kept square, to at least
            this many pixels.
        gap: pixels between the clips; even.

    Returns:
        `(T, H', W', 3)` uint8 with H' and W' even.

    Raises:
        ValueError: if the clips differ in shape, or an argument is not as above.
    """
    clips = to_uint8(left, name="left"), to_uint8(right, name="right")
    if left.shape != right.shape:
        raise ValueError(f"right has shape {right.shape}, left has {left.shape}: must be equal")
    if gap < 0 or gap % 2:
        raise ValueError(f"gap is {gap}: must be even and at least 0")
    factor = max(1, math.ceil(min_height / left.shape[1]))
    height, width = left.shape[1] * factor, left.shape[2] * factor
    strip = _caption(labels, height, width, gap)
    top = len(strip)
    canvas: Frames = np.full((len(left), top + height, 2 * width + gap, 3), _BACKGROUND, np.uint8)
    canvas[:, :top] = strip
    canvas[:, top:, :width] = clips[0].repeat(factor, 1).repeat(factor, 2)
    canvas[:, top:, width + gap :] = clips[1].repeat(factor, 1).repeat(factor, 2)
    return canvas


def _caption(labels: tuple[str, str], height: int, width: int, gap: int) -> Frames:
    """The strip above two clips of `height` and `width`, of a height that makes the whole even."""
    rows = min(64, max(28, height // 10))
    rows += (rows + height) % 2
    strip: Frames = np.full((rows, 2 * width + gap, 3), _BACKGROUND, np.uint8)
    room = width - 16
    widest = max(1, *(_text_width(label, 1.0) for label in labels))
    scale = max(_SMALLEST_TEXT, min(0.55 * rows / _CAPITALS, room / widest))
    baseline = round((rows + _CAPITALS * scale) / 2)
    for label, left in zip(labels, (0, width + gap), strict=True):
        text = _shorten(label, room, scale)
        origin = left + (width - _text_width(text, scale)) // 2, baseline
        cv2.putText(strip, text, origin, _FONT, scale, _INK, _stroke(scale), cv2.LINE_AA)
    return strip


def _shorten(label: str, room: int, scale: float) -> str:
    text = label
    while len(text) > 3 and _text_width(text, scale) > room:
        text = text.removesuffix("...")[:-1] + "..."
    return text


def _text_width(text: str, scale: float) -> int:
    return int(cv2.getTextSize(text, _FONT, scale, _stroke(scale))[0][0])


def _stroke(scale: float) -> int:
    return max(1, round(1.5 * scale))


def _check_even(suffix: str, height: int | None, width: int | None) -> None:
    for name, value in (("height", height), ("width", width)):
        if value is not None and value % 2:
            raise ValueError(
                f"{name} is {value}: {suffix} needs an even one, and frames are never rescaled; "
                "crop them, or write .npy (lossless), .png or .gif"
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
    """A free name in the folder of `target`, of its suffix; whatever is left there is removed."""
    scratch = target.with_name(f".tmp-{secrets.token_hex(8)}{target.suffix.lower()}")
    try:
        yield scratch
    finally:
        scratch.unlink(missing_ok=True)


def _write_coded(scratch: Path, clip: Frames, fps: float) -> None:
    _encode(scratch, clip, fps, _codec(scratch.suffix))
    _verify(scratch, clip, exact=scratch.suffix in LOSSLESS)


def _write_npy(scratch: Path, clip: Frames, fps: float) -> None:
    with scratch.open("wb") as file:
        np.save(file, clip, allow_pickle=False)


def _write_sheet(scratch: Path, clip: Frames, fps: float) -> None:
    encoded, data = cv2.imencode(".png", _contact_sheet(clip)[..., ::-1])
    if not encoded:
        raise OSError(errno.EIO, "OpenCV could not encode the contact sheet")
    scratch.write_bytes(data.tobytes())


def _contact_sheet(clip: Frames) -> Frames:
    """All frames in rows on one picture, shrunk where it is wider than `_SHEET_WIDTH`."""
    count, height, width, _ = clip.shape
    columns = min(count, max(1, round(math.sqrt(1.6 * count * height / width))))
    cell = (height + _SHEET_GAP, width + _SHEET_GAP)
    rows = math.ceil(count / columns)
    shape = (rows * cell[0] - _SHEET_GAP, columns * cell[1] - _SHEET_GAP, 3)
    sheet: Frames = np.full(shape, _BACKGROUND, np.uint8)
    for index, frame in enumerate(clip):
        y, x = index // columns * cell[0], index % columns * cell[1]
        sheet[y : y + height, x : x + width] = frame
    if shape[1] <= _SHEET_WIDTH:
        return sheet
    size = _SHEET_WIDTH, max(1, round(shape[0] * _SHEET_WIDTH / shape[1]))
    return cast("Frames", cv2.resize(sheet, size, interpolation=cv2.INTER_AREA))


def _write_gif(scratch: Path, clip: Frames, fps: float) -> None:
    from PIL import Image

    first, *rest = (Image.fromarray(frame) for frame in clip)
    milliseconds = max(2, round(100 / fps)) * 10  # players slow down what is faster than 20 ms
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
    """Read back what was written: OpenCV's writer reports neither a full disk nor lost bits."""
    count = 0
    for count, frame in enumerate(_decode(path), start=1):
        expected = clip[min(count, len(clip)) - 1]
        if frame.shape != expected.shape:
            raise OSError(errno.EIO, f"frames of {expected.shape} read back as {frame.shape}")
        if exact and not np.array_equal(frame, expected):
            raise OSError(errno.EIO, f"frame {count - 1} did not read back bit-exact; write .npy")
    if count != len(clip):
        reason = f"{len(clip)} frames were written, {count} can be read back: is the disk full?"
        raise OSError(errno.EIO, reason)


def _decode(path: Path) -> Iterator[Frames]:
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        while (decoded := capture.read())[0]:
            yield np.ascontiguousarray(cast("Frames", decoded[1])[..., ::-1])
    finally:
        capture.release()


def _read_fps(path: Path) -> float | None:
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    fps = capture.get(cv2.CAP_PROP_FPS)
    capture.release()
    return fps if fps > 0 else None


def _read_npy(path: Path) -> Frames:
    clip = np.load(path, allow_pickle=False)
    if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[3] != 3:
        raise ValueError(
            f"path holds {clip.dtype} of shape {clip.shape}: must be uint8 of (T, H, W, 3)"
        )
    return cast("Frames", clip)


@functools.cache
def _codec(suffix: str) -> str:
    """The first codec for a suffix that this OpenCV build really encodes and decodes."""
    noise: Frames = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder, _silent_stderr():
        path = Path(folder, f"probe{suffix}")
        for codec in _CODECS[suffix]:
            with contextlib.suppress(OSError):
                _encode(path, noise, 16.0, codec)
                _verify(path, noise, exact=suffix in LOSSLESS)
                return codec
    raise ValueError(
        f"path ends in {suffix}, but this OpenCV build (cv2 {cv2.__version__}) encodes none of "
        f"{', '.join(_CODECS[suffix])}: install opencv-python-headless, or write .npy"
    )


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Mute file descriptor 2, where FFmpeg complains of every codec that it lacks."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
