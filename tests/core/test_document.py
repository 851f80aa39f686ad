"""Documents that others have made: the field, its value and what is accepted are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dit_accel.core.document import DocumentError, Field, is_printable, parse_json, read_document


def test_worked_example():
    """Each step into the document is a part of the place that an error names."""
    top = Field({"prompts": [{"id": "a"}, {"id": 3}]})
    entries = top.at("prompts").entries(1)
    assert entries[0].at("id").text() == "a"
    with pytest.raises(DocumentError) as error:
        entries[1].at("id").text()
    assert str(error.value) == "prompts[1].id is 3; accepted: a text"


@pytest.mark.parametrize(
    ("value", "read", "message"),
    [
        ({}, lambda f: f.at("a"), "a is missing"),
        ([], lambda f: f.at("a"), "it is a list of 0 entries; accepted: an object"),
        ({"a": 1}, lambda f: f.only(["b"]), "it has 'a'; accepted: b"),
        ({"a": []}, lambda f: f.at("a").entries(1), "a is a list of 0 entries; accepted: a list"),
        (True, lambda f: f.whole(), "it is True; accepted: a whole number"),
        (1.0, lambda f: f.whole(0, 5), "it is 1.0; accepted: a whole number, 0 to 5"),
        (6, lambda f: f.whole(0, 5), "it is 6; accepted: a whole number, 0 to 5"),
        (10**400, lambda f: f.number(), "it is a whole number of over 40 digits"),
        (float("nan"), lambda f: f.number(), "it is nan; accepted: a finite number"),
        (False, lambda f: f.number(0), "it is False; accepted: a finite number"),
        (1, lambda f: f.flag(), "it is 1; accepted: true, false"),
        ("a\0", lambda f: f.text(), "without NUL"),
        ("a\ud800", lambda f: f.text(), r"it is 'a\ud800'; accepted: a text without"),
        ("../x", lambda f: f.text("[a-z]+"), "accepted: a text of the form [a-z]+"),
        ("c", lambda f: f.one_of(["a", "b"]), "it is 'c'; accepted: a, b"),
        ([1], lambda f: f.one_of(["a"]), "it is a list of 1 entries; accepted: a"),
        ({"format": True}, lambda f: f.check_format(1), "is of format True, made"),
        ({"\ud800": 1}, lambda f: f.only(["b"]), r"it has '\ud800'"),
    ],
)
def test_what_is_refused(value: Any, read: Any, message: str):
    with pytest.raises(DocumentError) as error:
        read(Field(value))
    assert message in str(error.value)
    str(error.value).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not UTF-8 at byte 0"),
        (b'{"a": NaN}', "has NaN"),
        (b"[" * 100_000, "is nested deeper"),
        (b"[" * 100 + b"]" * 100, "is nested deeper"),
        (b"9" * 5000, "is not JSON"),
        (b"", "is not JSON"),
    ],
)
def test_a_file_that_is_not_json_is_named(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DocumentError) as error:
        read_document(path)
    assert str(error.value).startswith(str(path)) and message in str(error.value)


def test_what_is_accepted():
    text = json.dumps({"a": [1, 2.5, "é\u2028", True, None]})
    a = Field(parse_json(text.encode())).at("a").entries()
    values = a[0].whole(0, 1), a[1].number(), a[2].text(), a[3].flag()
    assert values == (1, 2.5, "é\u2028", True)
    assert Field({"b": None}).find("b") is None
    assert is_printable("é\u2028\U0001f600") and not is_printable("\udfff")
