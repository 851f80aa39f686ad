"""Measures a run at the denoiser's output: extrapolation errors, lost values, jumps, other texts.

Goes in: fresh predictions, and the cached values that a line goes through. Comes out: `StepMetrics`
once per step. When the next step begins, the measurements are copied to the host without waiting.
Only code that reads them waits. `LostValues` restores a value that is not finite from its
neighbours. `FiniteCheck` watches the latents of every run; it is read when the report is made. The
module decides nothing and has no formula of its own: `core/extrapolation.py` combines,
`core/drift.py` measures. Ours.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dit_accel.caching.host_copy import HostCopy
from dit_accel.caching.ranks import Ranks
from dit_accel.core import drift, extrapolation
from dit_accel.core.interceptor import Forward, ForwardCall, Interceptor
from dit_accel.core.session import Session

NEIGHBOURS = 3  # how many cached values restore a lost one
# How much faster the latents may move than in the last steps, relative to the size of the
# predictions. Two-step samplers reach 2 when the prediction reverses (research/LOG.md).
MAX_SPEED_RATIO = 3.0
SPEEDS = 3  # how many earlier steps a speed is compared with
Branch = tuple[str, str]  # role and branch


@dataclass(frozen=True)
class StepMetrics:
    """The measurements of one step; the error and the trust are None if there was no line."""

    computed: bool
    extrapolation_error: float | None  # of the line, relative; not finite if a prediction is not
    trust: float | None  # the share of the line's rise that was right
    jumped: bool  # whether the latents jumped after the step
    sums: Sequence[float]  # the sums of cached values that were read together with it


@dataclass(frozen=True)
class Pending:
    """The measurements of one step, which may not be on the host yet.

    Args:
        step: the step.
        computed: whether the step was computed.
        has_line: whether a line was compared with its prediction.
        places: which cached values the sums belong to, as `TensorStore.places` returns them.
        numbers: five numbers of the step, then the sums.
    """

    step: int
    computed: bool
    has_line: bool
    places: Sequence[tuple[Branch, int]]
    numbers: HostCopy


class TextWatch:
    """Finds out whether the text of a branch changed during a run, for instance in a callback."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.reset(Ranks())

    def reset(self, ranks: Ranks) -> None:
        """A run begins: forget the last one."""
        self._ranks = ranks
        # By branch: the text and its version. "" is the first branch of a step, whose name is not
        # known yet when the step begins.
        self._texts: dict[str, tuple[torch.Tensor | None, int]] = {}

    def changed(self, branch: str) -> bool:
        """Whether the text differs from that of the previous step."""
        found = self.difference(branch)
        return found if isinstance(found, bool) else bool(self._ranks.mean(found.float()))

    def difference(self, branch: str) -> bool | torch.Tensor:
        """The same, without a host sync: on the device, if values had to be compared.

        Pipelines pass the same tensor at every step; its version shows whether it was written to. A
        new tensor is compared by its values.
        """
        text, (before, version) = self.session.text, self._texts.get(branch, (None, 0))
        written = text._version if text is not None and not text.is_inference() else 0
        self._texts[branch] = text, written
        if text is None or before is None:
            return False
        if text is before:
            return bool(written != version)
        return text.shape != before.shape or (text != before).any()


