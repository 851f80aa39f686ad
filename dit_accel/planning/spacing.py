"""Makes sets of steps: evenly spaced, by density, with the fixed steps, or of a given size.

In: numbers of steps, and steps that are fixed. Out: steps in rising order, 0 first.
Knows whole numbers; nothing of errors. Source: ours.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from itertools import accumulate


def evenly(num_steps: int, count: int) -> tuple[int, ...]:
    """`count` steps, 0 first, as evenly spaced as whole numbers allow."""
    return tuple(sorted({round(place * num_steps / count) for place in range(count)}))


def with_fixed(steps: Sequence[int], fixed: Sequence[int]) -> list[int]:
    """As many steps, with all of `fixed`: each missing one replaces the nearest other step."""
    found, needed = {*steps}, {*fixed}
    for missing in sorted(needed - found):
        found.remove(min(found - needed, key=lambda step: abs(step - missing)))
        found.add(missing)
    return sorted(found)


def of_count(steps: Sequence[int], num_steps: int, count: int) -> list[int]:
    """Exactly `count` steps, 0 first: the last are dropped, or the first missing ones are added."""
    first = sorted({*steps, 0})[:count]
    missing = (step for step in range(num_steps) if step not in first)
    return sorted(first + [next(missing) for _ in range(count - len(first))])


def as_dense(steps: Sequence[int], count: int) -> list[int]:
    """`count` steps, as dense along a run as the given ones; the last of these is the run's end.

    Example:
        >>> as_dense([0, 2, 4, 12], 6)
        [0, 1, 2, 3, 4, 8]
    """
    places = (place * (len(steps) - 1) / count for place in range(count))
    between = ((steps[int(place)], steps[int(place) + 1], place % 1) for place in places)
    return [int(low + (high - low) * share + 0.5) for low, high, share in between]


def by_density(density: Sequence[float], count: int) -> list[int]:
    """`count` steps, 0 first, with about equal sums of densities from each step to the next.

    Example:
        >>> by_density([4, 4, 2, 2, 1, 1, 1, 1], 4)
        [0, 1, 2, 4]
    """
    n, sums = len(density), [0.0, *accumulate(density)]
    found: list[int] = []
    for place in range(count):
        step = bisect.bisect_right(sums, place * sums[-1] / count) - 1
        least = found[-1] + 1 if found else 0
        found.append(min(max(step, least), n - count + place))
    return found
