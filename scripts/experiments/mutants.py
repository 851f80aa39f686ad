"""Makes mutated documents and files for fuzzing. They are seeded, so a number identifies a mutant.

In: a document, bytes or a file of tensors, and a random generator. Out: the same with a few
changes: values of other types and ranges; keys and entries that are missing, doubled or in another
place; bytes that are flipped, cut, doubled or inserted; tensors with other names, types or values.
Knows nothing of what it changes. Ours.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import random
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 2**31, 2**63, -(2**63) - 1, 10**60, 0.5, -0.0, 1e-300, 1e300),
    *(math.nan, math.inf, -math.inf, "", " ", "a", "0", "36", "inf", "-inf", "x" * 20_000),
    *("\x00", "\ud800", "\u2028", "é", "../../x", "/etc/passwd", "[/red]", "{}", "%s", "\x1b[31m"),
    *([], {}, [[]], [0], ["a"], [None], [0, 0], [1, 0], {"a": 0}, {"": None}),
]
KEYS = ("", "id", "format", "value", "x")
SNIPPETS = (
    *(b"[", b"]", b"{", b"}", b":", b",", b'"', b"null", b"true", b"NaN", b"Infinity", b"1e999"),
    *(b"-", b"9" * 5000, b"\\u0000", b"\\ud800", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\r"),
    *(b"\xe2\x80\xa8", b"[" * 3000, b'{"a":' * 3000),
)
WILD = (math.nan, math.inf, -math.inf, 0.0, -1.0, 1e-30, 1e9, 1e30, -1e300)  # of a tensor
LARGEST_DOCUMENT = 2_000_000  # characters; a larger one is not changed further


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a document."""
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in list(parts):
        yield value, key
        if isinstance(part, (dict, list)):
            yield from places(part)


def change_document(
    document: Any, rng: random.Random, *, values: Sequence[Any] = VALUES,
    keys: Sequence[str] = KEYS,
) -> Any:  # fmt: skip
    """A document with one to three changes, in place."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        found = list(places(document))
        if not found or len(str(document)) > LARGEST_DOCUMENT:
            break
        holder, key = rng.choice(found)
        kind = rng.randrange(7)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[rng.choice(keys)] = copy.deepcopy(rng.choice(values))
        elif kind == 2:
            other, place = rng.choice(found)
            holder[key] = copy.deepcopy(other[place])  # a part of the document in another place
        elif kind == 3 and isinstance(holder, list):
            holder.extend(copy.deepcopy(holder) * rng.choice((1, 20)))
        elif kind == 4 and isinstance(holder[key], (int, float)):
            holder[key] = holder[key] * rng.choice((-1, 2, 1e-9, 1e9)) + rng.choice((0, 0.5, -1))
        elif kind == 5 and isinstance(holder, dict):
            holder[f"{key}x"] = holder.pop(key)
        else:
            holder[key] = copy.deepcopy(rng.choice(values))
    return document


def change_bytes(
    content: bytes, rng: random.Random, *, snippets: Sequence[bytes] = SNIPPETS
) -> bytes:
    """Bytes with some of them changed."""
    mutant = bytearray(content)
    for _ in range(rng.choice((1, 2, 4, 16))):
        at = rng.randrange(len(mutant) + 1)
        kind = rng.randrange(7)
        if kind == 0 and at < len(mutant):
            mutant[at] = rng.randrange(256)
        elif kind == 1:
            del mutant[at : at + rng.choice((1, 3, 40))]
        elif kind == 2:
            mutant[at:at] = rng.choice(snippets)
        elif kind == 3:
            first = rng.randrange(len(mutant) + 1)
            mutant[at:at] = mutant[first : first + rng.randrange(80)]
        elif kind == 4:
            size = rng.choice((1, 8, 64, 512))
            mutant[at : at + size] = bytes(len(mutant[at : at + size]))
        elif kind == 5:
            del mutant[at:]
        else:
            mutant[at:] = rng.choice(snippets)
    return bytes(mutant)


def json_mutant(document: Any, rng: random.Random) -> bytes:
    """The bytes of a JSON file: a changed document, or a document with changed bytes."""
    if rng.random() < 0.7:
        document = change_document(copy.deepcopy(document), rng)
        return json.dumps(document).encode("utf-8", "surrogatepass")
    return change_bytes(json.dumps(document).encode("utf-8", "surrogatepass"), rng)


def tensor_file(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header and the data of a safetensors file."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def written(head: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(head)) + head + data


def tensor_mutant(
    head: dict[str, Any], data: bytes, rng: random.Random, *, fixed: tuple[str, ...] = ()
) -> bytes:
    """One of: the header's JSON, the tensors' names and types, their values, or bytes.

    `fixed`: beginnings of names of tensors that nothing reads.
    """
    head = json.loads(json.dumps(head))
    kind = rng.randrange(4)
    if kind == 0:
        own = json.loads(head["__metadata__"]["profile"])
        text = json_mutant(own, rng).decode("utf-8", "replace")
        head["__metadata__"]["profile"] = text
        return written(json.dumps(head).encode(), data)
    if kind == 1:
        return written(json_mutant(head, rng), data)
    if kind == 3:
        return change_bytes(written(json.dumps(head).encode(), data), rng)
    name = rng.choice([name for name in head if not name.startswith((*fixed, "__"))])
    begin, end = head[name]["data_offsets"]
    form, width = ("<d", 8) if head[name]["dtype"] == "F64" else ("<f", 4)
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 5))):
        at = begin + width * rng.randrange((end - begin) // width)
        value = rng.choice(WILD)
        with contextlib.suppress(OverflowError):
            changed[at : at + width] = struct.pack(form, value)
    return written(json.dumps(head).encode(), bytes(changed))
