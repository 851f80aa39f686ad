"""The policies of runs in which every step is computed, with and without a record.

Goes in: the components of every computed prediction. Comes out: after the run, a profile. There is
no profile if the number of branches changed between steps, if a value was not finite, or if the run
was interrupted. It knows steps and tensors; `planning/first_run.py` makes the profile. Ours; there
is no source.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from dit_accel.caching.policy import ComputeAll, Policy
from dit_accel.core.guidance import FirstStep, guided
from dit_accel.core.interceptor import RunInfo
from dit_accel.planning.first_run import RunRecord
from dit_accel.planning.parts import Parts
from dit_accel.planning.plan import SamplerCoefficients
from dit_accel.planning.profile import Profile
from dit_accel.planning.profile_key import ProfileKey
from dit_accel.planning.sampler import coefficients_of


def why_not(first: FirstStep) -> str:
    """Why a run with this first step cannot be planned, for a note."""
    count = len(first.components)
    forwards = "one forward" if count == 1 else f"{count} forwards"
    if first.guided is None:
        return f"a step has {forwards}, but the pipeline's scheduler gets no prediction"
    return f"a step has {forwards}, but the scheduler does not get a weighted sum of them"


class NotPlanned(ComputeAll):
    """Computes every step of a run that cannot be planned; its note says why.

    `by_threshold`: whether the family has sites for windows; then the note recommends a threshold.
    """

    def __init__(self, num_steps: int, reason: str, *, by_threshold: bool = False) -> None:
        self.planned, self.reason = tuple(range(num_steps)), reason
        self.by_threshold = by_threshold

    def notes(self) -> tuple[str, ...]:
        advice = " A threshold accelerates such runs too." if self.by_threshold else ""
        return (f"Every step was computed: {self.reason}.{advice}",)


@dataclass(frozen=True)
class WholeRun:
    """What can be learnt from a run in which every step was computed.

    Args:
        parts: the pipeline's parts during the run.
        problem: why there is no profile.
        profile: made from the inner products of the run's predictions.
        numbers: see `RunKind`.
    """

    parts: Parts
    problem: str | None = None
    profile: Profile | None = None
    numbers: int = 0


class RecordingPolicy(Policy):
    """Computes every step of a first run, and records the components of its predictions.

    Args:
        run: the run.
        sampler: the run's sampler coefficients, as known when the run begins.
        scheduler: the run's scheduler. It is copied, because the next run changes it.
        key: the key of the profile.
        branches: see `Family`.
        known: whether the pipeline reports its branch weights; else the first step measures them.
        remarks: why the run is recorded although an earlier one was.
        by_threshold: see `NotPlanned`.
    """

    records = True
    closes = True  # whether to close the record after the last row; else the caller does

    def __init__(
        self, run: RunInfo, sampler: SamplerCoefficients, scheduler: Any, key: ProfileKey,
        branches: str, *, known: bool, remarks: tuple[str, ...], by_threshold: bool,
    ) -> None:  # fmt: skip
        self.remarks, self.by_threshold = remarks, by_threshold
        self.numbers = numbers_of(run)
        self.begin, self.guidance, self.branches = run.begin, run.guidance or 1.0, branches
        self.scheduler, self.key = copy.deepcopy(scheduler), key
        self.planned = tuple(range(sampler.num_steps))
        self.num_steps, self.sampler = sampler.num_steps, sampler
        self.weights, self.known = sampler.branch_weights, known
        # If the number of branches is not known, there is room for up to four; each further one is
        # recorded as its difference from the first.
        self.branch_weights = self.weights if known else (1.0, *[1.0] * 3)
        self.record = RunRecord(len(self.branch_weights) * sampler.num_steps + 1)
        self.problem: str | None = None

    def on_noise(self, noise: torch.Tensor) -> None:
        self.record.add_noise(guided(noise, self.guidance, self.branches))

    def on_output(self, step: int, component: int, value: torch.Tensor) -> None:
        self.record.add(component, guided(value, self.guidance, self.branches))
        last = step == self.sampler.num_steps - 1 and component == len(self.weights) - 1
        if last and self.closes:
            self.record.close()

    def on_first_step(self, first: FirstStep) -> None:
        """Take the branch weights that were measured in the first step."""
        weights = first.weights()
        if weights is None or len(weights) > len(self.branch_weights):
            self.problem, weights = why_not(first), None
        self.weights = weights or (1.0,)

    def take(self, first: FirstStep) -> None:
        """Record the first step, which ran with another policy."""
        if first.noise is not None:
            self.on_noise(first.noise)
        for component, value in enumerate(first.components):
            self.on_output(0, component, value)
        self.on_first_step(first)

    def on_end(self, steps: int) -> None:
        self.num_steps = min(self.num_steps, steps)
        self.record.close()

    @property
    def has_all(self) -> bool:
        """Whether every row was recorded."""
        return self.record.count(len(self.weights) - 1) >= self.num_steps

    @property
    def profile(self) -> Profile | None:
        """The profile of the recorded run; None: it has a flaw, or such runs cannot be planned."""
        if self._problem() or self._flaw() is not None:
            return None
        sampler = dataclasses.replace(self.sampler, branch_weights=self.weights)
        if self.num_steps != sampler.num_steps:  # the pipeline left the last ones out
            second = sampler.second if self.num_steps > max(sampler.fixed_steps) else None
            sampler = coefficients_of(self.scheduler, self.weights, self.begin, self.num_steps)
            sampler = dataclasses.replace(sampler, second=second)
        guidance = self.key.guidance if self.known else guidance_of(self.weights)
        key = dataclasses.replace(
            self.key, steps=self.num_steps, parts=len(self.weights),
            guidance=guidance or self.key.guidance,
        )  # fmt: skip
        return self.record.profile(sampler, key)

    @property
    def why_no_profile(self) -> str | None:
        """Why the run gives no profile; None: it gives one."""
        problem = self._problem()
        return self._flaw() if problem is None else f"was not recorded: {problem}"

    def whole(self, parts: Parts) -> WholeRun:
        """What can be learnt from the run; `parts` are the pipeline's."""
        profile = self.profile
        return WholeRun(
            parts, self.why_no_profile if profile is None else None, profile, self.numbers
        )

    def _problem(self) -> str | None:
        """Why no run of this kind gives a profile; None: there is no such reason."""
        if self.problem is not None:
            return self.problem
        counts = [self.record.count(component) for component in range(len(self.branch_weights))]
        used = len(self.weights)
        uneven = len({*counts[:used]}) > 1 or any(counts[used:]) or not self.record.is_uniform
        if uneven or counts[0] > self.sampler.num_steps:
            return "the forwards of a step changed during the run"
        return None

    def _flaw(self) -> str | None:
        """Why this run gives no profile, although the next one may; None: there is no flaw."""
        ran = self.record.count(0)
        if ran < self.num_steps:
            return f"stopped after {ran} of {self.num_steps} steps"
        return None if self.record.is_finite else "had predictions that were not finite"

    def notes(self) -> tuple[str, ...]:
        problem, flaw = self._problem(), self._flaw()
        if problem is not None:
            refused = NotPlanned(self.num_steps, problem, by_threshold=self.by_threshold)
            return refused.notes()
        what = "This run was computed in full and recorded, and the next runs are planned from it."
        if flaw is not None:
            what = f"This run {flaw}, so the next run is computed in full and recorded."
        advice = "With a profile from `dit-accel calibrate`, no run is recorded first."
        return (*self.remarks, f"No profile was found. {what} {advice}")


def guidance_of(weights: tuple[float, ...]) -> float | None:
    """The guidance scale that the weights of two branches stand for; None: there is one branch."""
    return round(1.0 - weights[1], 6) if len(weights) > 1 else None


def numbers_of(run: RunInfo) -> int:
    """How many numbers the latents of one clip have; 0: the latents are not known."""
    return run.latents[0].numel() if isinstance(run.latents, torch.Tensor) else 0
