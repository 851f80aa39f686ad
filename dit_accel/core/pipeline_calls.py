"""Knows which pipeline is calling in this thread, and where its call begins and ends.

In: a pipeline, or nothing but the stack. Out: the pipeline whose `__call__` is running, and whether
a user's callback runs in it; methods that notify where that call uses them. It knows the names that
diffusers' pipelines have in common, and no transformer. Source: ours.
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
_CALLBACK = "callback_on_step_end"  # as pipelines name the argument


def calling_pipeline() -> tuple[Any, bool]:
    """The pipeline of diffusers whose call is running in this thread, the innermost, or None; and
    whether we are in a callback between two of its steps.

    A transformer does not know who calls it, and pipelines share transformers.
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


def _code_of(called: Any) -> CodeType | None:
    """What runs where an object is called: a function, a method, a partial, or one with `__call__`;
    None where it is not of Python."""
    while isinstance(called, functools.partial):
        called = called.func
    if callable(called) and not hasattr(called, "__code__"):
        called = called.__call__
    return getattr(called, "__code__", None)


def marks_of_calls(pipe: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The methods that a pipeline's call uses first, and last, as its own code names them."""
    named = {name for code in _codes_of_calls(pipe) for name in code.co_names}
    marks = ("check_inputs",), ("maybe_free_model_hooks",)
    first, last = (tuple(name for name in names if name in named) for names in marks)
    return first, last


def notifying(pipe: Any, notify: Callable[[], None], inner: Call) -> Call:
    """A method that notifies where the pipeline's own call uses it, not a user, nor the call of a
    shallow copy (`copy.copy`), which has the method too."""
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
    """Of the pipeline's `__call__`, and of those that it inherits."""
    own = [vars(kind)["__call__"] for kind in type(pipe).__mro__ if "__call__" in vars(kind)]
    codes = [getattr(inspect.unwrap(call), "__code__", None) for call in own]
    return [code for code in codes if code is not None]
