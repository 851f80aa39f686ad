"""What stands around a module's calls, and what it leaves alone; on modules of one line."""

from __future__ import annotations

import copy
import functools
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

from dit_accel.core.compiling import uncompiled
from dit_accel.core.patching import Patches, before_calls, hook_of, is_compiled
from dit_accel.core.private_names import other_cache


class Double(torch.nn.Module):
    def forward(self, value: float) -> float:
        return 2 * value

    def greet(self, name: str) -> str:
        return f"hello {name}"


class Outer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = Double()

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return self.inside(value) + 1


def plus_ten(inner: Any) -> Any:
    return lambda value: inner(value) + 10


def test_worked_example():
    """2 x becomes 2 x + 10, and 2 x again: double(3) = 6, then 16, then 6."""
    module, patches = Double(), Patches()
    patches.around(module, plus_ten)
    assert module(3) == 16
    assert module.forward(3) == 6, "whoever calls forward by itself passes below us"
    patches.undo()
    assert module(3) == 6 and not vars(module).keys() & {"_compiled_call_impl", "compile"}
    patches.undo()  # a second time does nothing


def test_others_may_replace_forward_before_and_after():
    module, patches = Double(), Patches()
    module.forward = lambda value: 3 * value
    patches.around(module, plus_ten)
    assert module(1) == 13
    module.forward = lambda value: 5 * value
    assert module(1) == 15
    patches.undo()
    assert module(1) == 5


def test_twice_is_refused_and_changes_nothing():
    module, patches = Double(), Patches()
    patches.around(module, plus_ten)
    with pytest.raises(RuntimeError, match=r"Double\.forward is accelerated already"):
        Patches().around(module, plus_ten)
    assert module(3) == 16
    patches.undo()
    assert module(3) == 6


@pytest.mark.parametrize("order", ["before", "after"])
def test_compilation_stays_below_and_stays(order):
    module, patches = Outer(), Patches()
    one = torch.ones(1)
    if order == "before":
        module.compile(backend="eager")
    patches.around(module, plus_ten)
    if order == "after":
        module.compile(backend="eager")
    assert is_compiled(module) and hook_of(module) is not None
    assert module(one).item() == 13
    patches.undo()
    assert is_compiled(module) and hook_of(module) is None
    assert module(one).item() == 3


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_hook_inside_a_compiled_module_is_still_called(order):
    module, patches = Outer(), Patches()
    one = torch.ones(1)
    if order == "before":
        module.compile(backend="eager")
    patches.around(module, lambda inner: inner)
    patches.around(module.inside, plus_ten, callers=(module,))
    if order == "after":
        module.compile(backend="eager")
    assert module(one).item() == 13
    patches.undo()
    assert module(one).item() == 3 and "forward" not in vars(module.inside)


@pytest.mark.parametrize("compiled", [False, True])
def test_what_only_waits_for_calls_is_no_compiler(compiled):
    """A clock that stands above us, as every run of the command has one."""
    module, patches, calls = Outer(), Patches(), []
    if compiled:
        module.compile(backend="eager")
    patches.around(module, lambda inner: inner)
    patches.around(module.inside, plus_ten, callers=(module,))
    remove = before_calls(module, lambda: calls.append(1))
    assert is_compiled(module) is compiled and hook_of(module) is not None
    patches.settle()  # as at the beginning of a call
    assert ("forward" in vars(module.inside)) is compiled
    assert module(torch.ones(1)).item() == 13 and calls == [1]
    remove()
    patches.undo()
    assert module(torch.ones(1)).item() == 3 and is_compiled(module) is compiled


def test_a_compiled_module_that_was_assigned():
    module, patches = Double(), Patches()
    compiled, one = torch.compile(module, backend="eager"), torch.ones(1)
    assert is_compiled(compiled) and uncompiled(compiled) is module
    patches.around(compiled, plus_ten)
    patches.wrap(compiled, "greet", lambda inner: lambda name: inner(name).upper())
    assert compiled(one).item() == 12 and compiled.greet("you") == "HELLO YOU"
    patches.undo()
    assert compiled(one).item() == 2 and compiled.greet("you") == "hello you"


def test_copies_and_pickles_are_stock():
    module, patches = Double(), Patches()
    patches.around(module, plus_ten)
    patches.wrap(module, "greet", lambda inner: lambda name: inner(name).upper())
    assert (module(3), module.greet("you")) == (16, "HELLO YOU")
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert (other(3), other.greet("you")) == (6, "hello you")
        assert other.greet.__self__ is other
    patches.undo()
    assert (module(3), module.greet("you")) == (6, "hello you")


def test_what_others_wrapped_over_ours_stays_and_passes_ours_by():
    module, patches = Double(), Patches()
    patches.wrap(module, "greet", lambda inner: lambda name: inner(name).upper())
    module.greet = theirs = functools.update_wrapper(partial(_loudly, module.greet), module.greet)
    assert module.greet("you") == "HELLO YOU!"
    with pytest.raises(RuntimeError, match="accelerated already"):  # theirs took our mark over
        patches.wrap(module, "greet", lambda inner: inner)
    patches.undo()
    assert module.greet is theirs and module.greet("you") == "hello you!"
    for other in (copy.deepcopy(module), module):
        again = Patches()
        again.wrap(other, "greet", lambda inner: lambda name: inner(name).title())
        assert other.greet("you") == "Hello You!"
        again.undo()
        assert other.greet("you") == "hello you!"


def _loudly(greet: Any, name: str) -> str:
    return f"{greet(name)}!"


def test_hooks_that_come_over_ours_inside_a_compiled_module():
    """There we stand at `forward`, as offloading, casting and context parallelism do."""
    module, patches, one = Outer(), Patches(), torch.ones(1)
    patches.around(module, lambda inner: inner)
    patches.around(module.inside, plus_ten, callers=(module,))
    module.compile(backend="eager")
    add_hook_to_module(module.inside, ModelHook())
    assert module(one).item() == 13
    patches.undo()
    assert module(one).item() == 3
    patches.around(module.inside, plus_ten, callers=(module,))
    assert module(one).item() == 13
    patches.undo()
    remove_hook_from_module(module.inside)
    assert module(one).item() == 3


def test_a_cache_of_cache_dit_is_named():
    """It marks its transformers so (1.5.3)."""
    module = Double()
    assert other_cache(module) is None
    module._is_cached = True
    assert other_cache(torch.compile(module, backend="eager")) == "a cache of cache-dit on"
