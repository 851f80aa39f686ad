"""Means, ratios and paired differences with bootstrap intervals over prompts.

In: one value for each prompt, averaged over its seeds. Out: an `Interval`, and a verdict.
Knows: clips of one prompt are similar, and frames of one clip even more. Only prompts are
independent, so the bootstrap draws prompts.
Source: percentile bootstrap (Efron 1979), by scipy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

INTERVAL_LEVEL = 0.95
RESAMPLES = 10_000
EQUAL = 0.01  # FLOPs that differ by less than this share count as equal
Verdict = Literal["better", "worse", "undecided"]
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval; the ends are None with fewer than three prompts."""

    value: float
    low: float | None
    high: float | None
    n: int

    def text(self, digits: int) -> str:
        """`31.2 [30.1, 32.4]`."""
        value = f"{self.value:.{digits}f}"
        if self.low is None or self.high is None:
            return value
        return f"{value} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def mean(values: Sequence[float]) -> Interval:
    """Mean of finite values, one for each prompt; a ValueError if there are none."""
    return _bootstrap((values,), lambda a, axis=-1: a.mean(axis))


def ratio(over: Sequence[float], under: Sequence[float]) -> Interval:
    """Ratio of two sums over the same prompts, e.g. of seconds. Errors: see `difference`."""
    return _bootstrap((over, under), lambda a, b, axis=-1: a.sum(axis) / b.sum(axis))


def difference(values: Sequence[float], others: Sequence[float]) -> Interval:
    """Mean of `values - others`, prompt by prompt.

    Raises:
        ValueError: there are no values, or the numbers of values differ.
    """
    return _bootstrap((values, others), lambda a, b, axis=-1: (a - b).mean(axis))


def verdict(difference: Interval, direction: Literal["higher", "lower"]) -> Verdict:
    """Which side wins. A difference has a winner only if its interval does not contain 0."""
    if difference.low is None or difference.high is None:
        return "undecided"
    if difference.low <= 0 <= difference.high:
        return "undecided"
    return "better" if (difference.value > 0) == (direction == "higher") else "worse"


def interpolate(at: float, places: Sequence[float], values: Sequence[float]) -> float | None:
    """Value of a piecewise linear curve at a place; None if the place is outside by more than 1 %.

    The 1 % is needed because an extrapolated step costs a few FLOPs more than none.
    """
    order = np.argsort(places)
    x, y = np.asarray(places, float)[order], np.asarray(values, float)[order]
    if len(x) < 2 or not (1 - EQUAL) * x[0] <= at <= (1 + EQUAL) * x[-1]:
        return None
    return float(np.interp(at, x, y))


def _bootstrap(samples: tuple[Sequence[float], ...], statistic: Callable[..., Any]) -> Interval:
    from scipy.stats import bootstrap

    arrays = tuple(np.asarray(sample, np.float64) for sample in samples)
    count = len(arrays[0])
    if count == 0 or any(len(array) != count for array in arrays):
        lengths = ", ".join(str(len(array)) for array in arrays)
        raise ValueError(f"samples have {lengths} values; accepted: equal numbers, 1 or more")
    value = float(statistic(*arrays))
    if count < 3:
        return Interval(value, None, None, count)
    found = bootstrap(
        arrays,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=INTERVAL_LEVEL,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return Interval(value, float(found.low), float(found.high), count)


def finite(value: Any) -> Any:
    """The value for JSON: numbers that are not finite become None, at any depth."""
    if isinstance(value, dict):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
