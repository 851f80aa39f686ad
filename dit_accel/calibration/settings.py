"""Checks the arguments of a calibration: clips that are alike, and numbers in range.

In: the arguments of `CalibrationRun`. Out: nothing, or an error that names the argument.
Knows numbers and clips; no pipeline. Source: ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from dit_accel.core.generation import ClipSpec


def check_settings(
    clips: Sequence[ClipSpec], speedups: Sequence[float], probes: int, probed: int, batch: int,
    minutes: float | None,
) -> None:  # fmt: skip
    """Refuse arguments that a calibration does not accept.

    Raises:
        ValueError: there are no clips, they differ in what must be equal, or a number is out of
            range.
    """
    alike = {(c.steps, c.guidance, c.height, c.width, c.frames) for c in clips}
    if len(alike) != 1:
        raise ValueError(
            f"clips have {len(alike)} kinds of steps, guidance and size; accepted: one kind"
        )
    if probes < 0 or probes == 1 or not 1 <= probed <= len(clips):
        raise ValueError(
            f"probes is {probes}, probed is {probed}; accepted: 0 or at least 2 probes, and 1 to "
            f"{len(clips)} probed clips"
        )
    if batch < 1:
        raise ValueError(f"batch is {batch}; accepted: 1 or more")
    if minutes is not None and not 0 < minutes < math.inf:
        raise ValueError(f"minutes is {minutes}; accepted: above 0, or None")
    wrong = [s for s in speedups if not 1 < s <= clips[0].steps]
    if wrong:
        raise ValueError(f"speedups has {wrong}; accepted: above 1, up to {clips[0].steps}")
