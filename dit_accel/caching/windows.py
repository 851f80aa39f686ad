"""Error-aware dynamic cache windows (EDCW): at which steps a site is computed, and at which cached.

Goes in: step numbers and measured drifts. Comes out: whether a step is computed. A computed step
opens a window of `length` steps: itself, and `length - 1` cached ones. When the window ends, the
drift is measured. If it is below the threshold, the next window may be longer; otherwise it is one
step long. All branches share a window. It knows numbers, no tensors and no models. Source: UniCP
(arXiv 2502.04393, EDCW). Its rule is not public in detail; this is our reading
(docs/how-it-works.md, section 8).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dit_accel.core.checks import check_types, is_integer, require

DEFAULT_THRESHOLD = 0.2


@dataclass(frozen=True)
class EDCW:
    """Settings of the windows.

    Args:
        threshold: δ, the drift that a window may reach, >= 0. 0 computes every step.
        max_window: longest window in steps, >= 1.
        first: number of steps at the start that are always computed, >= 1.
        last: number of steps at the end that are always computed, >= 0.
        growth: how windows grow: "step" by one step, "rate" to the length that the measured drift
            per step allows, at most double.
        order: the polynomial that is used in a window: 0 the cached value, 1 the line through the
            last two values, 2 the parabola through the last three.

    Raises:
        ValueError: a value is out of range.
    """

    threshold: float = DEFAULT_THRESHOLD
    max_window: int = 8
    first: int = 4
    last: int = 1
    growth: str = "rate"
    order: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        require(0 <= self.threshold < math.inf, "threshold", self.threshold, "a finite number >= 0")
        for name, least in (("max_window", 1), ("first", 1), ("last", 0)):
            value = getattr(self, name)
            require(is_integer(value, least), name, value, f"an integer >= {least}")
        require(self.order in (0, 1, 2), "order", self.order, "0, 1, 2")
        require(self.growth in ("step", "rate"), "growth", self.growth, "'step', 'rate'")


def next_length(length: int, gap: int, drift: float, config: EDCW) -> int:
    """Length of the window that opens now, from the one that has just ended.

    Args:
        length: length of the ended window in steps, >= 1.
        gap: steps between the cached value and the fresh one, >= 1; less than `length` if the
            window was cut short.
        drift: relative error between them; NaN and infinity count as too large.
        config: threshold, longest window and rule of growth.

    Returns:
        The length in steps, from 1 (compute again at the next step) to `config.max_window`.
    """
    if not drift < config.threshold:
        return 1
    if config.growth == "step":
        return min(length + 1, config.max_window)
    affordable = config.threshold * gap / drift if drift > 0 else math.inf
    return int(min(affordable, 2 * length, config.max_window))


class Windows:
    """The window of one site over one run.

    >>> windows = Windows(EDCW(threshold=0.1, first=1, growth="step"), num_steps=10)
    >>> windows.computes(0)
    True
    >>> windows.observe(0, None)  # nothing was cached: the window is one step
    >>> windows.computes(1)
    True
    >>> windows.observe(1, 0.02)  # under the threshold: grows to two
    >>> windows.computes(2), windows.computes(3)
    (False, True)
    """

    def __init__(self, config: EDCW, num_steps: int | None) -> None:
        """If the number of steps is None (not known), `config.last` has no effect."""
        self.config, self.num_steps = config, num_steps
        self.length, self.opened = 1, -1

    def computes(self, step: int) -> bool:
        """Whether the site is computed at `step`; False: it is cached."""
        at_end = self.num_steps is not None and step >= self.num_steps - self.config.last
        if step < self.config.first or at_end or self.opened < 0:
            return True
        return step >= self.opened + self.length

    def observe(self, step: int, drift: float | None) -> None:
        """The site was computed at `step`; `drift` is that of the cached value, None if there was
        no cached value."""
        if drift is None or self.opened < 0:
            self.length = 1
        else:
            self.length = next_length(self.length, step - self.opened, drift, self.config)
        self.opened = step
