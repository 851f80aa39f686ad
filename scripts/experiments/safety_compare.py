"""Compares two records of the safety net, made before and after a change of the code.

Goes in: two records and a map from old names to new ones. Comes out: a `Difference`. It knows JSON,
and no name of the package except that of the hashes. Lists of whole numbers are decisions, texts
with blanks are for people, and everything else is a value that must be equal. Ours; there is no
source.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Keys = tuple[str, ...]
Leaf = Any
Renames = Mapping[str, str | None]

FRAMES = "sha256"
_IDENTIFIER = re.compile(r"[\w.:/<>+-]*")
_INDEX = re.compile(r"\d+")
_EXAMPLES = 3


@dataclass
class Difference:
    """The differences. Every list has one line of text for each place.

    Args:
        cases: cases that only one record has.
        gone, new: keys that only the first or only the second record has.
        frames, decisions, values: places whose content differs.
        texts: messages for people that differ; this is not a fault.
    """

    cases: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    frames: list[str] = field(default_factory=list)
    decisions: list[str] = field(default_factory=list)
    values: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    @property
    def faults(self) -> int:
        """Places that break the contract; new keys and texts do not."""
        parts = self.cases, self.gone, self.frames, self.decisions, self.values
        return sum(map(len, parts))


def compare(before: Any, after: Any, renames: Renames) -> Difference:
    """Compare two records.

    Args:
        before, after: the cases of a record, by name.
        renames: from old key to new key, or to None if it was deleted. A key is a name, which
            applies everywhere, or the end of a path of names with dots between, which has priority.

    Example:
        >>> found = compare({"a": {"old": 1}}, {"a": {"new": 1}}, {"old": "new"})
        >>> found.faults
        0
    """
    found = Difference()
    for name in dict.fromkeys((*before, *after)):
        if renames.get(name, name) is None:
            continue
        if name not in before or name not in after:
            side = "first" if name in before else "second"
            found.cases.append(f"{name}: only in the {side} record")
            continue
        old = dict(leaves(before[name], renames, (name,)))
        new = dict(leaves(after[name], _deletions(renames), (name,)))
        _compare_case(old, new, found)
    return found


def leaves(value: Any, renames: Renames, path: Keys = ()) -> Iterator[tuple[Keys, Leaf]]:
    """Every value without inner values, by its path with new names. Plain lists count as one
    value."""
    if isinstance(value, dict) and value:
        for key, one in value.items():
            renamed = _renamed((*path, key), renames)
            if renamed is not None:
                yield from leaves(one, renames, (*path, renamed))
    elif isinstance(value, list) and any(isinstance(one, (dict, list)) for one in value):
        for index, one in enumerate(value):
            yield from leaves(one, renames, (*path, str(index)))
    else:
        yield path, _renamed_value(value, renames)


def lines(found: Difference, limit: int) -> Iterator[str]:
    """The difference as text; similar lines of many cases are one."""
    for title, places in vars(found).items():
        yield f"{title}: {len(places)}"
        groups: dict[str, list[str]] = defaultdict(list)
        for place in places:
            groups[_kind(title, place)].append(place)
        largest = sorted(groups.items(), key=lambda group: -len(group[1]))
        for kind, group in largest[:limit]:
            yield f"  {len(group)} x {kind}"
            yield from (f"      {place}" for place in group[:_EXAMPLES])
        if len(largest) > limit:
            yield f"  and {len(largest) - limit} more kinds"


def _kind(title: str, place: str) -> str:
    """What similar lines have in common: a key and the one above it, a change of text, or a
    place."""
    where, _, what = place.partition(": ")
    if title == "texts":
        return what
    if title in ("gone", "new"):
        return _INDEX.sub("#", ".".join(where.split(".")[-2:]))
    return _INDEX.sub("#", where.partition("/")[2])


def _compare_case(old: dict[Keys, Leaf], new: dict[Keys, Leaf], found: Difference) -> None:
    for path in dict.fromkeys((*old, *new)):
        place = ".".join(path)
        if path not in new:
            found.gone.append(f"{place}: {_short(old[path])}")
        elif path not in old:
            found.new.append(f"{place}: {_short(new[path])}")
        elif old[path] != new[path]:
            line = f"{place}: {_short(old[path])} -> {_short(new[path])}"
            _list_of(path, old[path], new[path], found).append(line)


def _list_of(path: Keys, old: Leaf, new: Leaf, found: Difference) -> list[str]:
    if path[-1].endswith(FRAMES):
        return found.frames
    if _are_texts(old) and _are_texts(new):
        return found.texts
    both = (old, new)
    whole = all(isinstance(one, list) and all(type(x) is int for x in one) for one in both)
    return found.decisions if whole else found.values


def _are_texts(value: Leaf) -> bool:
    """Whether a value is for people: a text that is not an identifier, or a list of texts."""
    if isinstance(value, list):
        return all(one is not None and _are_texts(one) for one in value)
    return value is None or (isinstance(value, str) and not _IDENTIFIER.fullmatch(value))


def _renamed(path: Keys, renames: Renames) -> str | None:
    """The new name of a path's last key: by the longest end of the path that has one."""
    for start in range(len(path)):
        ending = ".".join(path[start:])
        if ending in renames:
            return renames[ending]
    return path[-1]


def _renamed_value(value: Leaf, renames: Renames) -> Leaf:
    """A name that is a value, or one of a list, is renamed as a key is; it cannot be deleted."""
    if isinstance(value, list):
        return [_renamed_value(one, renames) for one in value]
    return (renames.get(value) or value) if isinstance(value, str) else value


def _deletions(renames: Renames) -> Renames:
    return {name: None for name, new in renames.items() if new is None}


def _short(value: Leaf) -> str:
    words = repr(value)
    return words if len(words) <= 100 else f"{words[:97]}..."
