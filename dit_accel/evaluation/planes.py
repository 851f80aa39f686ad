"""Scores two files by their planes, as ffmpeg's own filters do.

In: two files, and rows of the convention `ffmpeg`. Out: their scores; None if no file has planes,
as RGB files have none.
Knows: an RGB file is converted to 4:2:0 as ffmpeg would do it. ffmpeg itself reads the planes of a
4:2:0, 4:2:2 or 4:4:4 file of 8 bits, because OpenCV returns only RGB, and the planes cannot be
restored from RGB. Files of two formats are not compared.
Source: ours; ffmpeg's `vf_psnr.c` and `vf_ssim.c`.
"""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from dit_accel.core import video
from dit_accel.metrics import ffmpeg, yuv
from dit_accel.metrics.row import Metric
from dit_accel.metrics.scoring import Score

# by how much chroma is smaller, in rows and columns
_HALVED = {"yuv420p": (2, 2), "yuv422p": (1, 2), "yuv444p": (1, 1)}
Planes = tuple[yuv.Plane, ...]


def score_planes(
    files: Sequence[Path], rows: Mapping[str, Metric], codecs: Sequence[video.Codec]
) -> dict[str, Score]:
    """The scores of the metrics that read planes, if a file has planes.

    Args:
        files, codecs: those of the reference and the test.
    """
    wanted = {name: row for name, row in rows.items() if row.frames in yuv.OF_PLANES}
    own = [codec.pixels for codec in codecs if not _is_rgb(codec)]
    if not wanted or not own:
        return {}
    reason = _refusal(codecs)
    program = ffmpeg.executable()
    if reason is None and program is None:
        reason = "needs ffmpeg, which reads the files' own planes: pip install imageio-ffmpeg"
    if reason is not None or program is None:
        return {name: Score(None, reason=reason) for name in wanted}
    found: dict[str, list[float]] = {name: [] for name in wanted}
    streams = [_planes(path, codec, program) for path, codec in zip(files, codecs, strict=True)]
    for one, other in zip(*streams, strict=False):
        if [plane.shape for plane in one] != [plane.shape for plane in other]:
            return {name: Score(None, reason="the frames differ in size") for name in wanted}
        for name, row in wanted.items():
            of_planes = yuv.OF_PLANES[row.frames]
            found[name] += of_planes([list(zip(one, other, strict=True))]).tolist()
    return {name: _score(wanted[name], values) for name, values in found.items()}


def _score(row: Metric, frames: list[float]) -> Score:
    if not frames or row.mean is None:
        return Score(None, reason="ffmpeg read no frame")
    exact = sum(map(np.isinf, frames)) if row.counts_exact else None
    shown = tuple(frames) if row.per_frame else None
    return Score(row.mean(np.array(frames)), shown, None, None if exact is None else int(exact))


def _is_rgb(codec: video.Codec) -> bool:
    return codec.name == "npy" or codec.pixels in video.EIGHT_BIT_RGB


def _refusal(codecs: Sequence[video.Codec]) -> str | None:
    formats = ["yuv420p" if _is_rgb(codec) else codec.pixels for codec in codecs]
    unknown = [name or "an unknown format" for name in formats if name not in _HALVED]
    if unknown:
        return f"needs planes of 8 bits ({', '.join(_HALVED)}), and a file has {unknown[0]}"
    if len(set(formats)) > 1:
        return f"the files have planes of {' and '.join(formats)}, which are not compared"
    return None


def _planes(path: Path, codec: video.Codec, program: str) -> Iterator[Planes]:
    """The planes of each frame."""
    if _is_rgb(codec):
        frames = itertools.chain.from_iterable(video.stream_video(path))
        return (yuv.to_planes(frame) for frame in frames)
    return _own_planes(path, codec, program)


def _own_planes(path: Path, codec: video.Codec, program: str) -> Iterator[Planes]:
    height, width = next(video.stream_video(path, chunk=1)).shape[1:3]
    rows, columns = _HALVED[codec.pixels]
    small = -(-height // rows), -(-width // columns)
    shapes = ((height, width), small, small)
    sizes = [a * b for a, b in shapes]
    command = [program, "-nostdin", "-loglevel", "error", "-i", f"file:{path}", "-map", "0:v:0"]
    command += ["-fps_mode", "passthrough", "-f", "rawvideo", "pipe:1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as run:
        assert run.stdout is not None
        while len(content := run.stdout.read(sum(sizes))) == sum(sizes):
            flat = np.split(np.frombuffer(content, np.uint8), np.cumsum(sizes)[:-1])
            yield tuple(part.reshape(shape) for part, shape in zip(flat, shapes, strict=True))
        run.kill()  # if the reader stopped early
