"""The policy of a run that is computed whole, and of one that is recorded meanwhile.

Goes in: the components of every computed prediction. Comes out: after the run, a profile of it. A
run whose steps do not all have the same number of branches, whose values are not all finite, or
that ended early by an interrupt, gives none. It knows steps and tensors; `planning/first_run.py`
makes the profile. Ours; there is no source.
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
    """Why a run with such a first step is not planned."""
    count = len(first.components)
    forwards = "one forward" if count == 1 else f"{count} forwards"
    if first.guided is None:
        return f"a step has {forwards}, and the pipeline's scheduler does not get what they predict"
    return f"a step has {forwards}, and what the sampler gets is no weighted sum of them"


class NotPlanned(ComputeAll):
    """Computes every step of a run that cannot be planned, and says why.

    `by_threshold`: whether the family has sites where windows may cache.
    """

    def __init__(self, num_steps: int, reason: str, *, by_threshold: bool = False) -> None:
        self.planned, self.reason = tuple(range(num_steps)), reason
        self.by_threshold = by_threshold

    def notes(self) -> tuple[str, ...]:
        advice = " A threshold accelerates such runs too." if self.by_threshold else ""
        return (f"Computed whole: {self.reason}.{advice}",)


@dataclass(frozen=True)
class WholeRun:
    """What a run that was computed whole teaches.

    Args:
        parts: that the pipeline had.
        problem: what happened to it, where there is no profile.
        profile: of its inner products.
        numbers: as of `RunKind`.
    """

    parts: Parts
    problem: str | None = None
    profile: Profile | None = None
    numbers: int = 0


class RecordingPolicy(Policy):
    """Computes every step of a first run, and records the components of its predictions.

    Args:
        run: what is known of it.
        sampler: of the run, as it was known when the run began.
        scheduler: of the run; it is copied, as the next run changes it.
        key: of the profile.
        branches: as of `Family`.
        known: whether the pipeline says how it weighs its branches; else a step measures it.
        remarks: why the run is recorded, where an earlier one was.
        by_threshold: as of `NotPlanned`.
    """

    records = True
    closes = True  # the record, after the last row; else another does that

    def __init__(
        self, run: RunInfo, sampler: SamplerCoefficients, scheduler: Any, key: ProfileKey,
        branches: str, *, known: bool, remarks: tuple[str, ...] = (), by_threshold: bool = False,
    ) -> None:  # fmt: skip
        self.remarks, self.by_threshold = remarks, by_threshold
        self.numbers = numbers_of(run)
        self.begin, self.guidance, self.branches = run.begin, run.guidance or 1.0, branches
        self.scheduler, self.key = copy.deepcopy(scheduler), key
        self.planned = tuple(range(sampler.num_steps))
        self.num_steps, self.sampler = sampler.num_steps, sampler
        self.weights, self.known = sampler.branch_weights, known
        # Where it is not known how many branches a step has, each further one is a difference.
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
        """Take the weights of the branches from what the step did with them."""
        weights = first.weights()
        if weights is None or len(weights) > len(self.branch_weights):
            self.problem, weights = why_not(first), None
        self.weights = weights or (1.0,)

    def take(self, first: FirstStep) -> None:
        """Begin after the first step, which another policy had."""
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
        """Of the run that was recorded; None where it has a flaw, or cannot be planned."""
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
        """What happened to the run; None: nothing."""
        problem = self._problem()
        return self._flaw() if problem is None else f"was not recorded: {problem}"

    def whole(self, parts: Parts) -> WholeRun:
        """What the run teaches, of a pipeline with these parts."""
        profile = self.profile
        return WholeRun(
            parts, self.why_no_profile if profile is None else None, profile, self.numbers
        )

    def _problem(self) -> str | None:
        """Why the run gives no profile, however long it was; None: it gives one."""
        if self.problem is not None:
            return self.problem
        counts = [self.record.count(component) for component in range(len(self.branch_weights))]
        used = len(self.weights)
        uneven = len({*counts[:used]}) > 1 or any(counts[used:]) or not self.record.is_uniform
        if uneven or counts[0] > self.sampler.num_steps:
            return "the forwards of a step changed during the run"
        return None

    def _flaw(self) -> str | None:
        """Why this run gives no profile, while the next one may."""
        ran = self.record.count(0)
        if ran < self.num_steps:
            return f"stopped after {ran} of {self.num_steps} steps"
        return None if self.record.is_finite else "had predictions that were not finite"

    def notes(self) -> tuple[str, ...]:
        problem, flaw = self._problem(), self._flaw()
        if problem is not None:
            refused = NotPlanned(self.num_steps, problem, by_threshold=self.by_threshold)
            return refused.notes()
        what = "this run was computed whole and recorded; the next ones are planned from it."
        if flaw is not None:
            what = f"this run {flaw}; the next one is computed whole and recorded."
        advice = "`dit-accel calibrate` measures a profile once for all."
        return (*self.remarks, f"No profile was found: {what} {advice}")


def guidance_of(weights: tuple[float, ...]) -> float | None:
    """The scale of guidance that two branches are weighed by; None where there is one."""
    return round(1.0 - weights[1], 6) if len(weights) > 1 else None


def numbers_of(run: RunInfo) -> int:
    """How many numbers the latents of one clip have; 0 where they are not known."""
    return run.latents[0].numel() if isinstance(run.latents, torch.Tensor) else 0
