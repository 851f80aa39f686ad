"""Measures a run at the denoiser's output: extrapolation errors, lost values, jumps, other texts.

Goes in: fresh predictions, and the cached values that a line goes through. Comes out: `StepMetrics`
once a step. What is measured is copied to the host when the next step begins, without waiting; who
needs it waits, then or later. `LostValues` restores a value that is not finite from its neighbours.
`FiniteCheck` watches the latents of every run, and is read when the report is asked for. It decides
nothing, and holds no formula: `core/extrapolation.py` combines, `core/drift.py` measures. Ours.
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

NEIGHBOURS = 3  # cached values that a lost one is restored from
# How much faster than in the last steps the latents may move, for the size of the predictions that
# move them: samplers of two steps reach 2 where a prediction turns round (research/LOG.md).
MAX_SPEED_RATIO = 3.0
SPEEDS = 3  # steps that are compared with
Branch = tuple[str, str]  # role and branch


@dataclass(frozen=True)
class StepMetrics:
    """What was measured of one step; None where there was no line."""

    computed: bool
    extrapolation_error: float | None  # of the line, relative; not finite where a prediction is not
    trust: float | None  # share of the line's rise that was right
    jumped: bool  # whether the latents jumped after it
    sums: Sequence[float]  # the numbers that were to be read with it


@dataclass(frozen=True)
class Pending:
    """What was measured of one step, and may not be on the host yet.

    Args:
        step: of the run.
        computed, has_line: whether it was, and whether a line was compared with it.
        places: where the values are whose sums were taken with it, as of `TensorStore.places`.
        numbers: five of the step, then the sums.
    """

    step: int
    computed: bool
    has_line: bool
    places: Sequence[tuple[Branch, int]]
    numbers: HostCopy


class Monitor:
    """Measures a run: `measure` begins each host sync, `metrics` ends it."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.reset()

    def reset(self, ranks: Ranks | None = None) -> None:
        """A run begins: forget the last one; `ranks` compute it together."""
        self.ranks = ranks or Ranks()
        self._latents: torch.Tensor | None = None  # at the step before
        self._speeds: deque[float] = deque(maxlen=SPEEDS)  # of the last steps
        self._before: torch.Tensor | None = None  # the prediction of the step before
        self._turn = 0.0  # how far it was from the one before it
        self._guided: torch.Tensor | None = None  # this step's, computed or not
        # The text and its version, by branch; "" is the first branch of a step, before it is known.
        self._texts: dict[str, tuple[torch.Tensor | None, int]] = {}
        self.next_step()

    def next_step(self) -> None:
        """A step begins: forget what was measured of the one before."""
        self._before = self._guided
        self._errors: list[torch.Tensor] = []  # line - fresh, by component
        self._rises: list[torch.Tensor] = []  # line - last value, by component
        self._guided = None
        self._computed = False  # whether it is

    def text_changed(self, branch: str) -> bool:
        """Whether the text is another one than at the step before.

        Pipelines pass the same tensor at every step: it is another text if it was written to since.
        A new tensor is compared by its values.
        """
        text, (before, version) = self.session.text, self._texts.get(branch, (None, 0))
        written = text._version if text is not None and not text.is_inference() else 0
        self._texts[branch] = text, written
        if text is None or before is None:
            return False
        if text is before:
            return written != version
        if text.shape != before.shape:
            return True
        return bool(self.ranks.mean((text != before).any().float()))

    def compare(
        self, component: int, weight: float, fresh: torch.Tensor,
        line: Sequence[tuple[int, torch.Tensor]],
    ) -> None:  # fmt: skip
        """Compare a component of a fresh prediction with the line through cached values.

        Args:
            component, weight: of the guided prediction; the first one begins a new prediction.
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

    @property
    def computed(self) -> bool:
        """Whether the step was computed."""
        return self._computed

    def measure(
        self, step: int, sums: Sequence[torch.Tensor], places: Sequence[tuple[Branch, int]] = ()
    ) -> Pending:
        """Measure the step before `step`, and copy that and further numbers to the host."""
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
        """What was measured, once it is on the host; in the order of the steps."""
        numbers = pending.numbers.tolist()
        (measured, trusted, *movement), sums = numbers[:5], numbers[5:]
        # Through a cached value that is not finite no line is finite: that is reported once, by the
        # sums, and not as an error of the prediction too.
        valid = pending.has_line and (all(map(math.isfinite, sums)) or math.isfinite(measured))
        return StepMetrics(
            pending.computed, measured if valid else None, trusted if valid else None,
            self._jumped(*movement), sums,
        )  # fmt: skip

    def _jumped(self, way: float, size: float, turn: float) -> bool:
        """Whether the latents moved faster than predictions move them.

        A prediction that jumps is no fault. It moves the latents by its size, and by its difference
        from the one before: samplers of several steps extrapolate that, and correct the last step
        by it one step later.

        Args:
            way: of the latents, in the scheduler's time.
            size, turn: of the prediction, and of its difference from the one before it.
        """
        largest = max(size, turn, self._turn)
        usual, self._turn = max(self._speeds, default=0.0), turn
        speed, explained = way / (size or 1.0), way / (largest or 1.0)
        if math.isfinite(speed):
            self._speeds.append(speed)
        return usual > 0 and not explained <= MAX_SPEED_RATIO * usual

    def _sizes(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Norms of the step's prediction, and of its difference from the one before it."""
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
        """How fast the latents moved over the last step, in the scheduler's time."""
        latents, before = self.session.latents, self._latents
        gap = abs(self.session.time_of(step) - self.session.time_of(step - 1))
        if before is None or getattr(latents, "shape", None) != before.shape or not gap:
            return like.new_zeros(())
        return torch.linalg.vector_norm(latents - before, dtype=torch.float32) / gap


