"""Finds the pipeline whose call is running in this thread, and where a call begins and ends.

In: the call stack; or a pipeline. Out: the pipeline whose `__call__` is running, and whether a
user's callback is running in it; methods that notify when the pipeline's call uses them. It knows
the names that diffusers' pipelines have in common, and no transformer. Source: ours.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

from dit_accel.core.patching import Call, Replacement

_PIPELINES = ("DiffusionPipeline", "ModularPipeline")
_CALLBACK = "callback_on_step_end"  # the argument's name in diffusers' pipelines


def calling_pipeline() -> tuple[Any, bool]:
    """The diffusers pipeline whose call is running in this thread, and whether its step callback is
    running.

    None: no pipeline's call is running. If calls are nested, it is the innermost pipeline. The
    stack is searched because pipelines may share a transformer, which does not know its caller.
    """
    frame: FrameType | None = sys._getframe(1)
    inner, in_callback = calling_pipeline.__code__, False
    while frame is not None:
        code = frame.f_code
        if _CALLBACK in code.co_varnames:
            in_callback |= inner is _code_of(frame.f_locals.get(_CALLBACK))
        if code.co_name == "__call__" and code.co_varnames[:1] == ("self",):
            owner = frame.f_locals["self"]
            if any(kind.__name__ in _PIPELINES for kind in type(owner).__mro__):
                return owner, in_callback
        inner, frame = code, frame.f_back
    return None, False


def step_arguments(pipe: Any) -> dict[str, Any]:
    """What the running call of a pipeline passes to its scheduler's `step` at every step, beside
    prediction, timestep and sample: `eta`, which makes some samplers random. Generators are left
    out."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "__call__" and frame.f_locals.get("self") is pipe:
            found = frame.f_locals.get("extra_step_kwargs")
            if isinstance(found, dict):
                return {name: value for name, value in found.items() if name != "generator"}
        frame = frame.f_back
    return {}


def _code_of(called: Any) -> CodeType | None:
    """The code that runs when an object is called: a function, a method, a `functools.partial`, or
    an object with `__call__`. None: it is not Python code."""
    while isinstance(called, functools.partial):
        called = called.func
    if callable(called) and not hasattr(called, "__code__"):
        called = called.__call__
    return getattr(called, "__code__", None)


def marks_of_calls(pipe: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the methods that a pipeline's call uses first and last, if its code has
    them."""
    named = {name for code in _codes_of_calls(pipe) for name in code.co_names}
    marks = ("check_inputs",), ("maybe_free_model_hooks",)
    first, last = (tuple(name for name in names if name in named) for names in marks)
    return first, last


def notifying(pipe: Any, notify: Callable[[], None], inner: Call) -> Call:
    """Wrap a method so that it calls `notify` if the pipeline's own call uses it.

    A user may also call the method, and a shallow copy of the pipeline (`copy.copy`) has it too.
    Such calls do not notify.
    """
    codes = _codes_of_calls(pipe)

    def method(*args: Any, **kwargs: Any) -> Any:
        frame = sys._getframe(1)
        if frame.f_code is Replacement.__call__.__code__ and frame.f_back is not None:
            frame = frame.f_back
        if frame.f_code in codes and frame.f_locals.get("self") is pipe:
            notify()
        return inner(*args, **kwargs)

    return method


def _codes_of_calls(pipe: Any) -> list[CodeType]:
    """The code of the pipeline's `__call__`, and of those that it inherits."""
    own = [vars(kind)["__call__"] for kind in type(pipe).__mro__ if "__call__" in vars(kind)]
    codes = [getattr(inspect.unwrap(call), "__code__", None) for call in own]
    return [code for code in codes if code is not None]
