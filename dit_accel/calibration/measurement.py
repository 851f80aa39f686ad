"""Measures the error model of a pipeline, with uncached runs of clips and probes on some of them.

In: a pipeline, and clips in batches. Out: Gram matrices and pooled texts of the clips that were
made, their recordings, error gain and error memory. The checkpoint saves every piece of work.
Memory: the predictions of a batch, in float32 on the CPU.
Knows no plan, and not the order in which batches are made. Source: ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch

from dit_accel.calibration.checkpoint import Checkpoint
from dit_accel.calibration.minutes import START_RUNS, probing_cost
from dit_accel.calibration.probes import (
    gain_and_memory,
    probe,
    probe_accelerated,
    probe_steps,
)
from dit_accel.calibration.record import UncachedRun, record
from dit_accel.core.generation import ClipSpec
from dit_accel.planning.error_model import ErrorModel
from dit_accel.planning.first_run import profile_of_gram
from dit_accel.planning.growth import START_PLACE, corrected_gain, may_grow_less
from dit_accel.planning.lookup import profile_key
from dit_accel.planning.plan import Plan, SamplerCoefficients
from dit_accel.planning.prior import places_of, profile_by_prior
from dit_accel.planning.sampler import response_of, unstepped
from dit_accel.planning.trajectory import trajectory_of

MAX_RECORDED_BYTES = 4 << 30  # if recordings in memory exceed this, they are dropped
ProgressCallback = Callable[[str, int, int], None]
# Gram matrix, error gain and error memory of other models, the places of the steps, and whether
# errors may grow less than in these models
Usual = tuple[torch.Tensor | None, torch.Tensor, float, torch.Tensor | None, bool]


class Measurement:
    """The error model of a pipeline, from the clips that were made so far.

    Args:
        pipe, clips, overrides, probes, probed: as in `CalibrationRun`.
        batches: indices of the clips; each batch is one call of the pipeline.
        checkpoint: saves the pieces of work.
        on_pace: as in `record`, for the first run.
        on_progress: as in `CalibrationRun`.
    """

    def __init__(
        self, pipe: Any, clips: Sequence[ClipSpec], batches: Sequence[tuple[int, ...]],
        checkpoint: Checkpoint, *, overrides: dict[str, Any] | None, probes: int, probed: int,
        on_pace: Callable[[float], None] | None, on_progress: ProgressCallback,
    ) -> None:  # fmt: skip
        self.pipe, self.clips, self.batches, self.checkpoint = pipe, clips, batches, checkpoint
        self.overrides, self.probes, self.probed = overrides, probes, probed
        self.on_progress, self._on_pace = on_progress, on_pace
        self.cost = 0.0  # in uncached runs
        self.gain_and_memory: tuple[torch.Tensor, float] | None = None  # once they are known
        self._recordings: dict[tuple[int, ...], list[UncachedRun]] = {}
        self._made: dict[int, list[tuple[torch.Tensor, torch.Tensor | None]]] = {}  # by batch
        self.start_gains: tuple[int, list[float]] = (0, [])  # the step, and gains of clips there

    def make(self, place: int) -> None:
        """Make the uncached runs of a batch, unless they are made already."""
        batch = self.batches[place]

        def make() -> list[tuple[torch.Tensor, torch.Tensor | None]]:
            self.on_progress("uncached", batch[0], len(self.clips))
            return [(recording.gram, recording.text) for recording in self.recorded(place)]

        if place not in self._made:
            self.cost += len(batch)
            self._made[place] = self.checkpoint.get(f"uncached-{batch}", make)

    def recorded(self, place: int) -> list[UncachedRun]:
        """The recordings of a batch. They are made again if they are not in memory."""
        batch = self.batches[place]
        if batch not in self._recordings:
            in_memory = chain.from_iterable(self._recordings.values())
            if sum(recording.nbytes for recording in in_memory) > MAX_RECORDED_BYTES:
                self._recordings.clear()
            clips = [self.clips[index] for index in batch]
            on_pace, self._on_pace = self._on_pace, None
            self._recordings[batch] = record(self.pipe, clips, self.overrides, on_pace)
        return self._recordings[batch]

    @property
    def places(self) -> list[int]:
        """The indices of the batches that were made."""
        return list(self._made)

    @property
    def number(self) -> int:
        """The number of clips that were made."""
        return sum(map(len, self._made.values()))

    @property
    def sampler(self) -> SamplerCoefficients:
        found: SamplerCoefficients = self.checkpoint.get(
            "sampler", lambda: self.recorded(0)[0].sampler
        )
        return found

    @property
    def gram(self) -> torch.Tensor:
        """`(P, R, R)`, the Gram matrices of all clips that were made."""
        return torch.stack([gram for some in self._made.values() for gram, _ in some])

    def texts(self, place: int) -> list[torch.Tensor | None]:
        """The pooled texts of a batch's clips."""
        return [text for _, text in self._made[place]]

    def error_model(self) -> ErrorModel:
        """The error model from the clips made so far; clips that need probes are probed first."""
        found = [*chain.from_iterable(map(self._probed, self._made))]
        if found:
            self.gain_and_memory = gain_and_memory(found, self.sampler.num_steps)
        else:
            _, gain, memory, places, _ = self._usual()
            step, measured = self.start_gains
            if places is not None and measured:
                gain = corrected_gain(gain, places, step, measured)
            self.gain_and_memory = gain, memory
        return ErrorModel(self.sampler, self.gram, *self.gain_and_memory)

    @property
    def others(self) -> ErrorModel | None:
        """The prior's error model of such a run; None if the prior does not know such runs."""
        gram, gain, memory, *_ = self._usual()
        return None if gram is None else ErrorModel(self.sampler, gram, gain, memory)

    def needs_probes(self, plan: Plan) -> bool:
        """Whether probes of the start, by a plan, may say what other models do not.

        They do if the first clips have less error in their denoised clips than the prior's
        (`growth.py`), and if the second computed step of the plan is near the start of the run. In
        short runs it is not.
        """
        *_, places, less = self._usual()
        return less and places is not None and float(places[plan.computed[1]]) >= START_PLACE

    def probe_start(self, clips: Sequence[int], plan: Plan) -> None:
        """Probe the error gain at the start of clips, by two runs of a plan.

        Uncached runs of these clips are not needed. Error models from then on use the gains.

        Args:
            clips: their indices; they run in one call.
            plan: one that `needs_probes`.
        """

        def make() -> list[float]:
            self.on_progress("probe", clips[0], 0)
            rows = [self.clips[index] for index in clips]
            return probe_accelerated(self.pipe, rows, self.overrides, plan, self.sampler)

        self.cost += len(clips) * START_RUNS * len(plan.computed) / self.sampler.num_steps
        found = self.checkpoint.get(f"start-{clips}-{plan.computed}", make)
        self.start_gains = plan.computed[1], self.start_gains[1] + found

    def _usual(self) -> Usual:
        """What other models say of such runs: the prior.

        If the prior does not know such runs, matrix and places are None, and gain and memory are
        those of the miniature (`first_run.py`).
        """

        def make() -> Usual:
            # Recording comes first: afterwards the scheduler has the run's timesteps.
            recordings, sampler = self.recorded(0), self.sampler
            own = recordings[0]
            scheduler = unstepped(self.pipe.scheduler)
            response = response_of(scheduler, 0, sampler.num_steps)
            prior = profile_by_prior(scheduler, sampler, self.clips[0].guidance, response)
            if prior is None:
                found = profile_of_gram(own.gram, sampler, profile_key(self.pipe))
                return None, found.error_gain, found.error_memory, None, False
            path = trajectory_of(
                scheduler, sampler.branch_weights, 0, sampler.num_steps, response=response
            )
            places = places_of(path.levels.angles)[:-1]
            known = True
            if not own.noise.any():  # the denoiser gets the noise with something else
                prior, known = prior.without_noise(), not path.errors_need_noise
            denoised = torch.stack([path.denoised_errors(each.gram) for each in recordings])
            usual = path.denoised_errors(prior.gram[0])
            less = known and may_grow_less(denoised, usual, places)
            return prior.gram, prior.error_gain, prior.error_memory, places, less

        found: Usual = self.checkpoint.get("other models", make)
        return found

    def _probed(self, place: int) -> list[tuple[int, float, float]]:
        """The probes of a batch, as (step, gain, cosine), for its clips that should be probed."""
        batch = self.batches[place]
        mine = [index for index in batch if index < self.probed and self.probes]
        steps = probe_steps(self.clips[0].steps, self.probes)
        self.cost += len(mine) * probing_cost(steps, self.clips[0].steps)

        def make() -> list[tuple[int, float, float]]:
            clips, recordings = [self.clips[i] for i in mine], self.recorded(place)[: len(mine)]
            found = []
            for number, step in enumerate(steps):
                self.on_progress("probe", batch[0] * len(steps) + number * len(mine), 0)
                grown = probe(self.pipe, clips, self.overrides, recordings, step)
                found += [(step, *pair) for pair in grown]
            return found

        return self.checkpoint.get(f"probe-{mine}-{batch}-{self.probes}", make) if mine else []
