"""Reads facts about a video file: its pixel format, its alpha channel, whether it is complete.

In: OpenCV's tag of a pixel format; a path; the times of frames. Out: names and facts.
Knows: the formats that store 8-bit RGB unchanged; the first elements of Matroska and WebM files.
Their headers state a duration, which includes the audio, and no number of frames.
Source: ours; RFC 8794 and RFC 9559 (EBML, Matroska).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

# From OpenCV's tag of the decoder's pixel format to ffmpeg's name.
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
_ALPHA_MODE = b"\x53\xc0\x81\x01"  # in WebM: alpha is stored apart, and no decoder reports it
_HEADER_BYTES = 1 << 16


def pixel_format(tag: float) -> str:
    """The name of a pixel format. An unknown format is named by its tag; "" if it has none."""
    number = int(tag) & 0xFFFFFFFF
    code = number.to_bytes(4, "little")
    if number in (0, 0xFFFFFFFF):
        return ""
    return _PIXELS.get(code) or "".join(chr(byte) for byte in code if chr(byte).isalnum()).lower()


def is_matroska(path: Path) -> bool:
    """Whether the content is that of an .mkv or .webm file."""
    with path.open("rb") as file:
        return file.read(4) == _MATROSKA


def has_hidden_alpha(path: Path) -> bool:
    """Whether a WebM file has an alpha channel beside its frames."""
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
    return head.startswith(_MATROSKA) and _ALPHA_MODE in head


def missing_bytes(path: Path) -> int:
    """How many bytes of its stated length a Matroska file lacks; 0 if it states no length."""
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
    size, after = _size(head, 4)
    at = after + (size or 0)
    if not head.startswith(_MATROSKA) or head[at : at + 4] != _SEGMENT:
        return 0
    length, after = _size(head, at + 4)
    return 0 if length is None else max(0, after + length - path.stat().st_size)


def _size(content: bytes, at: int) -> tuple[int | None, int]:
    """The size of the EBML element at a position (None: not known), and the position after it."""
    first = content[at] if at < len(content) else 0
    width = 9 - first.bit_length()
    number = int.from_bytes(content[at : at + width], "big") & ((1 << 7 * width) - 1)
    known = first > 0 and number != (1 << 7 * width) - 1
    return (number if known else None), at + width


def uneven_times(milliseconds: Sequence[float]) -> bool:
    """Whether the frame rate is not constant. The times are rounded to milliseconds."""
    gaps = [b - a for a, b in itertools.pairwise(milliseconds)]
    return len(gaps) > 1 and max(gaps) > 1.5 * min(gaps) and max(gaps) - min(gaps) > 2.5
