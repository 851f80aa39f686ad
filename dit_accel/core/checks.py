"""Validate arguments, with the same wording of errors everywhere.

A condition, the argument's name and value, and the accepted values come in. If the condition is
false, a ValueError is raised. The module knows no particular argument. Source: ours.
"""

from __future__ import annotations

import dataclasses
import numbers
import re
from typing import Any

UNITS = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
         "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}  # fmt: skip
_KINDS: dict[str, tuple[type, str]] = {  # by a field's annotation
    "float": (numbers.Real, "a number"),
    "int": (numbers.Integral, "an integer"),
    "bool": (bool, "True, False"),
    "str": (str, "a text"),
    "None": (type(None), "None"),
}


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
    """Whether a value is an integer (a bool is none) and at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_types(parts: Any) -> None:
    """Refuse values of a frozen dataclass that do not have their fields' types.

    Only fields for numbers, bools and strings are checked. A number of another package's type, such
    as numpy's, is replaced by a Python number. A bool is not accepted as a number.

    Raises:
        ValueError: a type is wrong. The message has the field, its value and the accepted types.
    """
    for one in dataclasses.fields(parts):
        names = [part.strip() for part in str(one.type).split("|")]
        if not set(names) <= _KINDS.keys():
            continue
        value = getattr(parts, one.name)
        accepted = ", or ".join(_KINDS[name][1] for name in names)
        require(any(_is_a(value, name) for name in names), one.name, value, accepted)
        if isinstance(value, numbers.Real) and not isinstance(value, (int, float)):
            own = int(value) if isinstance(value, numbers.Integral) else float(value)
            object.__setattr__(parts, one.name, own)


def _is_a(value: object, name: str) -> bool:
    if isinstance(value, bool) and name != "bool":
        return False
    if name == "float" and isinstance(value, int) and abs(value) >= 2**1023:
        return False  # no float is that large
    return isinstance(value, _KINDS[name][0])


def byte_count(value: int | str) -> int:
    """Bytes from a number, or from a text with a unit.

    Example:
        >>> byte_count("512 MiB"), byte_count("1.5gb"), byte_count(1000)
        (536870912, 1500000000, 1000)

    Raises:
        ValueError: the value is neither, or is below 1.
    """
    size: int | float = 0
    if isinstance(value, str):
        found = re.fullmatch(r"(\d{1,30}(?:\.\d{1,30})?)\s*([a-z]*)", value.strip().lower())
        size = float(found[1]) * UNITS.get(found[2], 0) if found is not None else 0
    elif isinstance(value, numbers.Integral) and not isinstance(value, bool):
        size = int(value)
    if not 1 <= size < 2**63:
        raise ValueError(f"{value!r}; accepted: bytes, 1 or more, or a text like '512MiB', '2GiB'")
    return int(size)
