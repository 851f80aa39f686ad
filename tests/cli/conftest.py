"""Fixtures of the command's tests: an empty current folder, and a tiny model in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from commands import DEFAULTS

from dit_accel.models import memory


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tiny_wan: Callable[..., Any]) -> Path:
    """A tiny Wan pipeline of random weights, saved with call defaults of its own."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_wan().save_pretrained(folder)
    (folder / "generation_defaults.json").write_text(json.dumps(DEFAULTS))
    return folder


@pytest.fixture(scope="session")
def image_model_folder(model_folder: Path) -> Path:
    """The tiny model as image-to-video: it reads the first frame beside the latents."""
    from diffusers import WanImageToVideoPipeline, WanPipeline, WanTransformer3DModel

    pipe = WanPipeline.from_pretrained(model_folder)
    config = dict(pipe.transformer.config) | {"in_channels": 36}
    transformer = WanTransformer3DModel.from_config(config)
    tiny.draw_weights(transformer, seed=3)
    names = ("tokenizer", "text_encoder", "vae", "scheduler")
    parts = {name: getattr(pipe, name) for name in names}
    folder = model_folder.parent / "tiny-i2v"
    WanImageToVideoPipeline(transformer=transformer, **parts).save_pretrained(folder)
    (folder / "generation_defaults.json").write_text(json.dumps(DEFAULTS))
    return folder


@pytest.fixture(autouse=True)
def untraced(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are not traced for their memory, which takes a second, without `traced`."""
    if "traced" not in request.fixturenames:
        monkeypatch.setattr(memory, "activations_of", lambda *given: {})


@pytest.fixture
def traced() -> None:
    """Activations are traced, as for a user."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
