"""Where the miniature is found, and which call defaults a folder may name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dit_accel.models import loading, miniature
from dit_accel.models.folder import inspect_folder
from dit_accel.planning.lookup import find_profile, profile_key
from dit_accel.planning.profile import Profile

ASSETS = Path(__file__).resolve().parents[2] / "assets"
NOT_INSTALLED = """
import sys
sys.meta_path[:] = [one for one in sys.meta_path if "editable" not in repr(one).lower()]
sys.path.insert(0, sys.argv[1])
from dit_accel.models import miniature
print(miniature.path())
"""


def write_defaults(folder: Path, text: str) -> Path:
    (folder / miniature.DEFAULTS_FILE).write_text(text, encoding="utf-8")
    return folder


def test_path_prefers_the_installed_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    monkeypatch.setattr(miniature, "_installed", lambda folder: tmp_path)
    assert miniature.path() == tmp_path


def test_path_falls_back_to_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "assets" / miniature.MINIATURE_NAME
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    monkeypatch.setattr(miniature, "_installed", lambda folder: None)
    monkeypatch.setattr(miniature, "__file__", str(tmp_path / "dit_accel/models/miniature.py"))
    assert miniature.path() == folder


def test_a_checkout_that_is_not_installed_has_it(tmp_path: Path) -> None:
    """An editable install maps `dit_accel.assets` to the checkout, and hides where it looks."""
    if not (ASSETS / miniature.MINIATURE_NAME / "model_index.json").is_file():
        pytest.skip("the miniature is not built here")
    call = [sys.executable, "-c", NOT_INSTALLED, str(ASSETS.parent)]
    found = subprocess.run(call, check=True, capture_output=True, text=True, cwd=tmp_path)
    assert Path(found.stdout.strip()) == ASSETS / miniature.MINIATURE_NAME


def test_a_missing_miniature_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(miniature, "_installed", lambda folder: tmp_path)
    monkeypatch.setattr(miniature, "__file__", str(tmp_path / "dit_accel/models/miniature.py"))
    with pytest.raises(FileNotFoundError, match="the embedded miniature is missing") as caught:
        miniature.path()
    assert str(tmp_path) in str(caught.value)


def test_the_miniature_of_this_checkout_names_its_defaults() -> None:
    try:
        folder = miniature.path()
    except FileNotFoundError:
        pytest.skip("the miniature is not built here")
    assert set(miniature.call_defaults(folder)) == set(miniature.DEFAULT_KEYS)


def test_call_defaults_are_read_as_they_stand(tmp_path: Path) -> None:
    stated = {"height": 64, "guidance_scale": 4.5, "fps": 8}
    assert miniature.call_defaults(write_defaults(tmp_path, json.dumps(stated))) == stated


def test_a_folder_without_the_file_has_no_defaults(tmp_path: Path) -> None:
    assert miniature.call_defaults(tmp_path) == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "is not JSON"),
        ("[1]", "has a list; accepted: a JSON object"),
        ('{"heigth": 64}', "accepted: an object of height, width"),
        ('{"height": 0}', "height is 0 in .*; accepted: a whole number above 0"),
        ('{"height": 64.5}', "height is 64.5 in .*; accepted: a whole number above 0"),
        ('{"height": true}', "height is True in .*; accepted: a whole number above 0"),
        ('{"fps": "8"}', "fps is '8' in .*; accepted: a number above 0"),
    ],
)
def test_wrong_defaults_are_refused_by_name(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        miniature.call_defaults(write_defaults(tmp_path, text))


@pytest.mark.parametrize("name", ["mini-cogvideox", "mini-ltx"])
def test_the_models_to_measure_on_load_as_any_other_with_their_profile(name: str) -> None:
    folder = ASSETS / name
    if not folder.exists():
        pytest.skip("only the repository and the sdist have these models")
    pipe = loading.load(inspect_folder(folder, name=name), device="cpu", dtype="float32")
    found = find_profile(pipe)
    assert found == folder / "dit-accel-profile.safetensors"
    key, here = Profile.load(found).key, profile_key(pipe)
    assert (key.weights, key.sampler) == (here.weights, here.sampler)
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 15e6
    assert set(miniature.call_defaults(folder)) == set(miniature.DEFAULT_KEYS)
