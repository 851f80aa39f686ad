"""Fixtures of the command's tests: an empty current folder, and a tiny model in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import DEFAULTS


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tiny_wan: Callable[..., Any]) -> Path:
    """A tiny Wan pipeline of random weights, saved with call defaults of its own."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_wan().save_pretrained(folder)
    (folder / "generation_defaults.json").write_text(json.dumps(DEFAULTS))
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
