"""Tries the ways in which a library can wrap a transformer's call, and what each way survives.

In: nothing; the pipeline is the tests' tiny Wan. Out: a table with a row for each situation and a
column for each way. "yes" means: every transformer call of two pipeline calls was seen, the graph
stayed whole, and after removal the clip is the stock one and nothing is left on the module.
Does not know: GPUs, several processes. Source: ours; research/LOG.md has the table.

    python scripts/experiments/hook_points.py
"""

from __future__ import annotations

import copy
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch._dynamo.testing import CompileCounter

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import tiny

from dit_accel.core.patching import Patches

STEPS = 3
CALL = tiny.CALL | {"num_inference_steps": STEPS, "output_type": "latent"}
FORWARDS = 2 * STEPS  # two branches
Around = Callable[[Callable[..., Any]], Callable[..., Any]]
Remove = Callable[[], None]


def forward(module: Any, around: Around) -> Remove:
    """`module.forward = ...`"""
    before = module.forward
    module.forward = torch.compiler.disable(around(before), recursive=False)

    def remove() -> None:
        del module.forward

    return remove


def registry(module: Any, around: Around) -> Remove:
    """A `ModelHook` in diffusers' `HookRegistry`."""

    class Hook(ModelHook):
        def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
            return around(self.fn_ref.original_forward)(*args, **kwargs)

    hooks = HookRegistry.check_if_exists_or_initialize(module)
    hooks.register_hook(Hook(), "hook_points")
    return lambda: hooks.remove_hook("hook_points", recurse=False)


def subclass(module: Any, around: Around) -> Remove:
    """`module.__class__` is a subclass with its own `__call__`."""
    stock = type(module)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(lambda *a, **k: stock.__call__(self, *a, **k))(*args, **kwargs)

    module.__class__ = type(stock.__name__, (stock,), {"__call__": call})

    def remove() -> None:
        module.__class__ = stock

    return remove


def compiled_call(module: Any, around: Around) -> Remove:
    """`module._compiled_call_impl`, as `core/patching.py` does it."""
    patches = Patches()
    patches.around(module, around)
    return patches.undo


PLACES = (forward, registry, subclass, compiled_call)


def run(pipe: Any) -> torch.Tensor:
    return pipe(**CALL, generator=torch.Generator().manual_seed(0)).frames


def offload(pipe: Any) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def group_offload(pipe: Any) -> None:
    cpu = torch.device("cpu")
    pipe.transformer.enable_group_offload(cpu, cpu, offload_type="leaf_level")


def cast_layers(pipe: Any) -> None:
    pipe.transformer.enable_layerwise_casting(torch.float32, torch.float32)


def other_cache(pipe: Any) -> None:
    from diffusers import FirstBlockCacheConfig

    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))


CHANGES = (offload, group_offload, cast_layers, other_cache)


def counting(calls: list[int]) -> Any:
    """A wrapper of a call, which adds an entry to `calls` for each call."""

    def around(inner: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return inner(*args, **kwargs)

        return counted

    return around


def survives(place: Any, change: Any, order: str) -> str:
    """Whether our wrapper survives a change of the pipeline, before or after it is installed."""
    pipe, calls = tiny.tiny_wan(), list[int]()
    if order == "before":
        change(pipe)
    remove = place(pipe.transformer, counting(calls))
    if order == "after":
        change(pipe)
    run(pipe)
    found = run(pipe)
    seen = len(calls)
    remove()
    calls.clear()
    again = run(pipe)
    right = torch.allclose(found, again, atol=1e-5) and not calls
    return "yes" if seen == 2 * FORWARDS and right else f"no, {seen} of {2 * FORWARDS} seen"


def stays_one_graph(place: Any, whole: bool, order: str) -> str:
    """Whether `fullgraph=True` works and compiles once."""
    torch._dynamo.reset()
    counter = CompileCounter()
    pipe, calls = tiny.tiny_wan(), []

    def compile_it() -> None:
        way = "compile" if whole else "compile_repeated_blocks"
        getattr(pipe.transformer, way)(backend=counter, fullgraph=True)

    if order == "before":
        compile_it()
    place(pipe.transformer, counting(calls))
    if order == "after":
        compile_it()
    run(pipe)
    good = counter.frame_count == 1 and len(calls) == FORWARDS
    return "yes" if good else f"no, {counter.frame_count} graphs, {len(calls)} of {FORWARDS} seen"


def assigned(place: Any) -> str:
    """Whether `pipe.transformer = torch.compile(pipe.transformer)` before us works."""
    pipe, calls = tiny.tiny_wan(), []
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    place(pipe.transformer, counting(calls))
    run(pipe)
    return "yes" if len(calls) == FORWARDS else f"no, {len(calls)} of {FORWARDS} seen"


def copied(place: Any, duplicate: Any) -> str:
    """Whether a copy is a stock module."""
    pipe, calls = tiny.tiny_wan(), []
    place(pipe.transformer, counting(calls))
    pipe.transformer = duplicate(pipe.transformer)
    run(pipe)
    return "yes" if not calls else "no, the copy calls us"


def cell(check: Any, *args: Any) -> str:
    """The answer of a check; the kind of error if it fails."""
    try:
        return check(*args)
    except Exception as error:
        return f"no, {type(error).__name__}"


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows: list[tuple[str, Any, tuple[Any, ...]]] = [
        (f"{change.__name__} {order}", survives, (change, order))
        for change in CHANGES
        for order in ("before", "after")
    ]
    rows += [
        (f"{'whole' if whole else 'blocks'} compiled {order}", stays_one_graph, (whole, order))
        for whole in (True, False)
        for order in ("before", "after")
    ]
    rows.append(("torch.compile assigned before", assigned, ()))
    rows.append(("deepcopy is stock", copied, (copy.deepcopy,)))
    rows.append(("pickle is stock", copied, (lambda m: pickle.loads(pickle.dumps(m)),)))
    print("| situation | " + " | ".join(place.__name__ for place in PLACES) + " |")
    print("|---" * (len(PLACES) + 1) + "|")
    for name, check, args in rows:
        cells = [cell(check, place, *args) for place in PLACES]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
