"""The schema that is shipped says what the loader accepts, as far as a schema can say it."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest
from layout_faults import FAULTS, document

from dit_accel.layout import LayoutError, load, parse
from dit_accel.layout.errors import LONGEST_TEXT
from dit_accel.layout.model import MAX_Z, MOST_KEYFRAMES, MOST_SHOTS, MOST_SUBJECTS

jsonschema = pytest.importorskip("jsonschema")
SCHEMA = json.loads(files("dit_accel.layout").joinpath("layout.schema.json").read_text("utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
LAYOUTS = sorted((Path(__file__).parents[2] / "assets" / "layouts").glob("*.yaml"))

# What a schema cannot say: the loader alone refuses it.
BEYOND = {
    "no mapping": False,
    "version is a number with a point": True,  # to JSON Schema, 1.0 is an integer
    "control character": True,
    "lone surrogate": True,
    "shots of one id": True,
    "subjects of one id": True,
    "cast of one id": True,
    "cast that is placed nowhere": True,
    "subject without a prompt": True,
    "empty box": True,
    "keyframes out of order": True,
    "keyframes at one time": True,
    "mask that is not there": True,
    "reference to a shot that is not there": True,
    "reference to a subject that is not there": True,
    "reference to a file that is not there": True,
    "reference to itself": True,
    "references that form a circle": True,
    "path out of the folder": True,
    "path from the root": True,
    "path that is too long": True,
    "path with a null": True,
}


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert VALIDATOR.is_valid(document())


@pytest.mark.parametrize("name", FAULTS)
def test_schema_and_loader_refuse_alike(name, tmp_path):
    found = document()
    FAULTS[name][0](found)
    assert VALIDATOR.is_valid(found) == BEYOND.get(name, False)
    with pytest.raises(LayoutError):
        parse(json.dumps(found).encode(), tmp_path, json_only=True)


def test_limits_are_the_loaders():
    parts = SCHEMA["$defs"]
    assert SCHEMA["properties"]["shots"]["maxItems"] == MOST_SHOTS
    assert SCHEMA["properties"]["subjects"]["maxItems"] == MOST_SHOTS * MOST_SUBJECTS
    assert parts["shot"]["properties"]["subjects"]["maxItems"] == MOST_SUBJECTS
    assert parts["keyframes"]["maxItems"] == MOST_KEYFRAMES
    assert parts["text"]["maxLength"] == LONGEST_TEXT
    assert parts["subject"]["properties"]["z"]["maximum"] == MAX_Z


@pytest.mark.parametrize("path", LAYOUTS, ids=lambda path: path.stem)
def test_the_example_layouts_are_valid_and_in_the_miniatures_words(path):
    import yaml

    assert VALIDATOR.is_valid(yaml.safe_load(path.read_text(encoding="utf-8")))
    layout = load(path)
    tokens = Path(__file__).parents[2] / "assets" / "mini-wan" / "tokenizer" / "tokenizer.json"
    words = set(json.loads(tokens.read_text(encoding="utf-8"))["model"]["vocab"])
    said = [shot.prompt for shot in layout.shots]
    said += [subject.prompt for shot in layout.shots for subject in shot.subjects]
    used = {word for text in said for word in text.replace(",", " ").split()}
    assert used <= words


def test_there_are_examples():
    assert len(LAYOUTS) >= 4
