"""Counts what a run really computes with any method: FLOPs by step, and calls by place.

In: a pipeline, before a method is installed. Out: FLOPs by step; calls by place and step.
Knows: it wraps the `forward` of the large children of each block (attention, feed-forward). They
are below every cache, so it counts only calls that are really computed. It changes no value, and
restores everything.
Source: ours.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Self

import torch

from dit_accel.core.families import family_of, transformers_of
from dit_accel.core.flops import FlopMeter
from dit_accel.core.patching import is_compiled


class Probe:
    """Counts FLOPs and calls. Enter it before the method, and pass it as a listener of the loop."""

    def __init__(self, pipe: Any) -> None:
        self._modules = transformers_of(pipe, family_of(pipe))
        self._places = list(places(pipe))
        self._undo = ExitStack()
        self._meter, self._metering = FlopMeter(), ExitStack()
        self._compiled = any(_is_compiled(module) for module in self._modules.values())
        self._step = 0
        self.calls: dict[str, list[int]] = {name: [0] for name, _ in self._places}
        self._flops = [0]

    @property
    def flops(self) -> list[int] | None:
        """FLOPs of the denoiser by step; None if compiled graphs hide them."""
        return None if self._compiled else self._flops[: self._step]

    @property
    def computed(self) -> dict[str, list[int]]:
        """How often each place was computed, by step, summed over the branches of guidance."""
        return {name: counts[: self._step] for name, counts in self.calls.items()}

    def __enter__(self) -> Self:
        for name, module in self._places:
            self._wrap(name, module)
        return self

    def __exit__(self, *_: object) -> None:
        self._metering.close()
        self._undo.close()

    def loop_begins(self) -> None:
        """The loop begins. Earlier calls (warm-up) do not count. From here on all FLOPs count, also
        a method's own: the sampler has none."""
        self._metering.close()
        self._meter = FlopMeter()
        if not self._compiled:
            self._metering.enter_context(self._meter)
        self._step = 0
        self._flops = [0]
        self.calls = {name: [0] for name in self.calls}

    def steps_done(self, done: int) -> None:
        """This number of steps is done."""
        self._flops[self._step] = self._meter.flops - sum(self._flops[: self._step])
        self._step = done
        for counts in (self._flops, *self.calls.values()):
            counts.extend([0] * (done + 1 - len(counts)))

    def _wrap(self, name: str, module: torch.nn.Module) -> None:
        own = "forward" in vars(module)
        inner: Callable[..., Any] = module.forward

        @functools.wraps(inner)
        def forward(*args: Any, **kwargs: Any) -> Any:
            self.calls[name][self._step] += 1
            return inner(*args, **kwargs)

        module.forward = forward
        self._undo.callback(_restore, module, inner if own else None)


def places(pipe: Any) -> Iterator[tuple[str, torch.nn.Module]]:
    """The large children of every block, those with a matrix in them, by their path."""
    family = family_of(pipe)
    for component, transformer in transformers_of(pipe, family).items():
        prefix = "" if component == "transformer" else f"{component}."
        for list_name in family.blocks:
            for index, block in enumerate(getattr(transformer, list_name)):
                for name, child in block.named_children():
                    if any(isinstance(part, torch.nn.Linear) for part in child.modules()):
                        yield f"{prefix}{list_name}.{index}.{name}", child


def _is_compiled(module: torch.nn.Module) -> bool:
    return any(is_compiled(part) for part in module.modules())


def _restore(module: torch.nn.Module, forward: Any) -> None:
    if forward is None:
        del module.forward
    else:
        module.forward = forward
