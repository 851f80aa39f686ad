"""Rows of caches that need no calibration: Spectrum, EasyCache and DiCache.

In: a pipeline and a number. Out: the pipeline with that cache; it is restored afterwards.
Knows: Spectrum decides before the run. EasyCache decides at the denoiser's output, and DiCache
after the first block. Both decide at every step, with one host sync. The first branch decides for
all branches.
Source: Spectrum (arXiv 2603.01623), `planning/spectrum.py`; EasyCache (2507.02860); DiCache
(2508.17356). Our reading of the papers and of published code. Our differences: EasyCache and
DiCache always compute the first fifth of the steps (10 of 50 in the papers), and the share γ of
DiCache's two anchors is from 1 to 1.5.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from dit_accel.core.families import Family, family_of, transformers_of
from dit_accel.core.interceptor import Forward, ForwardCall, Interceptor
from dit_accel.core.patching import Patches
from dit_accel.core.session import Session
from dit_accel.evaluation.methods.row import (
    Method,
    MethodContext,
    MethodHandle,
    Number,
    fewer,
    steps_row,
)
from dit_accel.handle import accelerate
from dit_accel.planning.spectrum import spectrum_plan

FIRST_SHARE = 0.2  # of the steps, which are always computed
GAMMA = (1.0, 1.5)


class _StepDecision(Interceptor):
    """Decides at the first branch of each step whether the step is reused, for all branches.

    The subclass gives the `drift` of each step. Steps are reused while the sum of drifts since the
    last computed step is below the threshold.
    """

    def __init__(self, session: Session, threshold: float) -> None:
        self.session, self.threshold = session, threshold
        self.run_begins(None)

    def run_begins(self, num_steps: int | None) -> None:
        """See `Interceptor`."""
        self._num_steps, self._added, self._decided = num_steps, 0.0, False
        self.reuses = False  # whether this step is reused
        self.branches: dict[tuple[str, str], dict[str, Any]] = {}  # stored values by branch

    def step_begins(self, step: int) -> None:
        """See `Interceptor`."""
        self._decided = False

    @property
    def stored(self) -> dict[str, Any]:
        """The stored values of the running branch."""
        session = self.session
        return self.branches.setdefault((session.transformer, session.branch), {})

    def decide(self, drift: torch.Tensor | None) -> None:
        """Decide for a step, at its first branch.

        Args:
            drift: the drift of this step, 0-dimensional; None: unknown.
        """
        if self._decided:
            return
        self._decided, step, n = True, self.session.step, self._num_steps or 0
        forced = step < round(FIRST_SHARE * n) or step >= n - 1 or drift is None
        self._added = 0.0 if forced else self._added + float(drift or 0.0)
        self.reuses = not forced and self._added < self.threshold
        if not self.reuses:
            self._added = 0.0

    @property
    def is_first(self) -> bool:
        """Whether no branch of this step has been seen."""
        return not self._decided


class EasyCache(_StepDecision):
    """Reuses output minus input. The drift is the change of the input, times the rate at which the
    output changed with the input between the last two computed steps."""

    def around(self, call: ForwardCall, forward: Forward) -> Any:
        """See `Interceptor`."""
        stored, latents, first = self.stored, call.latents, self.is_first
        if first:
            drift = None
            if "rate" in stored:
                moved = _size(latents - stored["input"])
                drift = stored["rate"] * moved / _size(stored["output"])
            self.decide(drift)
            stored["input"] = latents
        if self.reuses and "residual" in stored:
            return stored["form"](latents + stored["residual"])
        made = forward(call)
        self._keep(stored, latents, made[0], first)
        stored["form"] = partial(_in_form, made)
        return made

    def _keep(
        self, stored: dict[str, Any], latents: torch.Tensor, output: torch.Tensor, first: bool
    ) -> None:
        if output.shape != latents.shape:
            raise ValueError(
                f"easycache: output has shape {tuple(output.shape)}, input {tuple(latents.shape)}; "
                "accepted: equal shapes"
            )
        stored["residual"] = output - latents
        if first:
            before, at = stored.get("output"), stored.get("computed_input")
            if before is not None and at is not None:
                stored["rate"] = _size(output - before) / _size(latents - at)
            stored["output"], stored["computed_input"] = output, latents


def _in_form(example: Any, value: torch.Tensor) -> Any:
    return (value,) if isinstance(example, tuple) else type(example)(value)


def _size(value: torch.Tensor) -> torch.Tensor:
    return value.abs().mean()


class DiCache(_StepDecision):
    """Runs the first block at every step. The drift is the relative change of its output. The
    residual of all blocks is extrapolated from the last two computed ones, as the first block's
    residual is."""

    def wrap(self, index: int, last: int, family: Family, inner: Any) -> Any:
        """A block's call. The first block decides, and may return the output of all blocks."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            name, place = family.hidden
            tokens = kwargs[name] if name in kwargs else args[place]
            if index and self.reuses:
                return tokens
            if not index:
                return self._probe(tokens, inner, args, kwargs, alone=last == 0)
            output = inner(*args, **kwargs)
            if index == last:
                self._keep(output)
            return output

        return forward

    def _probe(self, tokens: Any, inner: Any, args: Any, kwargs: Any, *, alone: bool) -> Any:
        stored, probe = self.stored, inner(*args, **kwargs)
        before, drift = stored.get("probe"), None
        if before is not None and before.shape == probe.shape:
            drift = _size(probe - before) / _size(before)
        self.decide(drift)
        stored["probe"], stored["entered"], stored["shallow"] = probe, tokens, probe - tokens
        if self.reuses:
            return tokens + self._residual(stored)
        if alone:
            self._keep(probe)
        return probe

    def _keep(self, output: torch.Tensor) -> None:
        stored = self.stored
        residual = output - stored["entered"]
        stored["anchors"] = [*stored.get("anchors", []), (residual, stored["shallow"])][-2:]

    @staticmethod
    def _residual(stored: dict[str, Any]) -> torch.Tensor:
        anchors = stored["anchors"]
        if len(anchors) < 2:
            residual: torch.Tensor = anchors[-1][0]
            return residual
        (older, older_shallow), (newer, newer_shallow) = anchors
        moved = _size(stored["shallow"] - older_shallow)
        gamma = (moved / _size(newer_shallow - older_shallow).clamp_min(1e-12)).clamp(*GAMMA)
        combined: torch.Tensor = older + gamma * (newer - older)
        return combined


