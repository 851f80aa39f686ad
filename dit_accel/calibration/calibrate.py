"""Calibrates a pipeline: measures it, so that plans can be made for it.

In: a pipeline and clips to make; minutes, if time is limited. Out: the pipeline's profile.
Every clip is made without acceleration, and the first ones are probed (`measurement.py`). Then
candidate plans are searched, and carried out on every clip (`refine.py`).
Without minutes, all plans are carried out on all clips, in two passes. One pass is enough if all
clips are in one batch, because each window is then fitted to all clips at once. With minutes there
is one pass, and each batch goes through all plans before the next batch is made. Probes are then
accelerated runs of a few clips, before the search. The calibration ends when the time is up or when
another clip would gain little (`minutes.py`).
Knows the order of the work and when it ends, but not how an error model is measured. Source: ours.
"""

from __future__ import annotations

import copy
import importlib.metadata
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from dit_accel.calibration.candidates import candidate, difficulty
from dit_accel.calibration.checkpoint import Checkpoint
from dit_accel.calibration.measurement import Measurement, ProgressCallback
from dit_accel.calibration.minutes import (
    ENOUGH_DB,
    FEW_SPEEDUPS,
    FIRST_PROBED,
    START_CLIPS,
    START_COST,
    START_RUNS,
    START_SPEEDUP,
    Budget,
    Estimate,
    TooFewMinutesError,
    next_gain_db,
    probing_cost,
)
from dit_accel.calibration.probes import probe_steps
from dit_accel.calibration.refine import REFINED_DEPTH, Problems, RefinedPlan, carry_out
from dit_accel.calibration.settings import check_settings
from dit_accel.core.families import family_of, transformers_of
from dit_accel.core.generation import ClipSpec
from dit_accel.core.private_names import other_cache
from dit_accel.planning.candidate import CandidatePlan
from dit_accel.planning.error_model import ErrorModel
from dit_accel.planning.lookup import profile_key
from dit_accel.planning.prediction import QualityDistribution
from dit_accel.planning.prior import shipped
from dit_accel.planning.profile import Profile
from dit_accel.planning.search import search
from dit_accel.planning.transfer import expected_db, steps_beside

SPEEDUPS = (2.0, 2.5, 2.94, 3.125, 3.33, 3.57, 3.85, 4.17, 4.55, 5.0, 5.56, 6.25, 7.14, 8.33)
USUAL_PROBES = 8
FIT_PASSES = 2  # over several batches: in the first pass, the first batches are fitted to few clips
ComputedSteps = list[tuple[int, ...]]  # one entry for each candidate plan
Expected = list[tuple[float, float] | None]  # `CandidatePlan.expected`, one for each candidate plan


def calibrate(pipe: Any, clips: Sequence[ClipSpec], **settings: Any) -> Profile:
    """Measure a pipeline, and carry out candidate plans: `CalibrationRun` in one call."""
    return CalibrationRun(pipe, clips, **settings).run()


def fit_passes(clips: int, batch: int, minutes: float | None = None) -> int:
    """How many times every candidate plan is carried out on every clip."""
    return 1 if 1 < clips <= batch or minutes is not None else FIT_PASSES


