"""No private words, and no name that stands for two things: `scripts/docs/words.py` lists them."""

from __future__ import annotations

import pytest
import words


@pytest.fixture(scope="module")
def files():
    return words.texts()


@pytest.fixture(scope="module")
def hits(files):
    return words.all_hits(files)


def test_worked_example():
    lines = (
        "def f(keptTwin):",
        "    # what is",
        "    # left, of course; held-out",
        "    return round_trip",
    )
    found = [(hit.line, hit.word, hit.why) for hit in words.hits_in("a.py", "\n".join(lines))]
    assert found == [
        (1, "kept", None),  # camelCase is read word by word
        (1, "twin", None),
        (2, "what is # left", None),  # across a comment's lines
        (3, "course", "everyday English"),  # explained, since ALLOWED has "of course"
        (3, "held", "the field's word for data that a fit has not seen"),
        (4, "trip", "the field's word: out and back again"),  # snake_case as well
    ]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("a take's report", 1),
        ("both takes are compared", 1),
        ("take.report", 1),
        ("f(take, uncached)", 1),
        ("how long a clip takes", 0),
        ("it takes two clips", 0),
        ("indices.take(rows)", 0),
    ],
)
def test_a_take_is_a_noun(text, count):
    assert len(list(words.hits_in("a.py", text))) == count


def test_names_that_are_gone_are_found_where_they_are_defined():
    found = words.old_names("a.py", "class Rung:\n    def hear_text(self): self._twin = Steering()")
    assert sorted(hit.word for hit in found) == ["Rung", "_twin", "hear_text"]


def test_two_things_of_one_name_are_found():
    files = {
        "dit_accel/a.py": "class Kept: ...\nFIRST, MANY = 1, 45\nSAME = 3",
        "dit_accel/b.py": "class Kept: ...\nMANY: int = 30\nSAME = 3",
    }
    where = ["dit_accel/a.py", "dit_accel/b.py"]
    assert words.classes_of_one_name(files) == {"Kept": where}
    assert words.constants_of_two_values(files) == {"MANY": where}


def test_every_private_word_that_is_left_is_explained(hits):
    left = [hit for hit in hits if hit.why is None]
    assert [f"{hit.path}:{hit.line}: {hit.word}" for hit in left] == []


def test_every_explanation_of_certain_files_is_needed(hits):
    used = {hit.why for hit in hits}
    assert [why for where, _, why in words.ALLOWED if where != "*" and why not in used] == []


def test_no_two_classes_have_one_name_and_no_constant_two_values(files):
    assert words.classes_of_one_name(files) == {}
    assert words.constants_of_two_values(files) == {}
