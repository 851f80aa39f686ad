"""The error of a layout, and the checks of single fields: text, ids, counts, versions.

A field's name and value come in; a `LayoutError` that names the field, its value and what is
accepted goes out. It knows no file and no relation between fields. Source: ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

VERSION = 1
LONGEST_TEXT = 10_000
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_ID_ACCEPTED = "1 to 64 letters, digits, _ and -, a letter or digit first"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


class LayoutError(ValueError):
    """A layout that is not accepted.

    Args:
        field: e.g. `shots[0].id`; empty for the whole layout.
        problem: the value and what is accepted.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}" if field else problem)
        self.field, self.problem = field, problem

    def inside(self, prefix: str) -> LayoutError:
        """The same error of a field inside another field."""
        if not prefix:
            return self
        joint = "" if not self.field or self.field.startswith("[") else "."
        return LayoutError(f"{prefix}{joint}{self.field}", self.problem)


def not_accepted(field: str, value: object, accepted: str) -> LayoutError:
    """`FIELD is VALUE; accepted: ...`, with long values shortened."""
    return LayoutError(field, f"is {shown(value)}; accepted: {accepted}")


def check_text(field: str, value: object, least: int = 1) -> None:
    """Refuse a value that is not text, is blank or too long, or has control characters."""
    if not isinstance(value, str):
        raise not_accepted(field, value, "text")
    if len(value) > LONGEST_TEXT:
        raise LayoutError(field, f"has {len(value)} characters; accepted: up to {LONGEST_TEXT}")
    if len(value.strip()) < least:
        raise not_accepted(field, value, "text that is not blank")
    if _CONTROL.search(value):
        raise not_accepted(field, value, "text without control characters and lone surrogates")


def check_id(field: str, value: object) -> None:
    """Refuse a value that is not an id."""
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise not_accepted(field, value, _ID_ACCEPTED)


def check_count(field: str, count: int, least: int, most: int) -> None:
    """Refuse too few or too many entries."""
    if not least <= count <= most:
        raise LayoutError(field, f"has {count} entries; accepted: {least} to {most}")


def check_unique(field: str, ids: Sequence[str]) -> None:
    """Refuse an id that occurs twice."""
    for i, id in enumerate(ids):
        if id in ids[:i]:
            raise LayoutError(
                f"{field}[{i}].id",
                f"is {id!r}, like {field}[{ids.index(id)}].id; accepted: an id that no other has",
            )


def check_version(version: object) -> None:
    """Refuse an unknown version of the format."""
    if type(version) is not int or version != VERSION:
        raise not_accepted("version", version, str(VERSION))


def shown(value: object) -> str:
    """A value in a message: short, printable, and cheap to format however large it is."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return "a whole number of many digits"
    if isinstance(value, str):
        return ascii(value[:60]) if _CONTROL.search(value) else repr(value[:60])
    if isinstance(value, (list, tuple)):
        parts = [shown(part) for part in value[:4]] + (["..."] if len(value) > 4 else [])
        text = f"[{', '.join(parts)}]"
    elif isinstance(value, dict):
        text = f"a mapping of {len(value)} keys"
    elif value is None:
        text = "null"
    else:
        text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def is_share(value: object) -> bool:
    """Whether a value is a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return 0 <= value <= 1  # false for NaN
