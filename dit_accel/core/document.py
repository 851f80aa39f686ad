"""Read JSON that others may have written, and check it field by field.

A file comes in; `Field`s go out, each with its place in the file. For a value that is not accepted,
a `DocumentError` names the file, the field, the value and what is accepted. Whatever the bytes are,
no other error is raised. The module knows no field of any file. Source: ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LARGEST_BYTES = 1 << 28  # of a file
_DEEPEST = 64  # levels of nesting
_LONGEST_TEXT = 1 << 20
_SHOWN = 80


class DocumentError(ValueError):
    """A file that is not JSON, or a field whose value is not accepted."""


@dataclass(frozen=True)
class Field:
    """A value in a document, and its place there: `clip.steps`, `prompts[3].id`; "" at the top.

    Example:
        >>> Field({"steps": "8"}).at("steps").whole(1)
        Traceback (most recent call last):
        dit_accel.core.document.DocumentError: steps is '8'; accepted: a whole number, at least 1
    """

    value: Any
    place: str = ""

    def error(self, accepted: str) -> DocumentError:
        """The error to raise for this value."""
        return DocumentError(f"{self.place or 'it'} is {shown(self.value)}; accepted: {accepted}")

    def fields(self) -> dict[str, Field]:
        """The fields of an object, by name."""
        if not isinstance(self.value, dict):
            raise self.error("an object")
        return {name: self._inside(name, value) for name, value in self.value.items()}

    def at(self, name: str) -> Field:
        """A field of an object, which must be there."""
        found = self.fields()
        if name not in found:
            raise DocumentError(f"{self._inside(name, None).place} is missing")
        return found[name]

    def find(self, name: str) -> Field | None:
        """A field of an object; None if it is missing or null."""
        found = self.fields().get(name)
        return None if found is None or found.value is None else found

    def only(self, names: Collection[str]) -> Field:
        """This object; an error if it has a field with another name."""
        for name in self.fields():
            if name not in names:
                accepted = ", ".join(names)
                raise DocumentError(f"{self.place or 'it'} has {shown(name)}; accepted: {accepted}")
        return self

    def entries(self, least: int = 0, most: int | None = None) -> list[Field]:
        """The entries of a list."""
        length = len(self.value) if isinstance(self.value, list) else -1
        if length < least or (most is not None and length > most):
            bounds = f", {_range(least, most)} entries" if least or most is not None else ""
            raise self.error(f"a list{bounds}")
        return [Field(value, f"{self.place}[{at}]") for at, value in enumerate(self.value)]

    def text(self, pattern: str | None = None, *, empty: bool = True) -> str:
        """A string that can be printed and written: without NUL and halves of surrogate pairs."""
        value = self.value
        if not isinstance(value, str) or len(value) > _LONGEST_TEXT or not (value or empty):
            raise self.error("a text" if empty else "a text that is not empty")
        if not is_printable(value):
            raise self.error("a text without NUL and halves of surrogate pairs")
        if pattern is not None and not re.fullmatch(pattern, value, re.ASCII):
            raise self.error(f"a text of the form {pattern}")
        return value

    def check_format(self, version: int) -> None:
        """Refuse an object whose `format` is not this version."""
        found = self.fields().get("format")
        if found is None or found.value != version or isinstance(found.value, bool):
            other = "none" if found is None else shown(found.value)
            raise DocumentError(
                f"is of format {other}, made by another version of dit-accel; accepted: {version}"
            )

    def one_of(self, accepted: Collection[str]) -> str:
        """One of the accepted strings."""
        if not isinstance(self.value, str) or self.value not in accepted:
            raise self.error(", ".join(accepted))
        return self.value

    def whole(self, low: int = -(2**63), high: int = 2**63 - 1) -> int:
        """An integer from `low` to `high`, both included."""
        value = self.value
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.error(f"a whole number{_bounds(low, high)}")
        return value

    def number(self, low: float = -1e300, high: float = 1e300) -> float:
        """A finite number from `low` to `high`, both included."""
        value = self.value
        valid = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not valid or not low <= value <= high:
            raise self.error(f"a finite number{_bounds(low, high)}")
        return float(value)

    def flag(self) -> bool:
        """A bool."""
        if not isinstance(self.value, bool):
            raise self.error("true, false")
        return self.value

    def _inside(self, name: str, value: Any) -> Field:
        simple = re.fullmatch(r"[\w./ -]{1,80}", name) is not None
        own = name if simple else shown(name)
        return Field(value, f"{self.place}.{own}" if self.place else own)


def read_document(path: Path) -> Field:
    """The content of a JSON file.

    Raises:
        DocumentError: it is not JSON that every reader accepts. The message names the file.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(_LARGEST_BYTES + 1)
    if len(content) > _LARGEST_BYTES:
        raise DocumentError(f"{path} is larger than {_LARGEST_BYTES} bytes")
    try:
        return Field(parse_json(content))
    except DocumentError as error:
        raise DocumentError(f"{path} {error}") from error


def parse_json(content: bytes | str) -> Any:
    """The value that a JSON text describes.

    Raises:
        DocumentError: it is not JSON, has NaN or Infinity, or is nested too deeply.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        found = json.loads(text, parse_constant=_refuse_constant)
        _check_depth(found, _DEEPEST)
    except DocumentError:
        raise
    except RecursionError as error:
        raise DocumentError(f"is nested deeper than {_DEEPEST}") from error
    except UnicodeDecodeError as error:
        raise DocumentError(f"is not UTF-8 at byte {error.start}") from error
    except ValueError as error:  # also for a number with thousands of digits
        raise DocumentError(f"is not JSON: {error}") from error
    return found


def is_printable(text: str) -> bool:
    """Whether a text can be printed, written and passed to a program.

    Example:
        >>> is_printable("a circle"), is_printable("a\\x00"), is_printable("a\\ud800")
        (True, False, False)
    """
    return "\0" not in text and not any("\ud800" <= sign <= "\udfff" for sign in text)


def visible(text: str) -> str:
    """The text, with the signs that begin a terminal's commands spelled out. A prompt of a file
    that others made may have them.

    Example:
        >>> print(visible("a \\x1b[31mred circle"))
        a \\x1b[31mred circle
    """
    return re.sub("[\x1b\x9b]", lambda found: ascii(found[0])[1:-1], text)


def shown(value: Any) -> str:
    """A value for a message: in ASCII, on one line, shortened."""
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)} entries"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**40:
        return "a whole number of over 40 digits"
    text = ascii(value[: _SHOWN + 1] if isinstance(value, str) else value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _check_depth(value: Any, levels: int) -> None:
    if not isinstance(value, (dict, list)):
        return
    if not levels:
        raise DocumentError(f"is nested deeper than {_DEEPEST}")
    for part in value.values() if isinstance(value, dict) else value:
        _check_depth(part, levels - 1)


def _refuse_constant(name: str) -> Any:
    raise DocumentError(f"has {name}, which is not JSON")


def _bounds(low: float, high: float) -> str:
    """The bounds of a number in words, without bounds that only say that it is finite."""
    named = (low if abs(low) < 1e18 else None), (high if abs(high) < 1e18 else None)
    return "" if named == (None, None) else f", {_range(*named)}"


def _range(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return f"at least {low:g}" if high is None else f"at most {high:g}"
    return f"{low:g} to {high:g}"


__all__ = [
    "DocumentError",
    "Field",
    "is_printable",
    "parse_json",
    "read_document",
    "shown",
    "visible",
]
