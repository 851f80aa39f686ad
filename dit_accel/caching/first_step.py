"""Watches a run's first step, where the pipeline does not say how it weighs its branches.

Goes in: the components of the step's predictions, the noise, and what the scheduler gets. Comes
out: a `FirstStep`, which measures the weights. The scheduler is wrapped for one call. It decides
nothing; `caching/executor.py` asks it, for the controller. Ours; there is no source.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from dit_accel.core.guidance import FirstStep, Main
from dit_accel.core.patching import Patches


class FirstStepWatch:
    """What the first step of a run shows; `watching` until it was seen."""

    def __init__(self) -> None:
        self._tap = Patches()
        self.reset()

    def reset(self) -> None:
        """Watch nothing, and leave the scheduler as it was."""
        self._tap.undo()
        self.watching = False
        self.components: list[torch.Tensor] = []  # the store may pack its own
        self.noise: torch.Tensor | None = None
        self._guided: torch.Tensor | None = None

    def begin(self, scheduler: Any) -> None:
        """Watch the run that begins now."""
        self._tap.wrap(scheduler, "step", self._listen)
        self.watching = True

    def seen(self, main: Main | None = None, *, as_differences: bool) -> FirstStep:
        """What the step showed; roles do not guide each other, so the first one speaks.

        Args:
            main: as of `FirstStep`; None: the sampler gets all of a component.
            as_differences: whether the components are whole predictions, of which each further one
                is yet to become its difference from the first.
        """
        first, *others = self.components
        if as_differences:
            others = [other - first for other in others]
        return FirstStep((first, *others), self._guided, self.noise, main)

    def _listen(self, inner: Any) -> Any:
        """The scheduler's step, until it was called once: it gets the guided prediction."""

        @functools.wraps(inner)  # pipelines look at its arguments
        def step(model_output: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self._tap.undo()
            self._guided = model_output
            return inner(model_output, *args, **kwargs)

        return step
