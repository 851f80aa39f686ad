"""Computes JOD: how visible the difference of two clips is to people, by ColorVideoVDP.

    jod = 10 - 0.044 D ** 0.93,  D the visible difference, pooled over scales, channels and time

In: two clips, frames per second, a display and a distance. Out: JOD; 10 if no difference is
visible. At 9, three of four people prefer the reference.
Knows the eye: contrast, colour, flicker and masking. Does not know which clip is better: a
different, equally good clip scores low. A clip begins as if its first frame had been visible
before.
Source: ColorVideoVDP, doi 10.1145/3658144; the package cvvdp 0.5.7 (MIT) gives the same number.
That package also scores single images, in another way, which is not here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from dit_accel.metrics.accumulate import check_follows
from dit_accel.metrics.clips import Clip, Scores, Unavailable, check_pair, to_levels
from dit_accel.metrics.viewing import DISPLAY, Viewing

if TYPE_CHECKING:
    import torch

FPS = 16.0
"""Frames a second of a clip that does not say it."""

FEWEST = 2
_PIXELS = 2**19  # pixels of the frames that are processed at once


def jod(
    reference: Clip,
    test: Clip,
    *,
    data_range: float,
    fps: float = FPS,
    display: str = DISPLAY,
    distance_m: float | None = None,
) -> float:
    """JOD of a clip.

    Args:
        reference: `(T, H, W, C)` RGB or grey, uint8 or float in [0, data_range]; T of at least 2,
            H and W of at least 8.
        test: same shape and kind of dtype.
        data_range: largest possible value; 255 for uint8.
        fps: frames per second at which the clip is shown.
        display: a name of `viewing.displays()`.
        distance_m: from the eye to the display, in metres; None: the display's own.

    Returns:
        At most 10, the value of exact clips; below 0 for very large differences.

    Raises:
        ValueError: if the clips cannot be compared, or an argument is not accepted.
        Unavailable: if there is one frame only.

    Example:
        >>> clip = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
        >>> jod(clip, clip, data_range=255)
        10.0
        >>> jod(clip, clip[::-1], data_range=255) < jod(clip, clip ^ 8, data_range=255) < 10
        True
    """
    running = start_jod(data_range, fps=fps, display=display, distance_m=distance_m)
    running.update(reference, test)
    return running.compute()


def start_jod(
    data_range: float,
    *,
    fps: float | None = None,
    display: str = DISPLAY,
    distance_m: float | None = None,
) -> JodSums:
    """An accumulator. Arguments and errors: see `jod`; if `fps` is None, it is `FPS`."""
    return JodSums(data_range, FPS if fps is None else fps, Viewing(display, distance_m))


class JodSums:
    """Accumulates JOD: the light of both clips' last frames, and the visible differences so far.

    Args:
        data_range: largest possible value; 255 for uint8.
        fps: frames per second.
        viewing: the display and the distance.

    Raises:
        ValueError: if `fps` is not finite and above 0.
    """

    def __init__(self, data_range: float, fps: float, viewing: Viewing) -> None:
        from dit_accel.metrics import vdp

        if not (math.isfinite(fps) and fps > 0):
            raise ValueError(f"fps is {fps}; accepted: a finite number above 0")
        self._data_range, self._viewing = data_range, viewing
        self._filters = vdp.filters(fps)
        self._before: torch.Tensor | None = None  # `(2, 3, N - 1, H, W)`, the test is first
        self._first: Clip | None = None
        self._differences: list[torch.Tensor] = []  # of each part, with one entry for each frame

    def update(self, reference: Clip, test: Clip) -> None:
        """Take the next frames. Arguments and errors: see `jod`."""
        from dit_accel.metrics import vdp

        smallest = vdp.SMALLEST_PYRAMID
        check_pair(reference, test, data_range=self._data_range, smallest=smallest)
        if self._first is None:
            self._first = reference[:1]
        check_follows(self._first, reference)
        at_once = max(1, _PIXELS // (reference.shape[1] * reference.shape[2]))
        for at in range(0, len(reference), at_once):
            part = slice(at, at + at_once)
            self._differences.append(self._of_part(reference[part], test[part]))

    def frames(self) -> Scores:
        """JOD of each frame so far, `(T,)`: that of a clip in which all frames differ like this
        one."""
        from dit_accel.metrics import vdp

        parts = [vdp.jods(part).double().numpy() for part in self._differences]
        return np.concatenate(parts) if parts else np.empty(0)

    def compute(self) -> float:
        """JOD of all frames so far.

        Raises:
            Unavailable: if there are fewer than two.
        """
        import torch

        from dit_accel.metrics import vdp

        count = sum(map(len, self._differences))
        if count < FEWEST:
            raise Unavailable(f"needs at least {FEWEST} frames, and has {count}")
        return float(vdp.jods(vdp.over_time(torch.cat(self._differences))))

    def _of_part(self, reference: Clip, test: Clip) -> torch.Tensor:
        """The visible difference of each frame, `(T,)`."""
        import torch

        from dit_accel.metrics import vdp

        with torch.no_grad():
            clips = {"test": test, "reference": reference}
            light = torch.stack([self._light(name, clip) for name, clip in clips.items()])
            reach = self._filters.shape[1] - 1
            if self._before is None:
                self._before = light[:, :, :1].expand(-1, -1, reach, -1, -1)
            light = torch.cat((self._before, light), dim=2)
            self._before = light[:, :, light.shape[2] - reach :].clone()
            found = vdp.differences(light, self._filters, self._viewing.pixels_per_degree)
            return vdp.pooled(found)

    def _light(self, name: str, clip: Clip) -> torch.Tensor:
        levels = to_levels(name, clip, self._data_range)
        rgb = np.repeat(levels, 3, axis=3) if levels.shape[3] == 1 else levels
        return self._viewing.light(rgb)
