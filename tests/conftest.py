"""Every test runs offline, quiet and on one thread; `tiny_wan` builds pipelines in code."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

# Both are read when huggingface_hub is first imported, so before anything else here.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import pytest
import torch

if TYPE_CHECKING:
    from diffusers import WanPipeline


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny tensors gain nothing from threads, and sums then come out in one order."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_wan() -> Callable[..., WanPipeline]:
    """The builder `tiny.tiny_wan(seed=0, transformer_2=False, ...)`: a new pipeline every call."""
    import tiny

    return tiny.tiny_wan
