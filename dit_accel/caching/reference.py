"""Records the run of an uncached reference clip, so that later runs can learn from it.

Goes in: a pipeline; its next call makes the reference. Comes out: the Gram matrix of the run's
predictions. The pipeline's results do not change. If the run is timed, the inner products are
computed after the loop's clock has stopped, and their seconds are counted separately. It knows when
a run is recorded; `caching/recording.py` records it, and `RunController.learn_from` learns from it.
Ours; there is no source.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dit_accel.caching.controller import RunController
from dit_accel.caching.executor import PlanExecutor
from dit_accel.caching.policy import Policy
from dit_accel.caching.recording import NotPlanned, WholeRun
from dit_accel.core.families import family_of, transformers_of
from dit_accel.core.interceptor import RunInfo
from dit_accel.core.measure import synchronise
from dit_accel.core.patching import Patches
from dit_accel.core.session import Session
from dit_accel.planning.learned import MOST_ROWS
from dit_accel.planning.selection import Target


class ReferenceRun(RunController):
    """Computes every step of a run and records it. A `Controller`, and a `StepListener`.

    If it listens to a timed loop, it computes the inner products after the clock has stopped. Else
    they are computed at the end of the last forward.
    """

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe, family_of(pipe), None, Target(speedup=1.0))
        self.parts = self._parts  # the pipeline's parts during the recorded run
        self.problem = "was not made"  # why there is no recording
        self.seconds = 0.0  # spent on recording, inside of the loop's seconds
        self.seconds_after = 0.0  # spent on the inner products, after the loop
        self._listens = False

    def _start(self, run: RunInfo) -> Policy:
        began = time.perf_counter()
        try:
            return super()._start(run)
        except ValueError as error:  # nothing is recorded, but the clip is still made
            return self._not_planned(run.num_steps or 0, str(error))
        finally:
            self.parts = self._parts
            self.seconds = time.perf_counter() - began

    def _not_planned(self, steps: int, reason: str) -> NotPlanned:
        self.problem, self._recording = f"was not recorded: {reason}", None
        return super()._not_planned(steps, reason)

    def _policy(self, run: RunInfo, weights: tuple[float, ...]) -> Policy:
        sampler = self._sampler(run, weights)
        if self._caches or sampler.num_rows > MOST_ROWS:
            long = sampler.num_rows > MOST_ROWS
            reason = "the run has too many steps" if long else "another cache is on"
            return self._not_planned(sampler.num_steps, reason)
        policy = self._record(run, sampler)
        policy.closes = not self._listens
        return policy

    def finish(self) -> tuple[str, ...]:
        """Learn nothing here: the pipeline's call may be timed. See `Controller`."""
        return ()

    @property
    def run(self) -> WholeRun:
        """The recording, or why there is none."""
        if self._recording is None:
            return WholeRun(self.parts, self.problem)
        return self._recording.whole(self.parts)

    def close(self) -> None:
        """Free the run's predictions."""
        if self._recording is not None:
            self._recording.record.close()

    # --- as a listener ---

    def loop_begins(self) -> None:
        """See `StepListener`. From here on, `steps_done` computes the inner products."""
        self._listens = True

    def steps_done(self, done: int) -> None:
        """See `StepListener`. After the last step the clock has stopped, and the VAE has not
        begun."""
        if self._recording is not None and self._recording.has_all:
            began = time.perf_counter()
            self._recording.record.close()
            synchronise(self._where)
            self.seconds_after += time.perf_counter() - began


@contextmanager
def recorded(pipe: Any) -> Iterator[ReferenceRun]:
    """Record the next run of a pipeline, without accelerating it. The clip does not change.

    Args:
        pipe: see `accelerate`. The predictions of all steps stay on the device until the loop is
            over, if they take less than half of the free memory.

    Yields:
        The reference. Give it to `Handle.learn_from` before the accelerated run of the same clip.

    Raises:
        RuntimeError: the pipeline is accelerated already.

    Example:
        >>> with dit_accel.recorded(pipe) as reference:  # doctest: +SKIP
        ...     uncached = pipe(prompt, generator=seeded(0)).frames
        >>> with dit_accel.accelerate(pipe, quality=32) as handle:  # doctest: +SKIP
        ...     handle.learn_from(reference)
        ...     video = pipe(prompt, generator=seeded(0)).frames
    """
    reference = ReferenceRun(pipe)
    session = Session(pipe, transformers_of(pipe, reference.family))
    executor = PlanExecutor(session, reference)
    patches = Patches(session.is_active)
    try:
        session.install(patches)
        executor.install(patches)
        session.interceptors = [executor]
        yield reference
    finally:
        patches.undo()
        executor.clear()
        reference.close()
