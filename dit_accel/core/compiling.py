"""Knows what `torch.compile` puts around modules, and keeps it out of our own code.

In: a module or a path of a weight, as it is or compiled; a function of ours. Out: the module that
was compiled, the path in it; the function, outside of graphs. It knows PyTorch's names for what is
compiled, and no patch. Source: ours.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

FULLGRAPH = (
    "transformer is compiled with fullgraph=True, and what decides inside breaks the graph; "
    "accepted: speedup, quality or plan, which decide outside of it; with blocks that are compiled "
    "one by one also site 'block' and 'model'; or fullgraph=False"
)


def outside_graphs(forward: Any) -> Any:
    """Keep torch.compile from tracing our bookkeeping; what is wrapped is still compiled."""
    return torch.compiler.disable(forward, recursive=False)  # type: ignore[no-untyped-call]


def is_refused_break(error: Exception) -> bool:
    """Whether the compiler found `outside_graphs` in a graph that must not break."""
    of_compiler = type(error).__module__ == "torch._dynamo.exc"  # not imported: it takes seconds
    return of_compiler and "torch.compiler.disable" in str(error)


def uncompiled(module: Any) -> Any:
    """The module that `torch.compile(module)` was given; any other object as it is."""
    return getattr(module, "__dict__", {}).get("_modules", {}).get("_orig_mod", module)


def uncompiled_path(path: str) -> str:
    """The path of a weight in the model that was compiled, as a whole or block by block."""
    return path.replace("_orig_mod.", "")


def parameters_of(module: Any) -> tuple[str, ...]:
    """The names of a module's arguments, in order, whatever stands at its `forward` now."""
    return tuple(inspect.signature(type(uncompiled(module)).forward).parameters)[1:]
