"""What a video file says of itself: its pixel format, its alpha channel, whether it is whole.

In: OpenCV's tag of a pixel format; a path; the times of frames. Out: names and facts.
Known: the formats that keep 8-bit RGB as it is; the first elements of Matroska and WebM, whose
headers state a duration, of audio too, and no number of frames.
Source: ours; RFC 8794 and RFC 9559 (EBML, Matroska).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

# By OpenCV's tag of the decoder's pixel format, the name that ffmpeg has for it.
_PIXELS = {
    b"BGR\0": "bgr0", b"RGB\0": "rgb0", b"\0BGR": "0bgr", b"\0RGB": "0rgb", b"BGR\x18": "bgr24",
    b"RGB\x18": "rgb24", b"G3\0\x08": "gbrp", b"BGRA": "bgra", b"RGBA": "rgba", b"ABGR": "abgr",
    b"ARGB": "argb", b"G4\0\x08": "gbrap", b"Y800": "gray", b"I420": "yuv420p", b"Y42B": "yuv422p",
    b"444P": "yuv444p", b"411P": "yuv411p", b"440P": "yuv440p", b"NV12": "nv12",
    b"Y3\x0b\x0a": "yuv420p10le", b"Y3\x0a\x0a": "yuv422p10le", b"Y3\x00\x0a": "yuv444p10le",
}  # fmt: skip
WITH_ALPHA = frozenset({"bgra", "rgba", "abgr", "argb", "gbrap"})
EIGHT_BIT_RGB = WITH_ALPHA | {"bgr0", "rgb0", "0bgr", "0rgb", "bgr24", "rgb24", "gbrp"}
_MATROSKA, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_ALPHA_MODE = b"\x53\xc0\x81\x01"  # of WebM: alpha lies beside the frames, and no decoder says so
_HEADER_BYTES = 1 << 16


def pixel_format(tag: float) -> str:
    """The name of a pixel format; of one that is not known its tag, "" where there is none."""
    number = int(tag) & 0xFFFFFFFF
    code = number.to_bytes(4, "little")
    if number in (0, 0xFFFFFFFF):
        return ""
    return _PIXELS.get(code) or "".join(chr(byte) for byte in code if chr(byte).isalnum()).lower()


def is_matroska(path: Path) -> bool:
    """Whether it is an .mkv or .webm file, by its content."""
    with path.open("rb") as file:
        return file.read(4) == _MATROSKA


def has_hidden_alpha(path: Path) -> bool:
    """Whether a WebM file has an alpha channel beside its frames."""
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
    return head.startswith(_MATROSKA) and _ALPHA_MODE in head


def missing_bytes(path: Path) -> int:
    """How many bytes a Matroska file lacks of the length that it states; 0 where it states none."""
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
    size, after = _size(head, 4)
    at = after + (size or 0)
    if not head.startswith(_MATROSKA) or head[at : at + 4] != _SEGMENT:
        return 0
    length, after = _size(head, at + 4)
    return 0 if length is None else max(0, after + length - path.stat().st_size)


def _size(content: bytes, at: int) -> tuple[int | None, int]:
    """The size of an EBML element at a place, None for one that is not known; and what is next."""
    first = content[at] if at < len(content) else 0
    width = 9 - first.bit_length()
    number = int.from_bytes(content[at : at + width], "big") & ((1 << 7 * width) - 1)
    known = first > 0 and number != (1 << 7 * width) - 1
    return (number if known else None), at + width


def uneven_times(milliseconds: Sequence[float]) -> bool:
    """Whether frames do not follow each other at one rate; times are rounded to milliseconds."""
    gaps = [b - a for a, b in itertools.pairwise(milliseconds)]
    return len(gaps) > 1 and max(gaps) > 1.5 * min(gaps) and max(gaps) - min(gaps) > 2.5
