"""Carries a plan out on recorded clips, and fits its windows to the error of the accelerated run.

In: a pipeline, the recordings of a batch of clips, a plan's computed steps. Out: a `RefinedPlan`.
When a window opens, its correction is fitted (`fit.py`). The target is the difference between two
sums: what the uncached run adds to the latents until the window closes, and what the accelerated
run has added so far. The correction is fitted to the clips of this batch and of all earlier ones,
and all clips of the batch run with it. A clip's scores are held out: they are lowered by the error
that its windows would add if they were fitted without it.
Knows the pipeline only through a policy of its own.
Source: ours (docs/how-it-works.md, section 4).
Shapes: P clips of a batch, B components, N numbers of a clip's latents, F features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from dit_accel.caching.policy import PlanPolicy
from dit_accel.calibration.fit import STRENGTHS, RidgeMoments, expected_moments
from dit_accel.calibration.record import SchedulerTap, UncachedRun, run
from dit_accel.core import drift, extrapolation
from dit_accel.core.families import family_of
from dit_accel.core.generation import ClipSpec
from dit_accel.core.guidance import guided
from dit_accel.core.video import to_uint8
from dit_accel.handle import accelerate
from dit_accel.metrics import psnr
from dit_accel.metrics.psnr import EXACT_DB
from dit_accel.planning.error_model import ErrorModel, window_energies
from dit_accel.planning.plan import (
    Extrapolation,
    Plan,
    distribute_correction,
    line_sums,
    used_steps,
    window_sums,
)
from dit_accel.planning.prediction import decibels
from dit_accel.planning.search import fit

REFINED_DEPTH = 5  # the most computed steps that a refined extrapolation uses
# By the computed steps of a plan, followed by the one that opens the window.
Problems = dict[tuple[int, ...], RidgeMoments]


@dataclass(frozen=True)
class RefinedPlan:
    """The results of one plan on the clips of a batch.

    Args:
        computed: k steps.
        psnr_db, latents_db: one value for each clip, held out.
        extrapolation_error: k values for each clip; NaN at steps that no line extrapolates.
        corrections: `(F,)`, by the step that opens a window; fitted to all clips so far.
    """

    computed: tuple[int, ...]
    psnr_db: tuple[float, ...]
    latents_db: tuple[float, ...]
    extrapolation_error: tuple[tuple[float, ...], ...]
    corrections: Mapping[int, torch.Tensor]


def carry_out(
    pipe: Any, clips: Mapping[int, ClipSpec], computed: tuple[int, ...], error_model: ErrorModel,
    recordings: Sequence[UncachedRun], problems: Problems, overrides: dict[str, Any] | None,
) -> RefinedPlan:  # fmt: skip
    """Run the pipeline once with the plan of these `computed` steps, and fit its windows.

    Args:
        clips: by number; of equal steps, guidance and size.
        error_model: the plan fitted to it is the centre towards which corrections are shrunk.
        recordings: of the clips, in their order.
        problems: least squares problems of all plans; those of this plan get these clips.
        overrides: arguments of the call that replace those of the clips.
    """
    centre, rows = fit(computed, error_model, depth=REFINED_DEPTH)[0], list(clips.values())
    fold = partial(guided, guidance=rows[0].guidance, branches=family_of(pipe).branches)
    policy = _FittingPolicy(list(clips), centre, error_model, recordings, problems, fold)
    with accelerate(pipe, plan=policy), SchedulerTap(pipe.scheduler) as tap:
        frames = run(pipe, rows, overrides)
    scores = []
    for row, (final, recording) in enumerate(zip(tap.final, recordings, strict=True)):
        own = float((final - recording.final).square().sum() / recording.final.square().sum())
        latents, lost = decibels(own), decibels(own) - decibels(own + policy.unseen(row))
        scores.append((_frames_db(recording.frames, frames[row]) - lost, latents - lost))
    psnr_db, latents_db = zip(*scores, strict=True)
    missing = (math.nan,) * len(clips)
    by_step = [policy.extrapolation_error.get(step, missing) for step in computed]
    return RefinedPlan(
        computed, psnr_db, latents_db, tuple(zip(*by_step, strict=True)),
        policy.corrections(),
    )  # fmt: skip


class _FittingPolicy(PlanPolicy):
    """Computes the steps of a plan and fits the correction of each window when it opens.

    Args:
        numbers: identify the clips.
        centre: the plan; corrections are shrunk towards its own.
        moments: the problems of all plans.
        fold: makes the guided prediction from the output of one forward pass (`guided`).
    """

    records = True

    def __init__(
        self, numbers: Sequence[int], centre: Plan, error_model: ErrorModel,
        recordings: Sequence[UncachedRun], moments: Problems,
        fold: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:  # fmt: skip
        sampler = recordings[0].sampler
        super().__init__(centre, sampler.branch_weights, sampler.second)
        self.numbers, self.computed, self.recordings = numbers, centre.computed, recordings
        self.moments, self.fold, self.sampler = moments, fold, sampler
        self.error_model = error_model
        expected = window_energies(centre, error_model)
        self._expected = {step: float(energy.mean()) for step, energy in expected.items()}
        self.extrapolation_error: dict[int, tuple[float, ...]] = {}
        self.problems: dict[int, RidgeMoments] = {}  # of this plan, by the step that opens a window
        # By strength, summed over all windows so far: one window does not determine the strength.
        self._gains = torch.zeros(len(STRENGTHS), dtype=torch.float64)
        self._finals = torch.stack([recording.final for recording in recordings])
        self._residual = torch.zeros_like(self._finals)  # what the latents lack so far
        self._before: list[tuple[int, torch.Tensor]] = []  # the last two computed steps, guided
        self._planned: dict[int, Extrapolation] = dict(centre.extrapolations)
        self._noise: torch.Tensor | None = None
        # by component and step: the outputs that `_features` needs
        self._outputs: list[dict[int, torch.Tensor]] = [{} for _ in self.branch_weights]

    def on_noise(self, noise: torch.Tensor) -> None:
        self._noise = noise.clone()

    def on_output(self, step: int, component: int, value: torch.Tensor) -> None:
        needed = self.needed_steps(step)
        before = {s: v for s, v in self._outputs[component].items() if s in needed}
        self._outputs[component] = before | {step: value}

    def extrapolation_at(self, step: int) -> Extrapolation | None:
        if step > 0 and step - 1 in self.computed:
            self._after_computed(step - 1)
            if step in self.plan.extrapolations:
                self._fit_window(step - 1)
        return self._planned[step] if step in self.plan.extrapolations else None

    def needed_steps(self, step: int) -> tuple[int, ...]:
        return tuple(used_steps(self.computed, step, REFINED_DEPTH, self.sampler.since(step)))

    def corrections(self) -> dict[int, torch.Tensor]:
        """The corrections, fitted to all prompts so far, by the step that opens a window."""
        found = self.problems.items()
        return {step: problem.correction(self._gains) for step, problem in found}

    def unseen(self, row: int) -> float:
        """The extra squared relative error of a clip if every window were fitted without the clip.

        The estimate is rather too high than too low, as later windows would correct some of it.

        Args:
            row: the clip's index in the batch.
        """
        size, total = float(self._finals[row].double().square().sum()), 0.0
        for opened, closed in self.plan.windows:
            if opened in self.problems:
                growth = 1.0
                if closed < self.sampler.num_steps:
                    growth = float(self.error_model.error_gain[closed])
                changed = self.problems[opened].changed(self.numbers[row], self._gains)
                total += growth**2 * changed / size
        return total

    def _after_computed(self, step: int) -> None:
        """Update the residual: the step added its own prediction, not the uncached run's.

        Also measure the extrapolation error at this step.
        """
        added = _weighted(torch.tensor(self.sampler.weights_at(step)), self._features([step])[:-1])
        self._residual += float(self.sampler.coefficients[step]) * (self._guided(step) - added)
        since = self.sampler.since(step)
        self._before = [pair for pair in self._before if pair[0] >= since]
        if len(self._before) == 2:
            times = [float(self.sampler.timesteps[s]) for s, _ in self._before]
            factors = extrapolation.lagrange_weights(times, float(self.sampler.timesteps[step]))
            line = extrapolation.weighted_sum(factors, [value for _, value in self._before])
            self.extrapolation_error[step] = tuple(
                drift.relative_l2(line - added, added, dim=1).tolist()
            )
        self._before = [(step, added), *self._before][:2]

    def _fit_window(self, opened: int) -> None:
        """Fit the correction of the window that this step opens, and update the residual."""
        place = self.computed.index(opened)
        closed = (*self.computed[1:], self.sampler.num_steps)[place]
        used, steps = list(self.needed_steps(opened)), range(opened + 1, closed)
        ends = torch.tensor([opened]), torch.tensor([closed])
        line = line_sums(torch.tensor([used]), *ends, self.sampler)[0]
        features = self._features(used)
        residual = self._residual - _weighted(line, features)
        for step in steps:
            residual += float(self.sampler.coefficients[step]) * self._guided(step)
        centre = window_sums(self.plan, used, steps, self.sampler) - line
        size, error = self._finals.square().mean(1), self._expected[opened]
        rows = self.sampler.feature_rows(torch.tensor([used]))[0]
        gram = self.error_model.mean_gram[rows][:, rows]
        new = RidgeMoments(centre, expected_moments(gram, float(size.mean()), error))
        problem = self.moments.setdefault((*self.computed, opened), new)
        problem.add(self.numbers, features, residual, size, error * size)
        self._gains += problem.gains()
        correction = problem.correction(self._gains)
        self.problems[opened] = problem
        self._planned |= distribute_correction(used, steps, correction, self.sampler)
        self._residual = residual - _weighted(correction, features)

    def _guided(self, step: int) -> torch.Tensor:
        """`(P, N)`: the guided predictions of the uncached runs at a step."""
        rows = torch.stack([recording.guided(step) for recording in self.recordings])
        return rows.to(self._residual.device)

    def _features(self, used: Sequence[int]) -> torch.Tensor:
        """`(F, P, N)` float32: the components of these steps, and the noise."""
        rows = [outputs[step] for outputs in self._outputs for step in used]
        noise = self._noise if self._noise is not None else torch.zeros_like(rows[0])
        folded = (self.fold(row) for row in (*rows, noise))
        found = torch.stack([value.detach().float().flatten(1) for value in folded])
        if found.device.type != "cuda":
            found = found.cpu()  # sums are in float64, and not every device has it
        self._residual = self._residual.to(found.device)
        return found


def _frames_db(reference: Any, test: Any) -> float:
    """PSNR of two clips as a pipeline returns them, in 8 bits as in a file; 100 dB if equal."""
    pair = [to_uint8(np.asarray(clip)) for clip in (reference, test)]
    return min(float(psnr(*pair, data_range=255)), EXACT_DB)


def _weighted(weights: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return torch.einsum("f,fpn->pn", weights.to(rows), rows)
