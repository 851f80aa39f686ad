"""Pipelines that are built once for a file, and checked after every test: stock, or a failure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from calls import state_of
from techniques import Technique
from tiny_models import TinyModel

Stock = tuple[Any, torch.Tensor]


class Workbench:
    """Pipelines of the models, and their stock clips by the arguments of the call."""

    def __init__(self) -> None:
        self._pipes: dict[int, Any] = {}
        self._clips: dict[str, torch.Tensor] = {}

    def pipe(self, model: TinyModel) -> Any:
        if id(model) not in self._pipes:
            self._pipes[id(model)] = model.build()
        return self._pipes[id(model)]

    def stock(self, model: TinyModel, technique: Technique) -> Stock:
        """The pipeline, which has run last with the technique's arguments, and that clip."""
        pipe, key = self.pipe(model), f"{id(model)} {technique.changes}"
        if key not in self._clips:
            self._clips[key] = model.run(pipe, **technique.changes)
        return pipe, self._clips[key]


@pytest.fixture(scope="module")
def workbench() -> Workbench:
    return Workbench()


@pytest.fixture
def stock(workbench: Workbench, model: TinyModel, technique: Technique) -> Iterator[Stock]:
    """A pipeline and its stock clip; after the test both are the same."""
    pipe, clip = workbench.stock(model, technique)
    before = traces(pipe)
    yield pipe, clip
    assert traces(pipe) == before, "removed, and something is left behind"
    assert torch.equal(model.run(pipe, **technique.changes), clip)


def traces(pipe: Any) -> Any:
    """What an acceleration might leave behind: attributes and hooks of all parts, processors."""
    parts = [part for part in pipe.components.values() if part is not None]
    models = [part for part in parts if isinstance(part, torch.nn.Module)]
    processors = [getattr(m, "processor", None) for part in models for m in part.modules()]
    return state_of(pipe), [sorted(vars(part)) for part in (pipe, *parts)], processors
