"""Carry a plan out on recorded clips, and fit its windows to what is really left.

When a window opens, all that the computed predictions before it have added to the latents, right
and wrong, is known, and so is what the uncached run of the same clip adds until the window closes.
What changes the window's line is fitted to the difference (`fitting`), over all clips that are
known, those of the same batch among them: the rows of a batch come to a window together. Every clip
is served by a change that has not seen it, so that its error is an honest one.

Shapes: P clips of a batch, B parts, N numbers of a clip's latents, F features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from dit_accel.caching.policy import PlanPolicy
from dit_accel.calibration.fit import RidgeMoments
from dit_accel.calibration.record import SchedulerTap, UncachedRun, run
from dit_accel.core import drift, extrapolation
from dit_accel.core.families import family_of
from dit_accel.core.generation import ClipSpec
from dit_accel.core.guidance import guided
from dit_accel.handle import accelerate
from dit_accel.metrics import psnr
from dit_accel.planning.plan import (
    Extrapolation,
    Plan,
    distribute_correction,
    line_sums,
    used_steps,
    window_sums,
)
from dit_accel.planning.search import ErrorModel, fit

REFINED_DEPTH = 5  # computed predictions that a refined forecast reads
MIN_REFIT_CLIPS = 3  # clips that a change is fitted to; before, it is as fitted on uncached runs
Problems = dict[tuple[int, ...], RidgeMoments]  # by the computed steps up to a window's end


@dataclass(frozen=True)
class RefinedPlan:
    """One plan on the clips of a batch; `changes` fitted to all clips so far, by window.

    Args:
        computed: k steps.
        psnr_db, latents_db: one a clip.
        surprise: k a clip; NaN where there was no line yet.
        changes: by the step that opens a window, `(F,)`.
    """

    computed: tuple[int, ...]
    psnr_db: tuple[float, ...]
    latents_db: tuple[float, ...]
    extrapolation_error: tuple[tuple[float, ...], ...]
    corrections: Mapping[int, torch.Tensor]


def carry_out(
    pipe: Any, clips: Mapping[int, ClipSpec], computed: tuple[int, ...], field: ErrorModel,
    recordings: Sequence[UncachedRun], problems: Problems, overrides: dict[str, Any] | None,
) -> RefinedPlan:  # fmt: skip
    """One run of the pipeline.

    Args:
        clips: by number, of equal steps, guidance and size.
        computed: the plan's steps.
        field: what its windows are fitted to as long as too few clips are known.
        recordings: of the clips, in their order.
        problems: of all plans; those of this one take in the clips.
    """
    prior, rows = fit(computed, field, depth=REFINED_DEPTH)[0], list(clips.values())
    fold = partial(guided, guidance=rows[0].guidance, branches=family_of(pipe).branches)
    policy = _FittingPolicy(list(clips), computed, prior, recordings, problems, fold)
    with accelerate(pipe, plan=policy), SchedulerTap(pipe.scheduler) as sampler:
        frames = run(pipe, rows, overrides)
    errors = [
        float((final - recording.final).norm() / recording.final.norm())
        for final, recording in zip(sampler.final, recordings, strict=True)
    ]
    scores = [
        min(float(psnr(recording.frames, mine, data_range=1.0)), 100.0)
        for recording, mine in zip(recordings, frames, strict=True)
    ]
    missing = (math.nan,) * len(clips)
    extrapolation_errors = [policy.extrapolation_error.get(step, missing) for step in computed]
    return RefinedPlan(
        computed,
        tuple(scores),
        tuple(-20 * math.log10(max(error, 1e-9)) for error in errors),
        tuple(zip(*extrapolation_errors, strict=True)),
        {
            step: c
            for step, problem in policy.problems.items()
            if (c := problem.change()) is not None
        },
    )


class _FittingPolicy(PlanPolicy):
    """Follows the computed steps of a plan, and fits every window's change when it opens."""

    def __init__(
        self, numbers: Sequence[int], computed: tuple[int, ...], prior: Plan,
        recordings: Sequence[UncachedRun], moments: Problems,
        fold: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:  # fmt: skip
        super().__init__(prior, recordings[0].sampler.branch_weights)
        self.numbers, self.fold = numbers, fold
        self.recordings = recordings
        self.computed, self.moments, self.sampler = computed, moments, recordings[0].sampler
        self.extrapolation_error: dict[int, tuple[float, ...]] = {}
        self.problems: dict[
            int, RidgeMoments
        ] = {}  # of this plan, by the step that opens the window
        self._finals = torch.stack([recording.final for recording in recordings])
        self._behind = torch.zeros_like(self._finals)  # what should have been added, and was not
        self._before: list[tuple[int, torch.Tensor]] = []  # the last two computed, guided
        self._forecasts: dict[int, Extrapolation] = dict(prior.extrapolations)
        self._noise: torch.Tensor | None = None
        # The last outputs, by component, by step: those that `_features` takes together.
        self._outputs: list[dict[int, torch.Tensor]] = [{} for _ in self.branch_weights]

    def on_noise(self, noise: torch.Tensor) -> None:
        self._noise = noise.clone()

    def on_output(self, step: int, component: int, value: torch.Tensor) -> None:
        needed = self.needed_steps(step)
        kept = {s: v for s, v in self._outputs[component].items() if s in needed}
        self._outputs[component] = kept | {step: value}

    def extrapolation_at(self, step: int) -> Extrapolation | None:
        if step > 0 and step - 1 in self.computed:
            self._passed(step - 1)
            if step in self.plan.extrapolations:
                self._open(step - 1)
        return self._forecasts[step] if step in self.plan.extrapolations else None

    def needed_steps(self, step: int) -> tuple[int, ...]:
        return tuple(used_steps(self.computed, step, REFINED_DEPTH))

    def _passed(self, step: int) -> None:
        """A computed step added its own prediction, not the uncached run's."""
        added = _weighted(torch.tensor(self.sampler.branch_weights), self._features([step])[:-1])
        self._behind += float(self.sampler.coefficients[step]) * (self._guided(step) - added)
        if len(self._before) == 2:
            times = [float(self.sampler.timesteps[s]) for s, _ in self._before]
            factors = extrapolation.lagrange_weights(times, float(self.sampler.timesteps[step]))
            line = extrapolation.weighted_sum(factors, [value for _, value in self._before])
            self.extrapolation_error[step] = tuple(
                drift.relative_l2(line - added, added, dim=1).tolist()
            )
        self._before = [(step, added), *self._before][:2]

    def _open(self, opened: int) -> None:
        """A window opens after this computed step: fit its change, and foresee what it adds."""
        place = self.computed.index(opened)
        closed = (*self.computed[1:], self.sampler.num_steps)[place]
        read = used_steps(self.computed, opened, REFINED_DEPTH)
        ends = torch.tensor([opened]), torch.tensor([closed])
        line = line_sums(torch.tensor([read]), *ends, self.sampler)[0]
        features = self._features(read)
        left = self._behind - _weighted(line, features)
        for step in range(opened + 1, closed):
            left += float(self.sampler.coefficients[step]) * self._guided(step)
        problem = self.moments.setdefault((*self.computed[: place + 1], closed), RidgeMoments())
        problem.add_all(self.numbers, features, left, self._finals.square().mean(1))
        changes = problem.changes_without(self.numbers, least=MIN_REFIT_CLIPS)
        if changes is None:
            prior = window_sums(self.plan, read, range(opened + 1, closed), self.sampler) - line
            changes = prior.expand(len(self.numbers), -1)
        self.problems[opened] = problem
        self._forecasts |= distribute_correction(
            read, range(opened + 1, closed), changes, self.sampler
        )
        self._behind = left - torch.einsum("pf,fpn->pn", changes.to(features), features)

    def _guided(self, step: int) -> torch.Tensor:
        """`(P, N)`: the uncached runs' guided predictions."""
        rows = torch.stack([recording.guided(step) for recording in self.recordings])
        return rows.to(self._behind.device)

    def _features(self, read: Sequence[int]) -> torch.Tensor:
        """`(F, P, N)` float32: the components of these steps, and the noise."""
        rows = [outputs[step] for outputs in self._outputs for step in read]
        start = self._noise if self._noise is not None else torch.zeros_like(rows[0])
        folded = (self.fold(row) for row in (*rows, start))
        found = torch.stack([value.detach().float().flatten(1) for value in folded])
        if found.device.type != "cuda":
            found = found.cpu()  # sums are in float64, which not every device has
        self._behind = self._behind.to(found.device)
        return found


def _weighted(weights: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return torch.einsum("f,fpn->pn", weights.to(rows), rows)
