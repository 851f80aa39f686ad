"""Mutated layout files: only a valid layout or a `LayoutError`, soon, and no path outside.

Seeded: a number names its file, so that a failure is found again. Bytes are changed in YAML and
JSON alike; and values, keys and entries in the documents, where every fault a writer may make is
nearer. What a mutant that is accepted names must lie in its folder.
"""

from __future__ import annotations

import copy
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mutants import change_bytes, change_document

from dit_accel.layout import Layout, LayoutError, load, parse

EXAMPLES = sorted((Path(__file__).parents[2] / "assets" / "layouts").glob("*.yaml"))
SECONDS = 5.0  # a mutant takes about a millisecond; a machine under load some more
BLOCK = 2_500  # mutants of one test

VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**63, 10**60, 0.5, 1e-300, 1e300),
    *(math.nan, math.inf, -math.inf, "", " ", "a", "no", "first", "hero", "x" * 20_000),
    *("\x00", "\ud800", "\u202e", "é", "${HOME}", "loop.png", "hero.png", "mask.npy"),
    *("../secret.png", "secret.png", "link.png", "folder/../../secret.png", "/etc/hostname.png"),
    *("./hero.png", "//hero.png", "~/hero.png", "x" * 300 + ".png", "file:///etc/x.png"),
    *("C:\\x.png", "\\\\host\\x.png", "link/secret.png", ".png", "folder.png"),
    *([], {}, [[]], [0, 0, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0], [0.1] * 5, {"at": 0}),
    *({"shot": "first"}, {"shot": "together"}),
    *({"file": "link.png"}, {"file": "../secret.png"}, {"file": "hero.png"}),
]
KEYS = (
    *("version", "shots", "subjects", "id", "prompt", "box", "keyframes", "at", "mask", "z"),
    *("reference", "shot", "subject", "file", "negative_prompt", "__class__", "<<", "", "&a", "*a"),
)
SNIPPETS = (
    *(b"&a ", b"*a", b"!!python/object/apply:os.system [x]", b"!!binary ", b"<<: ", b"---\n"),
    *(b"...\n", b"%YAML 9.9\n", b"[", b"]", b"{", b"}", b": ", b"- ", b"? ", b"| \n", b"> \n"),
    *(b'"', b"'", b"#", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\t", b"\r", b"\xe2\x80\xa8"),
    *(b"\\u0000", b"\\xZZ", b"NaN", b".inf", b"1e999", b"0x10", b"1:30", b"9" * 5000, b"-0"),
    *(b"[" * 200, b"- " * 200),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layout's folder with files, links out of it and links in a circle; a secret beside it."""
    top = tmp_path_factory.mktemp("fuzz")
    inside = top / "inside"
    (inside / "folder").mkdir(parents=True)
    (inside / "folder.png").mkdir()
    (top / "secret.png").write_bytes(b"")
    (inside / "hero.png").write_bytes(b"")
    np.save(inside / "mask.npy", np.zeros((17, 8, 8, 3), np.uint8))
    (inside / "link.png").symlink_to(top / "secret.png")
    (inside / "link").symlink_to(top)
    (inside / "loop.png").symlink_to(inside / "loop.png")
    return inside


def documents() -> list[Any]:
    found = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in EXAMPLES]
    two = next(one for one in found if len(one["shots"][0]["subjects"]) > 1)
    with_files = copy.deepcopy(two)
    subjects = with_files["shots"][0]["subjects"]
    subjects[0]["reference"] = {"file": "hero.png", "box": [0, 0, 1, 1]}
    for places in ("keyframes", "box"):
        subjects[1].pop(places, None)
    subjects[1]["mask"] = "mask.npy"
    return [*found, with_files]


def written(document: Any, rng: random.Random) -> tuple[bytes, bool]:
    """A document as JSON or YAML."""
    if rng.random() < 0.6:
        return json.dumps(document).encode("utf-8", "surrogatepass"), True
    text = yaml.safe_dump(document, allow_unicode=rng.random() < 0.5)
    return text.encode("utf-8", "surrogatepass"), False


def mutant(number: int) -> tuple[bytes, bool]:
    rng = random.Random(number)
    document = copy.deepcopy(rng.choice(documents_once()))
    if number % 2:
        return written(change_document(document, rng, values=VALUES, keys=KEYS), rng)
    content, json_only = written(document, rng)
    return change_bytes(content, rng, snippets=SNIPPETS), json_only


_DOCUMENTS: list[Any] = []


def documents_once() -> list[Any]:
    if not _DOCUMENTS:
        _DOCUMENTS.extend(documents())
    return _DOCUMENTS


def check(number: int, folder: Path) -> Layout | None:
    content, json_only = mutant(number)
    start = time.perf_counter()
    try:
        layout = parse(content, folder, json_only=json_only)
    except LayoutError as error:
        layout = None
        said = str(error)
        assert said and len(said) < 600, f"mutant {number}: {said!r}"
        said.encode("utf-8")  # it can be printed
    except Exception as error:
        raise AssertionError(f"mutant {number}: {type(error).__name__}: {error}") from error
    assert time.perf_counter() - start < SECONDS, f"mutant {number} hangs"
    for path in files_of(layout):
        inside = path == path.resolve() and path.is_relative_to(folder.resolve())
        assert inside and path.is_file(), f"mutant {number} names {path}"
    return layout


def files_of(layout: Layout | None) -> Iterator[Path]:
    for shot in layout.shots if layout else ():
        for subject in shot.subjects:
            reference = subject.reference
            found = (subject.mask, reference and reference.file, reference and reference.mask)
            yield from (path for path in found if path is not None)


def blocks() -> list[Any]:
    later = range(BLOCK, 5 * BLOCK, BLOCK)
    return [0, *(pytest.param(first, marks=pytest.mark.slow) for first in later)]


@pytest.mark.parametrize("first", blocks())
def test_mutants_are_layouts_or_clean_errors(first, folder):
    layouts = [check(number, folder) for number in range(first, first + BLOCK)]
    accepted = [layout for layout in layouts if layout is not None]
    # Neither all refused, which would test one line, nor all accepted.
    assert 0.03 * BLOCK < len(accepted) < 0.6 * BLOCK
    assert any(list(files_of(layout)) for layout in accepted)


def test_without_libyaml_it_is_the_same(folder, monkeypatch):
    numbers = [number for number in range(600) if not mutant(number)[1]]
    quick = [check(number, folder) for number in numbers]
    monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    slow = [check(number, folder) for number in numbers]
    # The two parsers differ on some broken files, on which is not ours to say.
    agree = sum(a == b for a, b in zip(quick, slow, strict=True))
    assert agree >= 0.97 * len(numbers) and len(numbers) > 150


def test_a_mutant_in_a_file_is_read_as_it_is(folder):
    for number in range(100):
        content, json_only = mutant(number)
        path = folder / ("mutant.json" if json_only else "mutant.yaml")
        path.write_bytes(content)
        try:
            read = load(path)
        except LayoutError:
            read = None
        assert read == check(number, folder)


@pytest.mark.parametrize(
    "content",
    [b"[" * 500_000, b"{a: " * 120_000, b"- " * 250_000, b"? " * 250_000, b"a: &a [*a]\n" * 40_000,
     b"!" * 500_000, b"'" * 500_000, b"# " * 250_000, b"x" * 500_000, b"[1, " * 100_000 + b"1",
     b"k: [" + b"1, " * 150_000 + b"]", b"\n" * 500_000, b"%" * 500_000, b"a\n" * 250_000,
     b"".join(b"k%d: 1\n" % i for i in range(40_000)), b'"' + b"\\" * 499_999],
)  # fmt: skip
@pytest.mark.parametrize("json_only", [True, False])
def test_large_files_are_refused_soon(content, json_only, folder):
    start = time.perf_counter()
    with pytest.raises(LayoutError):
        parse(content, folder, json_only=json_only)
    assert time.perf_counter() - start < SECONDS
