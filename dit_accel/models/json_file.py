"""Reads the JSON files of a model's folder, which others have made.

In: a file. Out: its object; or a `ValueError` that names the file and the problem.
Knows no field.
Source: ours.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_LARGEST_BYTES = 1 << 26  # the index of a model's weights can have some megabytes


def read_object(source: Path) -> dict[str, Any]:
    """The object of a JSON file.

    Raises:
        ValueError: the file is not a JSON object, is nested too deeply or too large, or cannot be
            read.
    """
    try:
        with source.open("rb") as file:
            content = file.read(_LARGEST_BYTES + 1)
        if len(content) > _LARGEST_BYTES:
            raise ValueError(f"larger than {_LARGEST_BYTES} bytes")
        found = json.loads(content.decode("utf-8-sig"))
    except RecursionError as error:
        raise ValueError(f"{source} is nested too deeply") from error
    except OSError as error:
        raise ValueError(f"{source} cannot be read: {error.strerror}") from error
    except ValueError as error:  # wrong text, or a number with thousands of digits
        raise ValueError(f"{source} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{source} has a {type(found).__name__}; accepted: a JSON object")
    return found


def whole_number(source: Path, content: dict[str, Any], name: str, default: int | None) -> Any:
    """A field that is a whole number above 0, or absent or null.

    Raises:
        ValueError: it is something else; the message has file, field and value.
    """
    value = content.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise ValueError(f"{name} is {value!r:.80} in {source}; accepted: a whole number above 0")
    return value
