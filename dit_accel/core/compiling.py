"""Finds the modules inside of compiled ones, and keeps `torch.compile` from tracing our code.

In: a module or a weight's path, compiled or not; a function of ours. Out: the original module or
path; the function, excluded from graphs. It knows the names that PyTorch uses in compiled modules,
and no patch. Source: ours.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

FULLGRAPH = (
    "transformer is compiled with fullgraph=True, but decisions inside of it break the graph; "
    "accepted: speedup, quality or plan, which decide outside of it; site 'block' or 'model' with "
    "blocks that are compiled one by one; or fullgraph=False"
)


def outside_graphs(forward: Any) -> Any:
    """Keep torch.compile from tracing our function. The module that it wraps is still compiled."""
    return torch.compiler.disable(forward, recursive=False)  # type: ignore[no-untyped-call]


def is_refused_break(error: Exception) -> bool:
    """Whether an error means: `outside_graphs` would break a graph, and fullgraph=True forbids
    it."""
    of_compiler = type(error).__module__ == "torch._dynamo.exc"  # not imported: it takes seconds
    return of_compiler and "torch.compiler.disable" in str(error)


def uncompiled(module: Any) -> Any:
    """The original module of one that `torch.compile(module)` returned; other objects as they
    are."""
    return getattr(module, "__dict__", {}).get("_modules", {}).get("_orig_mod", module)


def uncompiled_path(path: str) -> str:
    """The path of a weight in the original model, if it was compiled as a whole or by blocks."""
    return path.replace("_orig_mod.", "")


def parameters_of(module: Any) -> tuple[str, ...]:
    """The names of a module's arguments, in order, even if its `forward` is replaced now."""
    return tuple(inspect.signature(type(uncompiled(module)).forward).parameters)[1:]
