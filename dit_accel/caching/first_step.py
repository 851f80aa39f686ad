"""Watches a run's first step, if the pipeline does not report how it weighs its branches.

Goes in: the components of the step's prediction, the noise, and the guided prediction that the
scheduler gets. Comes out: a `FirstStep`, which measures the weights. The scheduler's `step` is
wrapped for one call. The module decides nothing; `caching/executor.py` uses it for the controller.
Ours; there is no source.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from dit_accel.core.guidance import FirstStep, Main
from dit_accel.core.patching import Patches


class FirstStepWatch:
    """Collects what the first step of a run shows. `watching` is True until `reset`."""

    def __init__(self) -> None:
        self._tap = Patches()
        self.reset()

    def reset(self) -> None:
        """Stop watching, and restore the scheduler."""
        self._tap.undo()
        self.watching = False
        self.components: list[torch.Tensor] = []  # stored here too: the store may quantize its own
        self.noise: torch.Tensor | None = None
        self._guided: torch.Tensor | None = None

    def begin(self, scheduler: Any) -> None:
        """Watch the run that begins now."""
        self._tap.wrap(scheduler, "step", self._listen)
        self.watching = True

    def seen(self, main: Main | None = None, *, as_differences: bool) -> FirstStep:
        """What the step showed. Only the first role is used: roles do not guide each other.

        Args:
            main: see `FirstStep`; None: the sampler gets all of a component.
            as_differences: whether to subtract the first component from the others here, because
                they were stored as whole predictions.
        """
        first, *others = self.components
        if as_differences:
            others = [other - first for other in others]
        return FirstStep((first, *others), self._guided, self.noise, main)

    def _listen(self, inner: Any) -> Any:
        """Wrap the scheduler's `step` for one call: its first argument is the guided prediction."""

        @functools.wraps(inner)  # pipelines inspect its signature
        def step(model_output: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self._tap.undo()
            self._guided = model_output
            return inner(model_output, *args, **kwargs)

        return step
