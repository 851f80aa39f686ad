"""Validate an argument, with one wording of the error everywhere.

A condition, the argument's name and value, and what is accepted come in; a ValueError goes out
where the condition is false. It knows no argument of its own. Source: ours.
"""

from __future__ import annotations


def require(valid: bool, name: str, value: object, accepted: object) -> None:
    """Raise a ValueError unless `valid`.

    Example:
        >>> require(2 < 1, "rank", 2, "below 1")
        Traceback (most recent call last):
        ValueError: rank is 2; accepted: below 1
    """
    if not valid:
        raise ValueError(f"{name} is {value!r}; accepted: {accepted}")


def is_integer(value: object, least: int) -> bool:
    """Whether a value is an integer, no bool, and at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
