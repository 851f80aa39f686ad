"""Pipelines that are built once, and checked after every test: stock, or a failure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from calls import state_of
from techniques import Technique
from tiny_models import TinyModel

from dit_accel import accelerate

Change = Callable[[Any], None]
Stock = tuple[Any, torch.Tensor]


class Workbench:
    """Pipelines of the models, also changed ones, and clips: each made once."""

    def __init__(self) -> None:
        self._pipes: dict[tuple[int, Change | None], Any] = {}
        self._clips: dict[tuple[int, Any], torch.Tensor] = {}

    def pipe(self, model: TinyModel, change: Change | None = None) -> Any:
        """The same one for every test; `change` is what a user did to it before."""
        key = id(model), change
        if key not in self._pipes:
            self._pipes[key] = model.build()
            if change is not None:
                change(self._pipes[key])
        return self._pipes[key]

    def stock(
        self, model: TinyModel, technique: Technique, change: Change | None = None
    ) -> torch.Tensor:
        """The clip of the pipeline as it is, or as the user changed it."""
        pipe = self.pipe(model, change)
        return self.clip(model, technique, change, lambda: _run(model, pipe, technique))

    def accelerated(self, model: TinyModel, technique: Technique) -> torch.Tensor:
        """The clip by the technique's loose setting."""

        def run() -> torch.Tensor:
            pipe = self.pipe(model)
            with accelerate(pipe, **technique.loose(model, pipe)):
                return clips(model, pipe, technique, 1)[0]

        self.stock(model, technique)
        return self._once(model, technique.name, run)

    def clip(
        self, model: TinyModel, technique: Technique, kind: Any, run: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        """What `run` gives, once for the techniques with the same call, by the kind of run."""
        return self._once(model, (repr(technique.changes), kind), run)

    def _once(self, model: TinyModel, what: Any, run: Callable[[], torch.Tensor]) -> torch.Tensor:
        key = id(model), what
        if key not in self._clips:
            self._clips[key] = run()
        return self._clips[key]


def _run(model: TinyModel, pipe: Any, technique: Technique) -> torch.Tensor:
    return model.run(pipe, **technique.changes)


def clips(model: TinyModel, pipe: Any, technique: Technique, calls: int = 2) -> list[torch.Tensor]:
    """Of several calls, without the one that is recorded."""
    if technique.recorded(model):
        _run(model, pipe, technique)
    return [_run(model, pipe, technique) for _ in range(calls)]


@pytest.fixture(scope="session")
def workbench() -> Workbench:
    return Workbench()


@pytest.fixture
def stock(workbench: Workbench, model: TinyModel, technique: Technique) -> Iterator[Stock]:
    """A pipeline and its stock clip; after the test both are the same."""
    pipe, clip = workbench.pipe(model), workbench.stock(model, technique)
    before = traces(pipe)
    yield pipe, clip
    assert traces(pipe) == before, "removed, and something is left behind"
    assert torch.equal(_run(model, pipe, technique), clip)


def traces(pipe: Any) -> Any:
    """What an acceleration might leave behind: attributes and hooks of all parts, processors."""
    parts = [part for part in pipe.components.values() if part is not None]
    models = [part for part in parts if isinstance(part, torch.nn.Module)]
    processors = [getattr(m, "processor", None) for part in models for m in part.modules()]
    return state_of(pipe), [sorted(vars(part)) for part in (pipe, *parts)], processors
