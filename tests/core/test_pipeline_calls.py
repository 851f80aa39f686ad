"""Which pipeline calls, and whether it is its callback that does."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from dit_accel.core.pipeline_calls import calling_pipeline

Found = tuple[Any, bool]


class DiffusionPipeline:
    def __call__(self, callback_on_step_end: Any) -> list[Found]:
        return [calling_pipeline(), self._step(), callback_on_step_end(self)]

    def _step(self) -> Found:
        return calling_pipeline()


def function(pipe: Any, more: int = 0) -> Found:
    return calling_pipeline()


class Callback:
    def __call__(self, pipe: Any) -> Found:
        return function(pipe)

    method = __call__


CALLBACKS = {
    "function": function, "partial": functools.partial(function, more=1),
    "object": Callback(), "method": Callback().method, "lambda": lambda pipe: function(pipe),
    "wrapped": functools.wraps(function)(lambda *args: function(*args)),
}  # fmt: skip


@pytest.mark.parametrize("kind", CALLBACKS)
def test_a_callback_is_told_from_the_pipelines_own_steps(kind: str) -> None:
    pipe = DiffusionPipeline()
    assert pipe(CALLBACKS[kind]) == [(pipe, False), (pipe, False), (pipe, True)]
    assert calling_pipeline() == (None, False)


def test_a_pipeline_that_a_callback_calls_is_the_one_that_is_calling() -> None:
    outer, inner = DiffusionPipeline(), DiffusionPipeline()
    found = outer(lambda _: inner(function))[-1]
    assert found == [(inner, False), (inner, False), (inner, True)]