# --- rows ---


@contextmanager
def _spectrum(pipe: Any, number: Number, context: MethodContext) -> Iterator[MethodHandle]:
    plan = spectrum_plan(context.clip.steps, fewer(number, context, "spectrum"))
    with accelerate(pipe, plan=plan) as handle:
        yield MethodHandle(report=handle.report)


@contextmanager
def _easycache(pipe: Any, number: Number, context: MethodContext) -> Iterator[MethodHandle]:
    patches, session = Patches(), Session(pipe, transformers_of(pipe, family_of(pipe)))
    try:
        session.install(patches)
        session.interceptors = [EasyCache(session, float(number or 0.0))]
        yield MethodHandle()
    finally:
        patches.undo()


@contextmanager
def _dicache(pipe: Any, number: Number, context: MethodContext) -> Iterator[MethodHandle]:
    family = family_of(pipe)
    if family.text is not None:
        raise ValueError(f"pipe is of {family.name}; accepted: families whose blocks return tokens")
    patches, session = Patches(), Session(pipe, transformers_of(pipe, family))
    cache = DiCache(session, float(number or 0.0))
    try:
        session.install(patches)
        session.interceptors = [cache]
        for module in session.transformers.values():
            blocks = [block for group in family.blocks for block in getattr(module, group)]
            for index, block in enumerate(blocks):
                wrap = partial(cache.wrap, index, len(blocks) - 1, family)
                patches.around(block, wrap, callers=(module,))
        yield MethodHandle()
    finally:
        patches.undo()


ONLINE_METHODS: tuple[Method, ...] = (
    steps_row("spectrum", "Spectrum at the output: Chebyshev forecast, growing windows", _spectrum),
    Method("easycache", "EasyCache: reuse by the rate at which output changes with input",
           _easycache, "threshold", 0.05, (0.02, 0.05, 0.1, 0.2, 0.4)),
    Method("dicache", "DiCache: reuse by the first block's drift, two anchors combined",
           _dicache, "threshold", 0.1, (0.05, 0.1, 0.2, 0.4, 0.8)),
)  # fmt: skip
