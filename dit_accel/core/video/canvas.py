"""Draw clips: two side by side, several as film strips, or all frames of one on a sheet.

Clips come in; uint8 pictures or clips go out. Frames are enlarged only by whole factors, so that
pixels stay square. Only a contact sheet that is too wide is shrunk. It knows no files. Source:
ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

from dit_accel.core.video.frames import Frames, to_uint8

# Pixels; smaller clips are enlarged to at least this height: side by side, and in a film strip.
_CLIP_HEIGHT, _ROW_HEIGHT = 256, 128
_GAP = 8  # pixels between two clips; even
_SHEET_GAP = 4
_SHEET_WIDTH = 3840
_BACKGROUND = 24
_INK = (235, 235, 235)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_CAPITALS = 21  # pixels of a capital letter at scale 1, in OpenCV 4 and 5
_SMALLEST_TEXT = 0.45


def side_by_side(
    left: npt.NDArray[Any], right: npt.NDArray[Any], *,
    labels: tuple[str, str] = ("uncached", "accelerated"),
) -> Frames:  # fmt: skip
    """Two clips side by side with captions above: `(T, H', W', 3)` uint8. H' and W' are even, as
    codecs need it.

    Args:
        left: `(T, H, W, 3)` RGB, uint8 or float in [0, 1].
        right: same shape.
        labels: captions in ASCII; one that is too long ends in "...".

    Raises:
        ValueError: the clips differ in shape.
    """
    clips = to_uint8(left, name="left"), to_uint8(right, name="right")
    if left.shape != right.shape:
        raise ValueError(
            f"right has shape {right.shape}, left has {left.shape}; accepted: equal shapes"
        )
    factor = max(1, math.ceil(_CLIP_HEIGHT / left.shape[1]))
    height, width = left.shape[1] * factor, left.shape[2] * factor
    strip = _caption(labels, height, width)
    top = len(strip)
    canvas: Frames = np.full((len(left), top + height, 2 * width + _GAP, 3), _BACKGROUND, np.uint8)
    canvas[:, :top] = strip
    canvas[:, top:, :width] = clips[0].repeat(factor, 1).repeat(factor, 2)
    canvas[:, top:, width + _GAP :] = clips[1].repeat(factor, 1).repeat(factor, 2)
    return canvas


def _caption(labels: tuple[str, str], height: int, width: int) -> Frames:
    """The strip with captions above two clips of `height` and `width`. The sum of the strip's and
    the clips' heights is even."""
    rows = min(64, max(28, height // 10))
    rows += (rows + height) % 2
    strip: Frames = np.full((rows, 2 * width + _GAP, 3), _BACKGROUND, np.uint8)
    room = width - 16
    widest = max(1, *(_text_width(label, 1.0) for label in labels))
    scale = max(_SMALLEST_TEXT, min(0.55 * rows / _CAPITALS, room / widest))
    baseline = round((rows + _CAPITALS * scale) / 2)
    for label, left in zip(labels, (0, width + _GAP), strict=True):
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


def film_strips(
    clips: Sequence[npt.NDArray[Any]], *, labels: Sequence[str], frames: int = 6
) -> Frames:
    """One labelled row of frames per clip, evenly spaced in time: `(H', W', 3)` uint8.

    Args:
        clips: `(T, H, W, 3)` each, of one size.
        labels: one per clip, ASCII.
        frames: per row, at most.

    Raises:
        ValueError: the clips differ in size, or there is not one label per clip.
    """
    if not clips or len(clips) != len(labels) or len({clip.shape[1:] for clip in clips}) != 1:
        sizes = {clip.shape[1:] for clip in clips}
        raise ValueError(
            f"there are {len(clips)} clips of {len(sizes)} sizes, and {len(labels)} labels; "
            "accepted: clips of one size, each with a label"
        )
    tall, wide = clips[0].shape[1:3]
    factor = max(1, math.ceil(_ROW_HEIGHT / tall))
    tall, wide = tall * factor, wide * factor
    count = min(frames, max(len(clip) for clip in clips))
    across = count * (wide + _SHEET_GAP) - _SHEET_GAP
    rows = []
    for clip, label in zip(clips, labels, strict=True):
        shown = [round(i * (len(clip) - 1) / max(count - 1, 1)) for i in range(count)]
        row: Frames = np.full((28 + tall + _SHEET_GAP, across, 3), _BACKGROUND, np.uint8)
        text = _shorten(label, across - 8, 0.55)
        cv2.putText(row, text, (4, 20), _FONT, 0.55, _INK, 1, cv2.LINE_AA)
        for i, frame in enumerate(to_uint8(clip[shown])):
            x = i * (wide + _SHEET_GAP)
            row[28 : 28 + tall, x : x + wide] = frame.repeat(factor, 0).repeat(factor, 1)
        rows.append(row)
    return np.concatenate(rows)


def contact_sheet(clip: Frames) -> Frames:
    """All frames of `(T, H, W, 3)` on one picture, at most `_SHEET_WIDTH` wide."""
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
