"""Finds an ffmpeg, for metrics that only ffmpeg can compute.

In: nothing. Out: the path of ffmpeg.
Knows: the PATH, and the package imageio-ffmpeg. Source: ours.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator


def executables() -> Iterator[str]:
    """The paths of all ffmpegs on this machine: on the PATH, then in imageio-ffmpeg."""
    for path in (shutil.which("ffmpeg"), _packaged()):
        if path is not None:
            yield path


@functools.cache
def executable() -> str | None:
    """The first of `executables`, or None."""
    return next(executables(), None)


def _packaged() -> str | None:
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except Exception:  # not installed, or installed without a binary for this platform
        return None