class Monitor:
    """Measures a run. `measure` starts copying numbers to the host; `metrics` waits for them."""

    def __init__(self, session: Session) -> None:
        self.session, self.texts = session, TextWatch(session)
        self.reset()

    def reset(self, ranks: Ranks | None = None) -> None:
        """A run begins: forget the last one. `ranks` are those that compute the run together."""
        self.ranks = ranks or Ranks()
        self._latents: torch.Tensor | None = None  # at the previous step
        self._speeds: deque[float] = deque(maxlen=SPEEDS)  # of the last steps
        self._before: torch.Tensor | None = None  # the prediction of the previous step
        self._turn = 0.0  # its distance from the prediction before it
        self._guided: torch.Tensor | None = None  # this step's prediction, computed or not
        self.texts.reset(self.ranks)
        self.next_step()

    def next_step(self) -> None:
        """A step begins: forget the measurements of the previous one."""
        self._before = self._guided
        self._errors: list[torch.Tensor] = []  # line - fresh, by component
        self._rises: list[torch.Tensor] = []  # line - last value, by component
        self._guided = None
        self._computed = False  # whether this step is computed

    def compare(
        self, component: int, weight: float, fresh: torch.Tensor,
        line: Sequence[tuple[int, torch.Tensor]],
    ) -> None:  # fmt: skip
        """Compare a component of a fresh prediction with the line through cached values.

        Args:
            component: index of the component in the guided prediction; 0 begins a new prediction.
            weight: of the component.
            fresh: any shape.
            line: two steps and their values, latest first; empty where there is no line.
        """
        if line:
            steps, values = zip(*line, strict=True)
            times = [self.session.time_of(s) for s in steps]
            factors = extrapolation.lagrange_weights(times, self.session.time)
            value = extrapolation.weighted_sum(factors, values)
            self._errors.append(weight * (value - fresh))
            self._rises.append(weight * (value - values[0]))
        self.note_prediction(component, weight, fresh)
        self._computed = True

    def note_prediction(self, component: int, weight: float, value: torch.Tensor) -> None:
        """Note a component of the prediction that the sampler gets, computed or extrapolated."""
        part = weight * value
        self._guided = part if self._guided is None or component == 0 else self._guided + part

    def measure(
        self, step: int, sums: Sequence[torch.Tensor], places: Sequence[tuple[Branch, int]] = ()
    ) -> Pending:
        """Measure the step before `step`; start copying its numbers and the sums to the host."""
        like = sums[0] if sums else torch.zeros((), device=self.session.latents.device)
        error, trust = like.new_zeros(()), like.new_ones(())
        if self._errors and self._guided is not None:
            miss, rise = _sum(self._errors), _sum(self._rises)
            error = drift.relative_l2(miss, self._guided)
            trust = 1 - drift.projection_coefficient(miss, rise)
        measured_here = [error, trust, self._moved(step, like), *self._sizes(like), *sums]
        numbers = HostCopy(self.ranks.mean(torch.stack(measured_here)))
        return Pending(step - 1, self._computed, bool(self._errors), places, numbers)

    def metrics(self, pending: Pending) -> StepMetrics:
        """The measurements; waits until they are on the host. Call it in the order of the steps."""
        numbers = pending.numbers.tolist()
        (measured, trusted, *movement), sums = numbers[:5], numbers[5:]
        # A line through a cached value that is not finite is not finite either. The sums report
        # this already, so it is not reported as an extrapolation error too.
        valid = pending.has_line and (all(map(math.isfinite, sums)) or math.isfinite(measured))
        return StepMetrics(
            pending.computed, measured if valid else None, trusted if valid else None,
            self._jumped(*movement), sums,
        )  # fmt: skip

    def _jumped(self, way: float, size: float, turn: float) -> bool:
        """Whether the latents moved faster than the predictions explain.

        A prediction that jumps is no fault. It moves the latents by its size. A multistep sampler
        also moves them by the difference of the prediction from the previous one: it extrapolates
        the difference at this step, and corrects this step by it at the next one.

        Args:
            way: how far the latents moved per unit of the scheduler's time.
            size: norm of the prediction.
            turn: norm of its difference from the previous prediction.
        """
        largest = max(size, turn, self._turn)
        fastest, self._turn = max(self._speeds, default=0.0), turn
        speed, explained = way / (size or 1.0), way / (largest or 1.0)
        if math.isfinite(speed):
            self._speeds.append(speed)
        return fastest > 0 and not explained <= MAX_SPEED_RATIO * fastest

    def _sizes(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Norms of the step's prediction and of its difference from the previous one."""
        now, before = self._guided, self._before
        if now is None:
            return like.new_zeros(()), like.new_zeros(())
        size = torch.linalg.vector_norm(now, dtype=torch.float32)
        if before is None or before.shape != now.shape:
            return size, like.new_zeros(())
        return size, torch.linalg.vector_norm(now - before, dtype=torch.float32)

    def note_latents(self) -> None:
        """Note the latents as they are now."""
        self._latents = self.session.latents

    def _moved(self, step: int, like: torch.Tensor) -> torch.Tensor:
        """How far the latents moved in the last step, per unit of the scheduler's time."""
        latents, before = self.session.latents, self._latents
        gap = abs(self.session.time_of(step) - self.session.time_of(step - 1))
        if before is None or getattr(latents, "shape", None) != before.shape or not gap:
            return like.new_zeros(())
        return torch.linalg.vector_norm(latents - before, dtype=torch.float32) / gap


def load_kernels(like: torch.Tensor) -> None:
    """Run the operations that come between forwards once, on a few numbers.

    CUDA loads a kernel at its first use, which takes milliseconds. During a forward the device is
    busy meanwhile; between two forwards it would have to wait.
    """
    if like.is_cuda:
        few = like.flatten()[:64]
        miss = extrapolation.weighted_sum([0.5, 0.5], [few, few]) - few
        miss = torch.stack([0.5 * miss, miss]).sum(0)
        norm = torch.linalg.vector_norm(few, dtype=torch.float32)
        total = few.sum(dtype=torch.float32)
        error, trust = drift.relative_l2(miss, few), drift.projection_coefficient(miss, few)
        torch.where(few.isfinite(), few, miss.nan_to_num(0.0, 0.0, 0.0))
        HostCopy(torch.stack([error, trust, norm / 2, total]))


class LostValues:
    """Drops cached values that are not finite, and restores them at the next computed step."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._lost: dict[Branch, dict[int, torch.Tensor]] = {}  # by step

    def __bool__(self) -> bool:
        return bool(self._lost)

    def reset(self) -> None:
        """A run begins: forget the last one."""
        self._lost.clear()

    def drop(
        self, cached: Mapping[Branch, MutableMapping[int, torch.Tensor]],
        places: Iterable[tuple[Branch, int]], sums: Sequence[float],
    ) -> bool:  # fmt: skip
        """Drop the values whose sum is not finite. Returns whether there were any.

        Args:
            cached: values by role and branch, then by step.
            places: role, branch and step of each sum.
            sums: of the values at these places.
        """
        lost = [at for at, total in zip(places, sums, strict=True) if not math.isfinite(total)]
        for key, step in lost:
            if step in cached.get(key, ()):  # else it was freed after it was measured
                self._lost.setdefault(key, {})[step] = cached[key][step]
                del cached[key][step]
        return bool(lost)

    def restore(self, cached: MutableMapping[int, torch.Tensor]) -> None:
        """Restore the dropped values of the current branch. The numbers in them that are not finite
        are replaced by the polynomial through the neighbouring values."""
        session = self.session
        for step, lost in self._lost.pop((session.role, session.branch), {}).items():
            at = session.time_of(step)
            near = sorted(cached, key=lambda s: abs(session.time_of(s) - at))[:NEIGHBOURS]
            if len(near) > 1:
                factors = extrapolation.lagrange_weights([session.time_of(s) for s in near], at)
                near_it = extrapolation.weighted_sum(factors, [cached[s] for s in near])
                cached[step] = torch.where(lost.isfinite(), lost, near_it)


class FiniteCheck(Interceptor):
    """Watches the latents of a run. It wraps the engine, so it sees the engine's outputs."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._sums: list[torch.Tensor] = []  # of the latents, one per step, on the device
        self._last: torch.Tensor | None = None  # of the last step's predictions
        self._read: list[float] = []

    def run_begins(self, num_steps: int | None) -> None:
        self._sums, self._last, self._read = [], None, []

    def step_begins(self, step: int) -> None:
        self._sums.append(_total(self.session.latents))

    def around(self, call: ForwardCall, forward: Forward) -> Any:
        output = forward(call)
        is_last = self.session.step + 1 == self.session.num_steps
        # The first entry is None if the forward only filled the transformer's own cache.
        if is_last and isinstance(output[0], torch.Tensor):
            found = _total(output[0])
            self._last = found if self._last is None else self._last + found
        return output

    def notes(self) -> tuple[str, ...]:
        """A note if a value was not finite. The sums are read from the device once per run."""
        sums = [*self._sums, *([] if self._last is None else [self._last])]
        if len(sums) != len(self._read):
            self._read = torch.stack(sums).tolist()
        steps = self._read[: len(self._sums)]
        broken = next((step for step, total in enumerate(steps) if not math.isfinite(total)), None)
        if broken is not None:
            return (f"The latents were not finite from step {broken} on: the clip is broken.",)
        if not all(map(math.isfinite, self._read)):
            return ("The last step's prediction was not finite: the clip is broken.",)
        return ()


def _total(value: torch.Tensor) -> torch.Tensor:
    """The sum, 0-dimensional float32: finite if every number of the value is."""
    return value.detach().sum(dtype=torch.float32)


def _sum(values: Sequence[torch.Tensor]) -> torch.Tensor:
    return values[0] if len(values) == 1 else torch.stack(list(values)).sum(0)
