"""Gives every run its policy, once, when the run begins.

Goes in: a `RunInfo`, the pipeline's scheduler, a profile and a target. Comes out: a
`GuardedPolicy` with the plan that `chooser.py` finds. Without a profile, the plan comes from what
was learnt in earlier runs and from the prior. If the prior does not cover the run, every step is
computed and the run is recorded; later runs are planned from the record. It knows pipelines and
profiles, and nothing of single steps. Ours; there is no source.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from dit_accel.caching.chooser import Chooser
from dit_accel.caching.guard import GuardedPolicy
from dit_accel.caching.learning import Learning
from dit_accel.caching.policy import Policy, SearchingPolicy
from dit_accel.caching.ranks import Ranks
from dit_accel.caching.recording import (
    NotPlanned,
    RecordingPolicy,
    WholeRun,
    guidance_of,
    numbers_of,
    why_not,
)
from dit_accel.core.families import Family, transformers_of
from dit_accel.core.guidance import FirstStep
from dit_accel.core.interceptor import RunInfo
from dit_accel.core.pipeline_calls import step_arguments
from dit_accel.core.private_names import other_cache
from dit_accel.planning import selection
from dit_accel.planning.choice import PlanChoice
from dit_accel.planning.learned import RunKind
from dit_accel.planning.lookup import profile_key
from dit_accel.planning.parts import parts_of
from dit_accel.planning.plan import SamplerCoefficients
from dit_accel.planning.prior import SchedulerCache
from dit_accel.planning.profile import Profile
from dit_accel.planning.profile_file import ProfileError

MAX_ADDED_STEPS: int | None = 1  # with a speedup target: steps that the guard may add to the plan
Found = tuple[Profile | None, tuple[str, ...]]  # a profile, and remarks on it


class RunController:
    """Chooses a plan for every run of a pipeline. Implements `Controller`.

    Args:
        profile: None: runs are planned from the prior, or the first one is recorded.
        target: a quality or a speedup.
        guard, static, choice: see `PlannedConfig`.
        force: whether a profile with one branch is used with another guidance scale.
        use_text: whether the plan depends on the prompt, if the profile has data on prompts.
        remarks: notes for every run's report. If there are any, the profile is not trusted.
        look_up: finds and checks the profile again, with remarks, after the weights or the
            scheduler of the pipeline have changed; None: the profile stays.
        learning: learns from runs, and plans runs without a profile; None: nothing is learnt.
        records: whether a run is recorded if there is nothing to plan it from. Else it is refused.
    """

    def __init__(
        self, pipe: Any, family: Family, profile: Profile | None, target: selection.Target, *,
        guard: bool = True, static: bool = False, force: bool = False, use_text: bool = True,
        choice: PlanChoice | None = None, remarks: tuple[str, ...] = (),
        look_up: Callable[[], Found] | None = None, learning: Learning | None = None,
        records: bool = True,
    ) -> None:  # fmt: skip
        self.learning, self.records = learning, records
        self._next_reference: WholeRun | None = None  # uncached reference of the next run's clip
        self._reference: WholeRun | None = None  # uncached reference of the current run's clip
        self._caches = False  # whether another package's cache is on in the current run
        self._teaches = True  # whether the current run is learnt from, if it is recorded
        self._look_up, self._parts = look_up, parts_of(pipe)
        self._changed: tuple[str, ...] = ()  # the parts of the pipeline changed since the last run
        self.pipe, self.family, self.profile, self.target = pipe, family, profile, target
        self.guard, self.static, self.remarks = guard, static, remarks
        self._chooser = Chooser(
            pipe, family, target, static=static, force=force, use_text=use_text, chosen=choice
        )
        self._recorded: dict[tuple[Any, ...], Profile] = {}  # by `_record_key`
        self._recording: RecordingPolicy | None = None
        self._schedulers = SchedulerCache()
        # The branch weights of the last run, for a pipeline that does not report them.
        self._weights = profile.sampler.branch_weights if profile else (1.0,)
        self._ranks, self._where = Ranks(), torch.device("cpu")
        # Whether this run's first step is watched, because no branch weights are reported.
        self.sees_first_step = False
        self._scheduler = pipe.scheduler  # as it was when this run began
        self._unreported: RunInfo | None = None  # this run, if no branch weights are reported

    def start(self, run: RunInfo) -> Policy:
        """The policy of a run. If several ranks compute the run, the first one chooses.

        Raises:
            ValueError: the target or the profile does not suit the run.
        """
        self._ranks = Ranks(run.groups)
        if run.latents is not None:
            self._where = run.latents.device
        self.sees_first_step = not self._reports_guidance(run)  # on every rank: all watch it
        policy = self._ranks.of_first(lambda: self._start(run), self._where)
        if isinstance(policy, SearchingPolicy):
            policy.agree(self._ranks, self._where)
        return policy

    def after_first_step(self, branches: int, seen: Callable[[], FirstStep]) -> Policy | None:
        decide = partial(self._after_first_step, branches, seen)
        return self._ranks.of_first(decide, self._where)

    def _start(self, run: RunInfo) -> Policy:
        self.finish()
        self._recording = None
        self._reference, self._next_reference = self._next_reference, None
        self._caches = any(map(other_cache, transformers_of(self.pipe, self.family).values()))
        known = self._reference is not None and self._reference.profile is not None
        self._teaches = not (known or self._caches)
        self._see_parts()
        self._scheduler = self.pipe.scheduler
        if self.sees_first_step:  # needed again after that step, which changes some schedulers
            self._scheduler = copy.deepcopy(self.pipe.scheduler)
        if self.learning is not None:
            self.learning.begin(self._parts)
        steps, begin = run.num_steps or 0, run.begin
        asked_for = len(self.pipe.scheduler.timesteps)
        if steps < selection.MIN_PLANNED_STEPS:  # for instance a second stage
            where = f"the run begins at step {begin}, and " if begin else ""
            if steps < asked_for and not begin:
                where = f"the run is a part of {asked_for} steps, and "
            count = "1 step is" if steps == 1 else f"{steps} steps are"
            return self._not_planned(steps, f"{where}{count} too few for a plan")
        reported = self._reported_weights(run)
        self._unreported = run if reported is None else None
        return self._policy(run, reported or self._weights)

    def _after_first_step(self, branches: int, seen: Callable[[], FirstStep]) -> Policy | None:
        run, self._unreported = self._unreported, None
        if run is None or (branches == len(self._weights) == 1 and self.family.blocks):
            return None  # one forward per step, and the table's row says what it computes
        first = seen()
        if self._recording is not None:
            self._recording.on_first_step(first)
            return None
        weights, before = first.weights(), self._weights
        if weights is None:
            return self._not_planned(run.num_steps or 0, why_not(first))
        if len(weights) == len(before) and all(map(_is_near, weights, before)):
            return None
        self._weights = weights
        try:
            policy = self._policy(run, weights).prepare()
        except ProfileError as error:
            return self._not_planned(run.num_steps or 0, str(error))
        if policy.records:
            policy.take(first)
        return policy

    def _not_planned(self, steps: int, reason: str) -> NotPlanned:
        return NotPlanned(steps, reason, by_threshold=bool(self.family.sites))

    def _see_parts(self) -> None:
        """Find the parts of the pipeline that changed since the last run, and check the profile.

        Raises:
            ProfileError: the profile does not suit the changed pipeline.
        """
        parts = parts_of(self.pipe)
        self._changed = parts.changed_since(self._parts)
        if self._changed and self._look_up is not None:
            self.profile, self.remarks = self._look_up()
            self._chooser.chosen = None
            if self.profile is not None and "dtype" not in self._changed:
                what = " and ".join(self._changed)
                self.remarks += (f"The {what} changed after accelerate(); the profile still fits.",)
        self._parts = parts

    def _reports_guidance(self, run: RunInfo) -> bool:
        """Whether the number of branches and their weights are known before the first step."""
        separate = self.family.branches == "separate" and run.guidance is not None
        # With audio, a step may have further forwards, for other kinds of guidance (LTX-2).
        return separate or (self.family.branches == "batched" and self.family.audio is None)

    def _reported_weights(self, run: RunInfo) -> tuple[float, ...] | None:
        """The branch weights, from the guidance that the pipeline reports; None: it reports
        none."""
        if not self._reports_guidance(run):
            return None
        if self.family.branches == "batched" or run.guidance is None:
            return (1.0,)
        # If the profile has another guidance, the chooser's `_guidance_notes` refuses or notes it.
        return selection.branch_weights(self.profile, run.guidance, separate=True, force=True)

    def learn_from(self, reference: WholeRun) -> bool:
        """Learn from the uncached reference of the next run's clip, after that run.

        Returns:
            Whether anything will be learnt.

        Raises:
            ValueError: parts of the pipeline changed since the reference was recorded.
        """
        self.finish()
        changed = parts_of(self.pipe).changed_since(reference.parts)
        if changed:
            raise ValueError(
                f"reference is of an earlier state: {' and '.join(changed)} changed since it was "
                "recorded; accepted: a reference of the pipeline as it is now"
            )
        if self.learning is None or self.static:
            return False
        self._next_reference = reference
        return reference.profile is not None

    def _learn_reference(self) -> tuple[str, ...]:
        """Learn from the reference of the current run's clip, once. Returns a note if nothing could
        be learnt."""
        whole = self._reference
        if whole is None or self.learning is None:
            return ()
        if whole.profile is None:
            return (f"Nothing was learnt: the uncached reference {whole.problem}.",)
        self._reference = None
        self.learning.add_whole(whole)
        return ()

    def finish(self) -> tuple[str, ...]:
        """Learn from the current run, if it is over and was recorded. Returns notes."""
        recording = self._recording
        whole = None if recording is None else recording.whole(self._parts)
        if recording is not None and whole is not None and whole.profile is not None:
            self._recording = None
            self._weights = whole.profile.sampler.branch_weights
            kind = self._record_key(recording.guidance, self._weights)
            self._recorded[kind] = whole.profile
            if self.learning is not None and self._teaches:
                self.learning.add_whole(whole)
        notes = self._learn_reference()
        return notes if self.learning is None else (*notes, *self.learning.notes())

    def _known(
        self, run: RunInfo, coefficients: SamplerCoefficients, prior: Profile | None,
        recorded: Profile | None,
    ) -> Profile | None:  # fmt: skip
        """The profile for a run: the given one, else one from earlier runs and the prior."""
        if self.learning is None:
            return self.profile or recorded or prior
        self.learning.read()
        kind = self._kind(run, coefficients)
        found = self.profile or self.learning.profile(kind, prior) or recorded
        return None if found is None else self.learning.with_measured(found)

    def _kind(self, run: RunInfo, coefficients: SamplerCoefficients) -> RunKind:
        guidance = guidance_of(coefficients.branch_weights) or run.guidance or 1.0
        return RunKind(coefficients, guidance, numbers_of(run))

    def _sampler(self, run: RunInfo, weights: tuple[float, ...]) -> SamplerCoefficients:
        """The sampler coefficients of a run.

        Raises:
            ValueError: the run cannot be planned.
        """
        given = step_arguments(self.pipe)
        response = self._schedulers.response(self._scheduler, run.begin, run.num_steps, given)
        coefficients = response.sampler(weights)
        selection.check_num_steps(coefficients.num_steps)
        return dataclasses.replace(coefficients, second=selection.second_of(run))

    def _policy(self, run: RunInfo, weights: tuple[float, ...]) -> Policy:
        """The policy of a run with these branch weights: planned, or recorded if there is nothing
        to plan it from."""
        coefficients = self._sampler(run, weights)
        recorded = self._recorded.get(self._record_key(run.guidance or 1.0, weights))
        # This reads from the device, so it is done now: later it would wait for step 0.
        prior = None if self.profile else self._by_prior(run, coefficients)
        find = partial(self._known, run, coefficients, prior, recorded)
        known = self.profile or prior or find()
        if known is None and not self.records:
            raise ProfileError(self._unknown(run))
        if known is None:
            return self._record(run, coefficients)
        guidance = run.guidance
        if self._unreported is not None:
            guidance = guidance_of(weights) or guidance
        self._chooser.notes(known, coefficients, guidance, run.latents)  # refuse before any work
        choose = partial(self._planned, lambda: find() or known, coefficients, run, guidance)
        if selection.needs_search(known, coefficients, self.target):
            return SearchingPolicy(coefficients, self.guard, self.static, choose)
        return choose()

    def _planned(
        self, find: Callable[[], Profile], coefficients: SamplerCoefficients, run: RunInfo,
        guidance: float | None,
    ) -> Policy:  # fmt: skip
        """The policy of the plan that is chosen for a run, from what is known by now."""
        profile = find()
        notes = self._chooser.notes(profile, coefficients, guidance, run.latents)
        choice, more = self._chooser.choose(profile, coefficients, run)
        policy = GuardedPolicy.of(
            choice, guard=self.guard, static=self.static, trusted=not self.remarks,
            max_added=None if self.target.speedup is None else MAX_ADDED_STEPS,
            remarks=(*self.remarks, *notes, *more),
        )  # fmt: skip
        return policy.start(run)

    def _by_prior(self, run: RunInfo, coefficients: SamplerCoefficients) -> Profile | None:
        """A profile made from the prior; None if the prior does not cover the run."""
        if run.begin or not self.family.blocks:
            return None  # the run starts from a clip, or the kinds of its forwards are not known
        guidance = self._kind(run, coefficients).guidance
        given = step_arguments(self.pipe)
        return self._schedulers.profile(self._scheduler, coefficients, guidance, given)

    def _unknown(self, run: RunInfo) -> str:
        """The message for a run that is neither planned nor recorded: why, and what would help."""
        if not self.family.blocks:
            lacking = f"{self.family.transformer}, which is not in FAMILIES"
        elif run.begin:
            lacking = f"runs that begin at step {run.begin}"
        else:
            lacking = f"the noise levels of {type(self._scheduler).__name__}"
        return (
            "no profile was found in the model's folder or the cache, and the prior does not cover "
            f"{lacking}; accepted: a profile, which `dit-accel calibrate` makes; a threshold; or "
            "learn=True without static and layout, which records this run for later ones"
        )

    def _record(self, run: RunInfo, coefficients: SamplerCoefficients) -> RecordingPolicy:
        steps, parts = coefficients.num_steps, len(coefficients.branch_weights)
        key = profile_key(self.pipe, steps=steps, parts=parts, guidance=run.guidance or 1.0)
        self._recording = RecordingPolicy(
            run, coefficients, self._scheduler, key, self.family.branches,
            known=self._reported_weights(run) is not None, remarks=self._why_anew(),
            by_threshold=bool(self.family.sites),
        )  # fmt: skip
        return self._recording

    def _why_anew(self) -> tuple[str, ...]:
        if self._changed:
            return (f"The {' and '.join(self._changed)} changed since the last run.",)
        return ("Earlier runs were recorded with another guidance.",) if self._recorded else ()

    def _record_key(self, guidance: float, weights: tuple[float, ...]) -> tuple[Any, ...]:
        """Which runs can be planned from a record. With two branches the guidance may differ: the
        plan weighs them again. With one branch the guidance is in the predictions, so it must be
        the same."""
        of_weights = (len(weights),) if len(weights) > 1 else (1, guidance)
        return self._parts, self._caches, of_weights


def _is_near(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=0.02, abs_tol=0.02)  # the precision of a measured one
