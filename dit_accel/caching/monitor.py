"""What is found on the way at the denoiser's output: surprises, losses, jumps and other texts.

At every computed step the line through the last two predictions is compared with the fresh one: the
*surprise*, of the guided prediction. It stays on the device until the next step begins, and is read
there together with whether all that is kept is finite and how fast the latents moved: one transfer
a step.

A kept value that is not finite is put back from its neighbours, the fresh one among them.

Decides nothing: `caching/executor.py` tells a course what was found. Holds no formula:
core/extrapolation.py
combines, core/drift.py measures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import torch

from dit_accel.core import drift, extrapolation
from dit_accel.core.session import Session

NEIGHBOURS = 3  # kept values that a lost one is put back from
MAX_SPEED_RATIO = 3.0  # times as fast as in the step before: no sampler moves its latents so
Branch = tuple[str, str]  # role and branch


@dataclass(frozen=True)
class StepMetrics:
    """Of one step: was it computed; its surprise and lean, None where there was no line (or not
    finite where a prediction was not); did the latents jump after it; the sums that were asked for.
    """

    computed: bool
    extrapolation_error: float | None
    lean: float | None
    jumped: bool
    sums: Sequence[float]


class Monitor:
    """Measures a run as it goes; reads the device once a step, when it is asked to."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.forget()

    def forget(self) -> None:
        """A run begins."""
        self._latents: torch.Tensor | None = None  # at the step before
        self._speed: float | None = None
        self._texts: dict[str, tuple[torch.Tensor | None, int]] = {}  # and how often it was
        # written to, by branch; "" is a step's first
        self.next_step()

    def next_step(self) -> None:
        """What was measured is of the step before."""
        self._missed: list[torch.Tensor] = []  # how far lines missed it, part by part
        self._rise: list[torch.Tensor] = []  # how far these lines went from the last value
        self._size: torch.Tensor | None = None  # its guided prediction, where computed

    def text_changed(self, branch: str) -> bool:
        """Whether the text is another than before: pipelines hand in the same tensor at every step;
        one that is not the same is compared, and one that was written to since is another."""
        text, (before, version) = self.session.text, self._texts.get(branch, (None, 0))
        written = text._version if text is not None and not text.is_inference() else 0
        self._texts[branch] = text, written
        if text is None or before is None:
            return False
        if text is before:
            return written != version
        return text.shape != before.shape or not torch.equal(text, before)

    def compare(
        self,
        part: int,
        weight: float,
        fresh: torch.Tensor,
        line: Sequence[tuple[int, torch.Tensor]],
    ) -> None:
        """A part of a fresh prediction, and the kept values that a line goes through, by step.

        Args:
            part: of the guided prediction; the first begins a new one.
            weight: of this part in it.
            fresh: any shape.
            line: two steps and their values, latest first; none where there is no line.
        """
        if line:
            steps, values = zip(*line, strict=True)
            factors = extrapolation.lagrange_weights(
                [self.session.time_of(s) for s in steps], self.session.time
            )
            read = extrapolation.weighted_sum(factors, values)
            self._missed.append(weight * (read - fresh))
            self._rise.append(weight * (read - values[0]))
        sized = weight * fresh
        self._size = sized if self._size is None or part == 0 else self._size + sized

    def read(self, step: int, sums: Sequence[torch.Tensor]) -> StepMetrics:
        """What was found of the step before this one: one read of the device for all there is.

        Args:
            step: the one that begins.
            sums: further numbers to read, on the device.
        """
        like = sums[0] if sums else torch.zeros((), device=self.session.latents.device)
        missed, lean = like.new_zeros(()), like.new_ones(())
        if self._missed and self._size is not None:
            off, rise = _sum(self._missed), _sum(self._rise)
            missed = drift.relative_l2(off, self._size)
            lean = 1 - drift.projection_coefficient(off, rise)
        read = torch.stack([missed, lean, self._moved(step, like), *sums]).tolist()
        extrapolation_error, leant, speed = read[:3]
        whole = all(map(math.isfinite, read[3:]))
        told = self._missed and (whole or math.isfinite(extrapolation_error))
        jumped = bool(self._speed) and not speed <= MAX_SPEED_RATIO * (self._speed or 0.0)
        self._speed = speed
        return StepMetrics(
            self._size is not None, extrapolation_error if told else None, leant if told else None,
            jumped, read[3:],
        )  # fmt: skip

    def see(self) -> None:
        """The latents as they are now."""
        self._latents = self.session.latents

    def _moved(self, step: int, like: torch.Tensor) -> torch.Tensor:
        """How fast the latents moved over the last step, in the scheduler's time."""
        latents, before = self.session.latents, self._latents
        gap = abs(self.session.time_of(step) - self.session.time_of(step - 1))
        if before is None or not isinstance(latents, torch.Tensor) or not gap:
            return like.new_zeros(())
        if latents.shape != before.shape:
            return like.new_zeros(())
        return torch.linalg.vector_norm(latents - before, dtype=torch.float32) / gap


class LostValues:
    """Kept values that were not finite: dropped, and put back where a fresh one is there."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._steps: dict[Branch, list[int]] = {}

    def __bool__(self) -> bool:
        return bool(self._steps)

    def forget(self) -> None:
        """A run begins."""
        self._steps.clear()

    def drop(
        self,
        kept: Mapping[Branch, MutableMapping[int, torch.Tensor]],
        places: Iterable[tuple[Branch, int]],
        sums: Sequence[float],
    ) -> bool:
        """Drop what has a sum that is not finite; whether there was any.

        Args:
            kept: values by role and branch, by step.
            places: of these values.
            sums: of the values there.
        """
        spoilt = [at for at, total in zip(places, sums, strict=True) if not math.isfinite(total)]
        for key, step in spoilt:
            del kept[key][step]
            self._steps.setdefault(key, []).append(step)
        return bool(spoilt)

    def put_back(self, kept: MutableMapping[int, torch.Tensor]) -> None:
        """Those of the branch that runs: on the polynomial through their nearest neighbours."""
        session = self.session
        for step in self._steps.pop((session.role, session.branch), []):
            at = session.time_of(step)
            near = sorted(kept, key=lambda s: abs(session.time_of(s) - at))[:NEIGHBOURS]
            if len(near) > 1:
                factors = extrapolation.lagrange_weights([session.time_of(s) for s in near], at)
                kept[step] = extrapolation.weighted_sum(factors, [kept[s] for s in near])


def _sum(values: Sequence[torch.Tensor]) -> torch.Tensor:
    return values[0] if len(values) == 1 else torch.stack(list(values)).sum(0)
