"""Every test runs offline, quiet and on one thread; `tiny_wan` builds pipelines in code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Both are read when huggingface_hub is first imported, so before anything else here.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import composition
import pytest
import torch

if TYPE_CHECKING:
    from diffusers import WanPipeline

    from dit_accel.planning.profile import Profile


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "write docs/composition.json from the tests that ran and are marked with composes"
    parser.addoption("--record-composition", action="store_true", help=text)


def pytest_configure(config: pytest.Config) -> None:
    recorder = composition.Recorder(bool(config.getoption("--record-composition")))
    config.pluginmanager.register(recorder, "composition")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny tensors gain nothing from threads, and sums then come out in one order."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_wan() -> Callable[..., WanPipeline]:
    """The builder `tiny.tiny_wan(seed=0, transformer_2=False, ...)`: a new pipeline every call."""
    import tiny

    return tiny.tiny_wan


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Profiles of the user's own cache are none of the tests' business. What one test learns would
    change the plans of the next."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIT_ACCEL_CACHE", str(folder))
        patch.setenv("DIT_ACCEL_NO_LEARN", "1")
        yield folder


@pytest.fixture
def learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs of this test are learnt from, in the cache folder that this gives."""
    monkeypatch.setenv("DIT_ACCEL_CACHE", str(tmp_path))
    monkeypatch.delenv("DIT_ACCEL_NO_LEARN")
    return tmp_path


@pytest.fixture
def without_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run is known to the prior, as by a sampler without noise levels: first runs are
    recorded."""
    monkeypatch.setattr(
        "dit_accel.caching.controller.SchedulerCache.profile", lambda *_, **__: None
    )


@pytest.fixture(scope="session")
def tiny_profile(tiny_wan: Callable[..., WanPipeline]) -> Profile:
    """Calibrated on four clips of `tiny_wan()`: 10 steps, guidance 4, 16x16, 5 frames."""
    from dit_accel.calibration.calibrate import calibrate
    from dit_accel.core.generation import ClipSpec

    words = ("red circle moving right", "blue square", "green triangle", "red square moving up")
    clips = [
        ClipSpec(f"a {text}", "", 1000 + seed, 10, 4.0, 16, 16, 5, None, 16)
        for seed, text in enumerate(words)
    ]
    return calibrate(tiny_wan(), clips, speedups=(1.5, 2), probes=2, probed=1)


@pytest.fixture(scope="session")
def profile_file(tiny_profile: Profile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a file."""
    path = tmp_path_factory.mktemp("profiles") / "tiny.safetensors"
    tiny_profile.save(path)
    return path


@pytest.fixture(autouse=True)
def _attention_backend():
    """Diffusers sets its backend for the whole process, and does not set it back."""
    registry = sys.modules.get("diffusers.models.attention_dispatch")
    before = registry and registry._AttentionBackendRegistry._active_backend
    yield
    if registry:
        registry._AttentionBackendRegistry._active_backend = before