class CalibrationRun:
    """Measures a pipeline. The checkpoint saves every piece of work under what it depends on.

    Args:
        pipe: a diffusers pipeline of a known family, not accelerated.
        clips: of equal size, steps and guidance; a dozen or more. With `minutes`, clips are made
            while there is time and another one is worth it.
        speedups: a candidate plan is made for each, and carried out on every clip. Empty: there are
            no candidates, and plans are made from inner products alone. None: `SPEEDUPS`, or with
            `minutes` five.
        probes: number of steps at which one prediction is reused, >= 2; 0: error gain and error
            memory are those of other models. None: `USUAL_PROBES`, or with `minutes` 0; then the
            start of up to four clips is probed, if the first clip says that the gain may be lower.
        probed: number of clips that are probed, from the first on, 1 to all; with `minutes`, 1.
        batch: clips in one call of the pipeline, >= 1.
        dtype: the dtype in which the denoiser computes, for the profile's key.
        work: folder of the checkpoint; it can be deleted afterwards.
        overrides: arguments of the pipeline's call that replace those of the clips.
        minutes: > 0, for all calls with this work folder together; None: no limit.
        on_progress: is called with the name of the present work, how much is done, and the total.
        on_estimate: with `minutes`: is called after the first steps of the first run.

    Raises:
        ValueError: there are no clips, they differ in what must be equal, or a number is out of
            range.
    """

    def __init__(
        self, pipe: Any, clips: Sequence[ClipSpec], *, speedups: Sequence[float] | None = None,
        probes: int | None = None, probed: int = 3, batch: int = 1, dtype: str = "float32",
        work: Path | None = None, overrides: dict[str, Any] | None = None,
        minutes: float | None = None,
        on_progress: ProgressCallback = lambda what, done, total: None,
        on_estimate: Callable[[Estimate], None] = lambda estimate: None,
    ) -> None:  # fmt: skip
        if speedups is None:
            speedups = SPEEDUPS if minutes is None else FEW_SPEEDUPS
        if probes is None:
            probes = USUAL_PROBES if minutes is None else 0
        probed = probed if minutes is None else FIRST_PROBED
        check_settings(clips, speedups, probes, probed, batch, minutes)
        _check_uncached(pipe)
        self.pipe, self.clips, self.speedups, self.dtype = pipe, clips, speedups, dtype
        self.overrides, self.on_progress, self.on_estimate = overrides, on_progress, on_estimate
        self.probes, self.probed = probes, probed
        self.checkpoint = Checkpoint(work, clips, overrides, pipe)
        self.budget = Budget(minutes, self.checkpoint.seconds) if minutes is not None else None
        self.passes = fit_passes(len(clips), batch, minutes)
        self.batches = [
            tuple(range(first, min(first + batch, len(clips))))
            for first in range(0, len(clips), batch)
        ]
        self.measurement = Measurement(
            pipe, clips, self.batches, self.checkpoint, overrides=overrides, probes=probes,
            probed=probed, on_pace=None if minutes is None else self._estimate,
            on_progress=self._progress,
        )  # fmt: skip
        self.ended = "all clips were made"
        self._plan_cost = 0.0  # of carrying plans out, in uncached runs
        self._others: ErrorModel | None = None  # the prior's, with minutes
        self._expected: Expected = []
        self._problems: Problems = {}
        self._results: dict[int, list[RefinedPlan]] = {}  # by batch, the latest last

    def run(self) -> Profile:
        """Run the whole calibration.

        Raises:
            NotLinearError: the sampler is not linear in the predictions.
            TooFewMinutesError: there is no time for one run.
        """
        # With minutes, plans are searched from the first batch alone: more clips do not give better
        # plans (research/LOG.md).
        for place in range(len(self.batches) if self.budget is None else 1):
            self.measurement.make(place)
        self._check_guidance()
        others = self._others = self.measurement.others if self.budget is not None else None
        if others is not None:
            self._probe_start(others)
        own = self.measurement.error_model()
        error_model = replace(own, gram=self._mean_gram())
        batches = self.batches if self.budget is None else self.batches[:1]
        started = len(self.measurement.start_gains[1])
        of = f"{self.probes}-{self.probed}-{started}-{batches}-{self.passes}"  # the data of `own`
        plans, self._expected = self._searched(own, others, of)
        for number in range(self.passes if plans else 0):  # the results of the last pass count
            for place in range(len(self.batches)):
                if not self._pays(place):
                    break
                self.measurement.make(place)
                self._carried_out(number, place, error_model, plans, of)
        profile = self.so_far()
        assert profile is not None
        return profile

    def so_far(self) -> Profile | None:
        """The profile from the measurements so far; None before the error model is known."""
        measured = self.measurement
        if measured.gain_and_memory is None:
            return None
        sampler, clip = measured.sampler, self.clips[0]
        # Both the candidates and the texts are of the batches that went through all plans.
        texts = [*chain.from_iterable(map(measured.texts, self._results))]
        candidates = self._candidates()
        key = profile_key(
            self.pipe, steps=clip.steps, guidance=clip.guidance, height=clip.height,
            width=clip.width, frames=clip.frames, dtype=self.dtype,
            parts=len(sampler.branch_weights),
        )  # fmt: skip
        settings = {
            "clips": measured.number, "probes": self.probes, "probed": self.probed,
            "cost_runs": round(self.cost, 2),
        }  # fmt: skip
        return Profile(
            key, sampler, self._mean_gram(), *measured.gain_and_memory, REFINED_DEPTH, candidates,
            settings | _versions(), difficulty(texts, candidates),
        )  # fmt: skip

    def _mean_gram(self) -> torch.Tensor:
        """`(1, R, R)`: the mean Gram matrix of the clips. Squared errors are linear in it.

        With minutes the prior counts as one clip, as few clips alone may mislead (research/LOG.md).
        """
        gram = self.measurement.gram
        if self._others is not None:
            gram = torch.cat([self._others.gram.to(gram), gram])
        return gram.mean(0, keepdim=True)

    def _candidates(self) -> tuple[CandidatePlan, ...]:
        return tuple(map(candidate, zip(*self._results.values(), strict=True), self._expected))

    # --- with minutes ---

    def _probe_start(self, others: ErrorModel) -> None:
        """Probe the error gain at the start of some clips, if this may show that it is lower.

        There must be time left for all plans.

        Args:
            others: the prior's error model; its plan is the one that probes carry out.
        """
        assert self.budget is not None
        steps, left = self.clips[0].steps, START_CLIPS
        count = max(round(steps / START_SPEEDUP), 2, len(others.sampler.fixed_steps))
        if self.probes or not self.counts or count >= steps:
            return
        share = (sum(self.counts) + START_RUNS * count) / steps
        plan = search(others, count)[0]
        if not self.measurement.needs_probes(plan):
            return
        for batch in self.batches:
            if not left or not self.budget.fits("uncached", times=share):
                return
            self.measurement.probe_start(batch[:left], plan)
            left -= len(batch[:left])

    def _pays(self, place: int) -> bool:
        """Whether there is time to carry the plans out on a batch, and whether it is worth it."""
        if self.budget is None:
            return True
        gain = math.inf
        if self._results:
            plans = map(QualityDistribution.of, self._candidates())
            gain = next_gain_db(self._problems.values(), plans)
        if gain < ENOUGH_DB:
            self.ended = f"another clip would raise the guaranteed quality by {gain:.1f} dB only"
            return False
        recorded = ("uncached",) if place not in self.measurement.places else ()
        if self._results:
            fits = self.budget.fits(*recorded, "candidates")
        else:  # no plan was carried out yet, so its time is estimated from the uncached runs
            share = sum(self.counts) / self.clips[0].steps
            fits = self.budget.fits("uncached", times=share)
        if not fits:
            self.ended = "the minutes are used up"
        return fits

    def _estimate(self, step_seconds: float) -> None:
        assert self.budget is not None
        steps, batch = self.clips[0].steps, len(self.batches[0])
        probed = self.probed * probing_cost(probe_steps(steps, self.probes), steps)
        clip = 1 + sum(self.counts) / steps
        start = 0.0 if self.probes or not self.counts else START_COST
        estimate = Estimate(self.budget.minutes, step_seconds, steps, batch, clip, probed, start)
        if estimate.runs < 1:
            raise TooFewMinutesError(
                f"minutes is {self.budget.minutes:g}, but one uncached run takes "
                f"{estimate.run_seconds / 60:.2g} minutes; accepted: time for one run or more"
            )
        self.on_estimate(estimate)

    # --- pieces ---

    @property
    def cost(self) -> float:
        """The cost of all work so far, in uncached runs."""
        return self.measurement.cost + self._plan_cost

    def _progress(self, what: str, done: int, total: int) -> None:
        """Report progress. With minutes, the number of clips is not known, so the total is 0."""
        self.on_progress(what, done, total if self.budget is None else 0)

    def _check_guidance(self) -> None:
        guidance, branches = self.clips[0].guidance, self.measurement.sampler.branch_weights
        two = family_of(self.pipe).branches == "separate" and guidance > 1
        if two and len(branches) == 1 and self.speedups:
            raise ValueError(
                f"guidance is not {guidance:g} at every step; accepted: the same guidance at all "
                "steps, or no speedups"
            )

    @property
    def counts(self) -> list[int]:
        """Computed steps of each candidate plan, the slowest first."""
        counts = {round(self.clips[0].steps / speedup) for speedup in self.speedups}
        return sorted((c for c in counts if 2 <= c < self.clips[0].steps), reverse=True)

    def _searched(
        self, error_model: ErrorModel, others: ErrorModel | None, of: str
    ) -> tuple[ComputedSteps, Expected]:
        """The computed steps and the expected PSNR of every candidate plan, the fastest last.

        Args:
            others: the prior's error model, which is used beside a few clips. Its own plan is used
                unless both models together give a clearly better one.
        """
        counts = self.counts

        def searched(count: int) -> tuple[tuple[int, ...], tuple[float, float] | None]:
            if others is None:
                return search(error_model, count)[0].computed, None
            usual = search(others, count)[0].computed
            # What was measured of the error gain holds for the other models' matrix, too.
            steps = steps_beside(error_model, replace(error_model, gram=others.gram), usual)
            return steps, expected_db(usual, others, shipped().evidence)

        def make() -> tuple[ComputedSteps, Expected]:
            self._progress("search", 0, 0)
            found = [searched(count) for count in counts]
            return [steps for steps, _ in found], [expected for _, expected in found]

        made: tuple[ComputedSteps, Expected] = self.checkpoint.get(f"plans-{counts}-{of}", make)
        return made

    def _carried_out(
        self, number: int, place: int, error_model: ErrorModel, plans: ComputedSteps, of: str
    ) -> None:
        """Carry out every plan on one batch, in pass `number`.

        Args:
            of: names the data that the error model depends on, for the checkpoint.
        """
        batch = self.batches[place]
        self._plan_cost += len(batch) * sum(map(len, plans)) / error_model.num_steps
        before = number * len(self.clips) + batch[0]

        def make() -> tuple[list[RefinedPlan], Problems]:
            # Work on a copy: clips that are added before an interrupt must not count twice.
            problems, found = copy.deepcopy(self._problems), []
            clips = {index: self.clips[index] for index in batch}
            total = self.passes * len(self.clips) * len(plans)
            for done, computed in enumerate(plans):
                self._progress("candidates", before * len(plans) + done * len(batch), total)
                refined = carry_out(
                    self.pipe, clips, computed, error_model, self.measurement.recorded(place),
                    problems, self.overrides,
                )  # fmt: skip
                found.append(refined)
            return found, problems

        # "2": earlier versions saved problems without a penalty.
        name = f"candidates-2-{number * len(self.batches) + place}-{plans}-{of}"
        self._results[place], self._problems = self.checkpoint.get(name, make)


def _check_uncached(pipe: Any) -> None:
    """Refuse a pipeline in which another cache is on: its runs differ from the model's."""
    for name, module in transformers_of(pipe, family_of(pipe)).items():
        cache = other_cache(module)
        if cache is not None:
            raise ValueError(
                f"pipe.{name} has {cache}; accepted: no cache, because uncached runs are measured"
            )


def _versions() -> dict[str, str]:
    """The versions of the packages that a profile depends on."""
    return {name: importlib.metadata.version(name) for name in ("dit-accel", "diffusers", "torch")}


__all__ = ["SPEEDUPS", "CalibrationRun", "calibrate", "fit_passes", "probe_steps"]