def load_kernels(like: torch.Tensor) -> None:
    """Run on a few numbers what a run does between its forwards.

    CUDA loads a kernel when it is used first, which takes milliseconds. They are exposed where the
    device waits for the host, and hidden while it computes a forward.
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
    """Cached values that were not finite: dropped, and restored at the next computed step."""

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
        """Drop the values whose sum is not finite; returns whether there was any.

        Args:
            cached: values by role and branch, by step.
            places, sums: where these values are, and their sums.
        """
        lost = [at for at, total in zip(places, sums, strict=True) if not math.isfinite(total)]
        for key, step in lost:
            if step in cached.get(key, ()):  # else it was freed since it was measured
                self._lost.setdefault(key, {})[step] = cached[key][step]
                del cached[key][step]
        return bool(lost)

    def restore(self, cached: MutableMapping[int, torch.Tensor]) -> None:
        """Restore those of the current branch: what is not finite in them, by the polynomial
        through their neighbours."""
        session = self.session
        for step, lost in self._lost.pop((session.role, session.branch), {}).items():
            at = session.time_of(step)
            near = sorted(cached, key=lambda s: abs(session.time_of(s) - at))[:NEIGHBOURS]
            if len(near) > 1:
                factors = extrapolation.lagrange_weights([session.time_of(s) for s in near], at)
                near_it = extrapolation.weighted_sum(factors, [cached[s] for s in near])
                cached[step] = torch.where(lost.isfinite(), lost, near_it)


class FiniteCheck(Interceptor):
    """Watches the latents of a run. It stands outside of what caches: it sees what that gave."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._sums: list[torch.Tensor] = []  # of the latents, one a step, on the device
        self._last: torch.Tensor | None = None  # of the last step's predictions
        self._read: list[float] = []

    def run_begins(self, num_steps: int | None) -> None:
        self._sums, self._last, self._read = [], None, []

    def step_begins(self, step: int) -> None:
        self._sums.append(_total(self.session.latents))

    def around(self, call: ForwardCall, forward: Forward) -> Any:
        output = forward(call)
        is_last = self.session.step + 1 == self.session.num_steps
        if is_last and isinstance(output[0], torch.Tensor):  # None: it only filled its own cache
            found = _total(output[0])
            self._last = found if self._last is None else self._last + found
        return output

    def notes(self) -> tuple[str, ...]:
        """Where a value was not finite; read from the device once a run."""
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
    """0-dimensional float32, finite where all of the value is."""
    return value.detach().sum(dtype=torch.float32)


def _sum(values: Sequence[torch.Tensor]) -> torch.Tensor:
    return values[0] if len(values) == 1 else torch.stack(list(values)).sum(0)
