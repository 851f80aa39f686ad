"""Draws a layout: the boxes and ids of each shot, over its frames and its token grid.

In: shots, and the subject of each token. Out: frames, as a sheet or as a film.
Knows Pillow; reads and writes no file. Tokens have the colour of the subject that a run assigns
them to. The grid is coarser than the boxes, and the picture shows that. Ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    import torch

    from dit_accel.core.tokens import TokenGrid
    from dit_accel.core.video import Frames
    from dit_accel.layout import Shot

# Okabe and Ito's colours, which colour-blind people can distinguish too; brightest first.
COLOURS = ((86, 180, 233), (230, 159, 0), (0, 158, 115), (204, 121, 167), (240, 228, 66),
           (213, 94, 0))  # fmt: skip
PAPER, INK, FAINT, SOIL = (250, 250, 248), (32, 36, 42), (120, 126, 134), (62, 66, 72)
EDGE, GAP, SIDE = 20, 10, 256  # pixels: margin, between frames, shorter side of a frame
PROMPT_LINES = 3  # at most
TINT, FAINT_TINT = 0.55, 0.3  # opacity of tokens, over grey and over a clip


@dataclass(frozen=True)
class Drawn:
    """One shot, ready to be drawn.

    Args:
        shot: the shot of the layout.
        labels: `(F, rows, columns)` int64: 0 background, i + 1 subject i.
        grid: the token grid of the clip.
        clip: `(T, H, W, 3)` uint8 frames to draw over; None: plain grey.
        known: ids in the order of the layout, so that a subject has one colour in all shots.
    """

    shot: Shot
    labels: torch.Tensor
    grid: TokenGrid
    clip: Frames | None = None
    known: tuple[str, ...] = ()

    def colour(self, index: int) -> tuple[int, ...]:
        """The colour of a subject, by its index in the shot."""
        id = self.shot.subjects[index].id
        return COLOURS[(self.known.index(id) if id in self.known else index) % len(COLOURS)]


def sheet(shots: Sequence[Drawn], *, count: int) -> Frames:
    """A picture of all shots below each other, with some frames of each: `(1, H, W, 3)` uint8."""
    parts = [_strip(drawn, _moments(drawn.grid, count)) for drawn in shots]
    width = max(part.width for part in parts)
    page = Image.new("RGB", (width, sum(part.height for part in parts)), PAPER)
    top = 0
    for part in parts:
        page.paste(part, (0, top))
        top += part.height
    return np.asarray(page)[None].copy()


def film(shots: Sequence[Drawn]) -> Frames:
    """A film of all shots in sequence, with every frame of each: `(T, H, W, 3)` uint8 of even
    sizes."""
    pages = [_strip(drawn, [frame]) for drawn in shots for frame in range(drawn.grid.num_frames)]
    width = max(page.width for page in pages) + 1 & ~1
    height = max(page.height for page in pages) + 1 & ~1
    frames = np.empty((len(pages), height, width, 3), np.uint8)
    frames[:] = PAPER
    for frame, page in zip(frames, pages, strict=True):
        frame[: page.height, : page.width] = np.asarray(page)
    return frames


def _strip(drawn: Drawn, frames: Sequence[int]) -> Image.Image:
    """A shot's title, some of its frames in a row, and a legend."""
    cells = [_frame(drawn, frame) for frame in frames]
    wide, high = cells[0].size
    width = max(2 * EDGE + len(cells) * (wide + GAP) - GAP, 420)
    title, small = _font(20), _font(14)
    prompt = _wrapped(drawn.shot.prompt, small, width - 2 * EDGE)
    legend = _legend(drawn)
    top = EDGE + 30 + 20 * len(prompt) + 8
    page = Image.new("RGB", (width, top + high + 28 + 22 * len(legend) + EDGE), PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((EDGE, EDGE), drawn.shot.id, fill=INK, font=title)
    for row, line in enumerate(prompt):
        pen.text((EDGE, EDGE + 30 + 20 * row), line, fill=FAINT, font=small)
    for i, (frame, cell) in enumerate(zip(frames, cells, strict=True)):
        left = EDGE + i * (wide + GAP)
        page.paste(cell, (left, top))
        latent = drawn.grid.latent_frame(frame)
        pen.text((left, top + high + 5), f"frame {frame}, latent frame {latent}", FAINT, small)
    for row, (colour, text) in enumerate(legend):
        y = top + high + 30 + 22 * row
        pen.rounded_rectangle((EDGE, y + 2, EDGE + 14, y + 16), 3, fill=colour)
        pen.text((EDGE + 22, y), text, fill=INK, font=small)
    return page


def _frame(drawn: Drawn, frame: int) -> Image.Image:
    """One frame: the picture, its tokens' tints and grid, and the boxes on top."""
    grid = drawn.grid
    scale = SIDE / min(grid.height, grid.width)
    wide, high = round(grid.width * scale), round(grid.height * scale)
    picture = Image.new("RGB", (wide, high), SOIL)
    if drawn.clip is not None:
        picture = Image.fromarray(drawn.clip[frame]).resize((wide, high), Image.Resampling.BICUBIC)
    tint = TINT if drawn.clip is None else FAINT_TINT
    picture = Image.blend(picture, _tints(drawn, frame, picture), tint)
    pen = ImageDraw.Draw(picture, "RGBA")
    step = max(1, math.ceil(8 / scale))  # only some lines of a fine grid
    for row in range(step, grid.height, step):
        y = round(row * scale)
        pen.line((0, y, wide, y), fill=(255, 255, 255, 46))
    for column in range(step, grid.width, step):
        x = round(column * scale)
        pen.line((x, 0, x, high), fill=(255, 255, 255, 46))
    end = grid.num_frames - 1
    order = sorted(range(len(drawn.shot.subjects)), key=lambda i: drawn.shot.subjects[i].z)
    for index in order:
        subject = drawn.shot.subjects[index]
        if subject.mask is None:
            _box(pen, subject.box_at(frame / max(end, 1)), wide, high, drawn.colour(index))
    for index in order:  # ids are drawn above all boxes
        _tag(pen, drawn, index, frame, wide, high)
    return picture


def _tints(drawn: Drawn, frame: int, picture: Image.Image) -> Image.Image:
    """The picture with the tokens of each subject in its colour."""
    labels = drawn.labels[drawn.grid.latent_frame(frame)].numpy()
    size = picture.size
    tinted = np.asarray(picture).copy()
    whose = np.asarray(
        Image.fromarray(labels.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    )
    for index in range(len(drawn.shot.subjects)):
        tinted[whose == index + 1] = drawn.colour(index)
    return Image.fromarray(tinted)


def _box(
    pen: ImageDraw.ImageDraw, box: Sequence[float], wide: int, high: int, colour: tuple[int, ...]
) -> None:
    x0, y0, x1, y1 = _corners(box, wide, high)
    pen.rectangle((x0, y0, x1, y1), outline=(20, 22, 26), width=4)
    pen.rectangle((x0 + 1, y0 + 1, x1 - 1, y1 - 1), outline=colour, width=2)


def _tag(
    pen: ImageDraw.ImageDraw, drawn: Drawn, index: int, frame: int, wide: int, high: int
) -> None:
    """A subject's id, at the upper left of its box or in the middle of its mask."""
    subject, font = drawn.shot.subjects[index], _font(13)
    text = subject.id if pen.textlength(subject.id, font) < wide - 12 else subject.id[:12] + "..."
    room = pen.textlength(text, font) + 10
    if subject.mask is None:
        end = max(drawn.grid.num_frames - 1, 1)
        x, y = map(float, _corners(subject.box_at(frame / end), wide, high)[:2])
    else:
        labels = drawn.labels[drawn.grid.latent_frame(frame)]
        here = (labels == index + 1).nonzero().double()
        if not len(here):
            return
        row, column = ((here.mean(0) + 0.5) / here.new_tensor(labels.shape)).tolist()
        x, y = column * wide - room / 2, row * high - 9
    left, top = min(max(x, 0.0), wide - room), min(max(y, 0.0), high - 19.0)
    pen.rounded_rectangle((left, top, left + room, top + 18), 3, fill=drawn.colour(index))
    pen.text((left + 5, top + 1), text, fill=(16, 18, 22), font=font)


def _corners(box: Sequence[float], wide: int, high: int) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = (round(e * side) for e, side in zip(box, (wide, high) * 2, strict=True))
    return min(x0, wide - 6), min(y0, high - 6), max(x1 - 1, x0 + 5), max(y1 - 1, y0 + 5)


def _legend(drawn: Drawn) -> list[tuple[tuple[int, ...], str]]:
    """Colour and text of every class: its tokens, and their share."""
    total = drawn.labels.numel()

    def count(label: int) -> str:
        tokens = int((drawn.labels == label).sum())
        return f"{tokens} of {total} tokens ({tokens / total:.0%})"

    rows: list[tuple[tuple[int, ...], str]] = []
    for index, subject in enumerate(drawn.shot.subjects):
        reads = ""
        if subject.reference is not None:
            other = subject.reference.shot or (
                subject.reference.file and subject.reference.file.name
            )
            reads = f", reads {other}"
        rows.append((drawn.colour(index), f"{subject.id}: {count(index + 1)}{reads}"))
    return [*rows, (SOIL, f"background: {count(0)}")]


def _wrapped(text: str, font: ImageFont.FreeTypeFont, room: float) -> list[str]:
    """The text in at most `PROMPT_LINES` that fit. A longer text ends in "..."."""
    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > room:
            lines.append(line)
            longer = word
        line = longer
    lines.append(line)
    if len(lines) > PROMPT_LINES:
        lines = [*lines[: PROMPT_LINES - 1], lines[PROMPT_LINES - 1] + " ..."]
    while font.getlength(max(lines, key=font.getlength)) > room:
        lines = [one if font.getlength(one) <= room else one[:-8] + "..." for one in lines]
    return lines


def _moments(grid: TokenGrid, count: int) -> list[int]:
    last = grid.num_frames - 1
    return sorted({round(i * last / max(count - 1, 1)) for i in range(count)})


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)  # type: ignore[return-value]
