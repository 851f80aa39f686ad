"""Computes VMAF of a clip against its reference, with an ffmpeg that has libvmaf; optional.

In: two clips `(T, H, W, C)`. Out: the mean over frames of Netflix's `vmaf_v0.6.1`, on 4:2:0.
Knows: both clips are written as raw frames to a temporary folder, so little memory is needed. It
uses the first ffmpeg on the PATH that lists libvmaf, else the one in the package `imageio-ffmpeg`.
VMAF was trained on errors of codecs. Below about 17 dB of PSNR it is near 0, and it is meaningless
for clips with other content.
Source: https://github.com/Netflix/vmaf.
"""

from __future__ import annotations

import functools
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from dit_accel.metrics.accumulate import check_follows
from dit_accel.metrics.clips import Clip, Scores, Unavailable, check_pair, to_levels
from dit_accel.metrics.ffmpeg import executables

SMALLEST_VMAF = 16
_SECONDS = 30.0  # time limit for listing the filters


def vmaf(reference: Clip, test: Clip, *, data_range: float) -> float:
    """VMAF of a clip: the mean over frames.

    Args:
        reference: `(T, H, W, C)`, uint8 or float in [0, data_range]; H and W even, at least 16.
        test: same shape and kind of dtype.
        data_range: largest possible value; 255 for uint8.

    Returns:
        In [0, 100]. Exact clips score somewhat below 100.

    Raises:
        ValueError: if the clips cannot be compared; see `clips.check_pair`.
        Unavailable: if there is no ffmpeg with libvmaf, or it fails.
    """
    spool = VmafSpool(data_range)
    spool.update(reference, test)
    return spool.compute()


class VmafSpool:
    """Writes both clips to disk. ffmpeg scores them at the end."""

    def __init__(self, data_range: float) -> None:
        self._ffmpeg = find_ffmpeg()
        self._data_range = data_range
        self._folder = tempfile.TemporaryDirectory(prefix="dit-accel-vmaf-")
        self._first: Clip | None = None
        self._scores: Scores | None = None

    def update(self, reference: Clip, test: Clip) -> None:
        """Take the next frames. Arguments and errors: see `vmaf`."""
        check_pair(reference, test, data_range=self._data_range, smallest=SMALLEST_VMAF)
        height, width = reference.shape[1:3]
        if height % 2 or width % 2:
            raise ValueError(f"reference has frames of {height}x{width}: VMAF needs even sizes")
        if self._first is None:
            self._first = reference[:1].copy()
        check_follows(self._first, reference)
        for name, clip in (("reference", reference), ("test", test)):
            levels = to_levels(name, clip, self._data_range)
            rgb = np.repeat(levels, 3, axis=3) if levels.shape[3] == 1 else levels
            with Path(self._folder.name, f"{name}.rgb").open("ab") as file:
                file.write(np.ascontiguousarray(rgb).tobytes())
        self._scores = None

    def frames(self) -> Scores | None:
        """The scores of the frames; None before `compute`."""
        return self._scores

    def compute(self) -> float:
        """The score of all frames so far.

        Raises:
            Unavailable: ffmpeg fails; the message has the last line of its output.
        """
        if self._first is None:
            raise Unavailable("needs at least 1 frame, and has 0")
        self._scores = _run(self._ffmpeg, Path(self._folder.name), self._first.shape[1:3])
        return float(self._scores.mean())


@functools.cache
def find_ffmpeg() -> str:
    """The path of an ffmpeg with libvmaf.

    Raises:
        Unavailable: there is none; the message says where it was expected.
    """
    for path in executables():
        if _has_libvmaf(path):
            return path
    raise Unavailable(
        "no ffmpeg with libvmaf: neither on the PATH nor in imageio-ffmpeg "
        "(pip install imageio-ffmpeg)"
    )


def _has_libvmaf(ffmpeg: str) -> bool:
    try:
        listed = subprocess.run(
            [ffmpeg, "-hide_banner", "-filters"],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return " libvmaf " in listed.stdout


def _run(ffmpeg: str, folder: Path, size: tuple[int, ...]) -> Scores:
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{size[1]}x{size[0]}", "-r", "25"]
    filters = (
        "[0:v]format=yuv420p[test];[1:v]format=yuv420p[reference];"
        "[test][reference]libvmaf=log_fmt=json:log_path=log.json:n_threads=1"
    )
    command = [ffmpeg, "-nostdin", "-hide_banner", "-loglevel", "error"]
    command += [*raw, "-i", "test.rgb", *raw, "-i", "reference.rgb"]
    command += ["-lavfi", filters, "-f", "null", "-"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        raise Unavailable(f"{ffmpeg} failed: {last}")
    log = json.loads((folder / "log.json").read_text())
    return np.array([frame["metrics"]["vmaf"] for frame in log["frames"]], dtype=np.float64)
