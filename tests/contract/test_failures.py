"""What goes wrong in mid-run leaves the next run right: on every family and technique."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from techniques import ENGINES, KINDS, combinations, is_equal
from tiny_models import STEPS, TinyModel

from dit_accel import accelerate

Stop = Callable[[TinyModel, Any, dict[str, Any]], None]


@contextlib.contextmanager
def after_steps(pipe: Any, seen: Callable[[int], None]) -> Iterator[dict[str, Any]]:
    """Arguments of a call that calls back after every step; without one, its scheduler does."""

    def ended(pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen(step)
        return tensors

    if "callback_on_step_end" in inspect.signature(type(pipe).__call__).parameters:
        yield {"callback_on_step_end": ended}
        return
    step, steps = pipe.scheduler.step, itertools.count()

    def stepped(*args: Any, **kwargs: Any) -> Any:
        found = step(*args, **kwargs)
        seen(next(steps))
        return found

    pipe.scheduler.step = stepped
    try:
        yield {}
    finally:
        del pipe.scheduler.step


def after_a_step(model: TinyModel, pipe: Any, changes: dict[str, Any]) -> None:
    """The user interrupts while the pipeline is between two steps."""

    def stop(step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with after_steps(pipe, stop) as given, pytest.raises(KeyboardInterrupt):
        model.run(pipe, **changes, **given)


def inside_a_forward(model: TinyModel, pipe: Any, changes: dict[str, Any]) -> None:
    """The last block runs out of memory in the second step."""
    groups = model.row.blocks
    last = list(getattr(pipe.transformer, groups[-1]))[-1] if groups else pipe.transformer
    layer = next(part for part in last.modules() if isinstance(part, torch.nn.Linear))
    calls: list[int] = []

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError

    hook = layer.register_forward_pre_hook(fail)
    try:
        with pytest.raises(MemoryError):
            model.run(pipe, **changes)
    finally:
        hook.remove()


@combinations("interrupts", others=ENGINES)
def test_after_a_forward_that_broke_the_next_run_is_right(stock, model, technique):
    broken(*stock, model, technique, inside_a_forward)


# No code of a technique runs between two steps: one of each engine is left.
@combinations("interrupts", only=KINDS, others=ENGINES)
def test_after_an_interrupt_between_two_steps_the_next_run_is_right(stock, model, technique):
    broken(*stock, model, technique, after_a_step)


def broken(pipe: Any, clip: torch.Tensor, model: TinyModel, technique: Any, stop: Stop) -> None:
    changes = technique.changes
    with accelerate(pipe, **technique.loose(model, pipe)) as handle:
        stop(model, pipe, changes)  # also while the first run is recorded
        if technique.recorded(model):
            assert is_equal(model.run(pipe, **changes), clip)
        fast = model.run(pipe, **changes)
        report = handle.report()
        stop(model, pipe, changes)
        assert is_equal(model.run(pipe, **changes), fast)
        again = handle.report()
        inside_a_forward(model, pipe, changes)  # and is removed after it
    assert not torch.equal(fast, clip), "the control"
    assert again.steps == STEPS
    assert [(s.name, s.branch, s.computed) for s in again.sites] == [
        (s.name, s.branch, s.computed) for s in report.sites
    ]


LOST = ("speedup", "static", "windows-block", "unicp", "pruned", "sliced", "reposition")


@combinations(only=LOST, others=ENGINES, variants=False)
def test_a_run_that_is_not_finite_ends_is_noted_and_leaves_nothing(stock, model, technique):
    pipe, _ = stock
    layer = [part for part in pipe.transformer.modules() if isinstance(part, torch.nn.Linear)][-1]
    lost = {"in the first forward": 1, "later": 5}
    with accelerate(pipe, **technique.loose(model, pipe)) as handle:
        if technique.recorded(model):
            model.run(pipe, **technique.changes)
        fast = model.run(pipe, **technique.changes)
        for when, at in lost.items():
            with spoiled(layer, at):
                clip = model.run(pipe, **technique.changes)
            noted = any("not finite" in note for note in handle.report().notes)
            assert noted or clip.isfinite().all(), when
            assert is_equal(model.run(pipe, **technique.changes), fast), when
            assert not any("not finite" in note for note in handle.report().notes), when


@contextlib.contextmanager
def spoiled(layer: torch.nn.Linear, at: int) -> Iterator[None]:
    """A layer whose output is lost at one of its calls, the first of which is 1."""
    calls = itertools.count(1)

    def spoil(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor | None:
        return output * math.nan if next(calls) == at else None

    hook = layer.register_forward_hook(spoil)
    try:
        yield
    finally:
        hook.remove()


def one_after_another(
    model: TinyModel, pipe: Any, changes: dict[str, Any]
) -> tuple[Any, list[str]]:
    """A call that begins while another thread's is between two steps: its clip, and the errors."""
    halfway, go_on = threading.Event(), threading.Event()
    errors: list[str] = []

    def wait(step: int) -> None:
        if step == 2 and threading.current_thread() is thread:
            halfway.set()
            go_on.wait(20)

    def first() -> None:
        with after_steps(pipe, wait) as given:
            try:
                model.run(pipe, **changes, **given)
            except RuntimeError as error:
                errors.append(str(error))

    thread = threading.Thread(target=first)
    thread.start()
    assert halfway.wait(20)
    try:
        return model.run(pipe, **changes), errors
    finally:
        go_on.set()
        thread.join()


THREADS = "a pipeline for each thread"


@combinations(refused={"threads": THREADS}, only=KINDS, others=ENGINES)
def test_two_threads_at_once_are_refused_and_the_next_call_is_right(
    workbench, stock, model, technique
):
    pipe, _ = stock
    alone = workbench.accelerated(model, technique)
    with accelerate(pipe, **technique.loose(model, pipe)):
        if technique.recorded(model):
            model.run(pipe, **technique.changes)
        second, errors = one_after_another(model, pipe, technique.changes)
        assert is_equal(second, alone)  # it began a run: the other one is over
        assert len(errors) == 1 and "two threads at once" in errors[0]
        assert is_equal(model.run(pipe, **technique.changes), alone)
