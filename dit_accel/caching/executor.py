"""Carries out a policy at the denoiser's output: computes and caches, or extrapolates.

Goes in: every forward of a session. Comes out: its output, computed or a weighted sum of computed
ones. With two components, the second guidance branch is cached and extrapolated as its difference
from the first. If an extrapolation lacks a cached value, the step is computed.

A value that is not finite is never used if the policy has `needs_error` or `checks_finite`. It is
found and restored before a step uses it. If the host has not read the measurements yet, it is
replaced on the device. Without both settings nothing is checked during the run; `FiniteCheck` in
`caching/monitor.py` reads the sums of the latents after it, for a note. The policy decides,
`core/extrapolation.py` combines. It works with any transformer. Ours.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from dit_accel.caching.engine import CacheMemory, Engine
from dit_accel.caching.first_step import FirstStepWatch
from dit_accel.caching.monitor import Branch, LostValues, Monitor, Pending, load_kernels
from dit_accel.caching.outputs import Form, taken
from dit_accel.caching.policy import Controller, Policy
from dit_accel.caching.ranks import Ranks
from dit_accel.caching.recording import NotPlanned
from dit_accel.caching.run_changes import RunChanges
from dit_accel.caching.store import BranchStore, TensorStore
from dit_accel.core import extrapolation
from dit_accel.core.interceptor import Forward, ForwardCall
from dit_accel.core.report import CacheSite, SiteReport
from dit_accel.core.session import Session
from dit_accel.planning.plan import Extrapolation
from dit_accel.planning.threads import one_thread


class PlanExecutor(Engine):
    """Answers the forwards of a session with the policy that the controller gives to each run.

    `cache_memory` is the number of bytes that cached values may take on the device; None: no bound.
    """

    site: CacheSite = "output"

    def __init__(
        self, session: Session, controller: Controller, cache_memory: int | None = None
    ) -> None:
        self.session, self.controller = session, controller
        self.monitor, self.lost = Monitor(session), LostValues(session)
        self.store = TensorStore(cache_memory)  # components, by role and branch, by step
        self.computed: dict[tuple[str, str], dict[int, bool]] = {}  # by transformer and branch
        self.first_step = FirstStepWatch()
        self._prepared = False  # whether `policy.prepare` was called in this run
        self.ranks = Ranks()
        self._missing: set[int] = set()  # steps whose extrapolation lacked a value
        self._changed: set[int] = set()  # steps computed because a layout changes the denoiser
        self._form: Form | None = None  # of the last computed output
        self.changes = RunChanges(session)
        self._learning: tuple[str, ...] = ()  # notes
        self.clear()

    def clear(self) -> None:
        """Free the cached values and the measurements."""
        self.store.clear()
        self._pending: list[Pending] = []  # steps that were measured, and not observed yet
        self._first: dict[str, torch.Tensor] = {}  # this step's value of the first branch, by role
        self._forwards: Counter[str] = Counter()  # how many this step had so far, by role
        self._extrapolation: Extrapolation | None = None  # of this step
        self.first_step.reset()
        self.monitor.reset()
        self.lost.reset()

    def around(self, call: ForwardCall, forward: Forward) -> Any:
        """The output of a forward: computed and cached, or extrapolated and put into the form (a
        tuple or an output class) of the last computed output."""
        session, policy = self.session, self.policy
        first = session.role not in self._first
        component = min(self._forwards[session.role], len(policy.branch_weights) - 1)
        self._forwards[session.role] += 1
        if not first and policy.needs_error and self.monitor.texts.changed(session.branch):
            policy.on_invalid(session.step - 1, "the text changed")
            self._extrapolation = policy.extrapolation_at(session.step)
        if not policy.needs_error:
            self.changes.note_text(self.monitor.texts.difference(session.branch))
        cached = self.store.branch(session.role, session.branch)
        value = self._extrapolate(component, cached)
        computed = value is None
        if value is not None and self._form is not None:
            output = self._form.output(value)
        else:
            if self._extrapolation is not None:
                self._missing.add(session.step)
            output = forward(call)
            try:
                value, self._form = taken(output)
            except ValueError as error:  # no plan is possible, but the clip is still made
                return self._give_up(str(error), call, output)
            self._prepare(value)
            self._store(component, cached, value, first=first)
        if not computed and policy.needs_error and (first or component > 0):
            part = value if first else value - self._first[session.role]
            self.monitor.note_prediction(
                component, policy.weights_at(session.step)[component], part
            )
        if first:
            self._first[session.role] = value
        self.computed.setdefault((call.transformer, session.branch), {})[session.step] = computed
        return output

    def _give_up(self, why: str, call: ForwardCall, output: Any) -> Any:
        """Compute every step of the run, because one of its forwards cannot be planned."""
        session = self.session
        self.policy, self._prepared = NotPlanned(session.num_steps or 0, why), True
        self._extrapolation = None
        self.first_step.reset()
        self.store.clear()
        self.computed.setdefault((call.transformer, session.branch), {})[session.step] = True
        return output

    def _prepare(self, value: torch.Tensor) -> None:
        """Do slow work on the host while the device computes the run's first forward."""
        if self._prepared:
            return
        with one_thread():
            load_kernels(value)
            self.policy, self._prepared = self.policy.prepare(), True
            self.store.min_bits = self.policy.min_bits

    def _extrapolate(self, component: int, cached: BranchStore) -> torch.Tensor | None:
        """The extrapolated value of one branch; None: compute it, also if a cached value is
        missing."""
        planned = self._extrapolation
        if planned is None:
            return None
        weights = planned.weights[min(component, len(planned.weights) - 1)]
        noise = self.store.noise.get(self.session.role)
        with_noise = component == 0 and planned.noise_weight != 0.0
        if not all(step in cached for step in weights) or (with_noise and noise is None):
            return None
        values, factors = [cached[step] for step in weights], list(weights.values())
        if with_noise and noise is not None:
            values, factors = [*values, noise], [*factors, planned.noise_weight]
        if component > 0:
            values, factors = [self._first[self.session.role], *values], [1.0, *factors]
        value = extrapolation.weighted_sum(factors, values)
        return self._finite(component, value, cached) if self._pending else value

    def _finite(self, component: int, value: torch.Tensor, cached: BranchStore) -> torch.Tensor:
        """An extrapolated value in which each number is finite, without a host sync.

        Lost cached values may not be observed yet. So a number that is not finite is replaced by
        the number at the same place in the newest cached value that is finite there.
        """
        newest, *older = (cached[step] for step in sorted(cached, reverse=True)[:2])
        for one in older:
            newest = torch.where(newest.isfinite(), newest, one)
        newest = newest.nan_to_num(0.0, 0.0, 0.0).to(value.dtype)
        if component > 0:
            newest = newest + self._first[self.session.role]
        return torch.where(value.isfinite(), value, newest)

    def _store(
        self, component: int, cached: BranchStore, value: torch.Tensor, *, first: bool
    ) -> None:
        """Cache a fresh value, and compare it with the line through the two values before it."""
        session, policy = self.session, self.policy
        # A copy, because a caller may write to its output; CUDA graphs do so at their next call.
        fresh = value - self._first[session.role] if component > 0 else value.clone()
        if not cached.holds_only(fresh.shape):  # values of another size
            cached.clear()
        if first and session.step == 0 and _same_space(session.latents, value):
            noise = session.latents.clone()
            self.store.noise[session.role] = noise
            if policy.records:
                policy.on_noise(noise)
            self.first_step.noise = noise if self.first_step.watching else None
        if session.step == 0 and self.first_step.watching:
            self.first_step.components.append(fresh)
        main = first or component > 0  # with one component only the first branch is measured
        if main and policy.records:
            policy.on_output(session.step, component, fresh)
        since = policy.since(session.step)
        before = sorted((s for s in cached if since <= s < session.step), reverse=True)[:2]
        cached[session.step] = fresh
        self.lost.restore(cached)
        if policy.needs_error and main:
            line = [(s, cached[s]) for s in before] if len(before) == 2 else []
            self.monitor.compare(component, policy.weights_at(session.step)[component], fresh, line)

    # --- runs and steps ---

    @one_thread()
    def run_begins(self, num_steps: int | None) -> None:
        """Forget the last run, and get the policy of this one from the controller."""
        self.clear()
        run = self.session.run
        self.ranks = Ranks(run.groups)
        self.monitor.reset(self.ranks)
        self.policy, self._prepared = self.controller.start(run), False
        if self.controller.sees_first_step:
            self.first_step.begin(self.session.pipe.scheduler)
        self.computed.clear()
        self._missing.clear()
        self._changed.clear()
        self.changes.reset()
        self.host_syncs = 0
        self.store.begin(self.policy.min_bits)

    def step_begins(self, step: int) -> None:
        """Measure the previous step, ask the policy, and free values that no later step uses."""
        policy = self.policy
        if policy.needs_error:
            if self.monitor.texts.changed(""):
                policy.on_invalid(step - 1, "the text changed")
            if self._first:
                self._measure(step)
            self.monitor.note_latents()
        if step == 1 and self.first_step.components:
            policy = self._after_first_step()
        self._first = {}
        self._forwards.clear()
        self.changes.note_guidance(step)
        self.monitor.next_step()
        planned = policy.extrapolation_at(step)
        self._extrapolation = planned
        if planned is not None and self.session.changes_denoiser(step):
            self._extrapolation = None
            self._changed.add(step)
        if self._extrapolation is not None and policy.checks_finite and not policy.needs_error:
            sums = self.ranks.mean(torch.stack(self.store.sums()))
            self._drop_invalid(step - 1, self.store.places(), sums.tolist())
            self.host_syncs += 1
        if self.lost:  # compute this step: a lost value is restored with the help of a fresh one
            self._extrapolation = None
        self._free(step)

    @one_thread()
    def _after_first_step(self) -> Policy:
        """Ask the controller again: now it is known how many forwards a step has."""
        one_weight = len(self.policy.branch_weights) == 1
        main = self._form.first if self._form is not None else None
        seen = partial(self.first_step.seen, main, as_differences=one_weight)
        new = self.controller.after_first_step(len(self.store), seen)
        self.first_step.reset()
        if new is not None:
            for component, cached in enumerate(self.store.values()):
                if component > 0 and one_weight:
                    cached[0] = cached[0] - self._first[self.session.role]
            self.policy = new
            self._pending.clear()
            new.on_computed(0)
        return self.policy

    def _free(self, step: int) -> None:
        needed = {*self.policy.needed_steps(step - 1)}
        for cached in self.store.values():
            # The next comparison needs the last two values.
            line = sorted(cached)[-2:] if self.policy.needs_error else []
            for old in [old for old in cached if old not in needed and old not in line]:
                del cached[old]

    def _measure(self, step: int) -> None:
        """Measure the previous step, and give due measurements to the policy.

        With `observes_late`, the host waits for a step's measurements only after a later computed
        forward was queued behind them. That forward keeps the device busy while the host waits.
        """
        measured = self.monitor.measure(step, self.store.sums(), self.store.places())
        if measured.computed:
            self.policy.on_computed(measured.step)
            if self._observes_late:
                self._observe_pending()
        self._pending.append(measured)
        if not self._observes_late:
            self._observe_pending()

    @property
    def _observes_late(self) -> bool:
        return self.policy.observes_late and not self.lost

    def _observe_pending(self) -> None:
        """Give the pending measurements to the policy, in one host sync."""
        self.host_syncs += bool(self._pending)
        while self._pending:
            pending = self._pending.pop(0)
            found = self.monitor.metrics(pending)
            self._drop_invalid(pending.step, pending.places, found.sums)
            if found.computed:
                self.policy.observe(pending.step, found.extrapolation_error, found.trust)
            if found.jumped:
                self.policy.on_suspicious(pending.step, "the latents jumped")

    def _observe_rest(self) -> None:
        """Observe the pending measurements if the run is over. During a run another rank might not
        do the same at this point."""
        if self._pending and self.session.steps_ran == self.session.num_steps:
            self.policy.on_end(self.session.steps_ran)
            self._observe_pending()

    def _drop_invalid(
        self, before: int, places: Sequence[tuple[Branch, int]], sums: Sequence[float]
    ) -> None:
        """Drop cached values that are not finite, and report this to the policy.

        Args:
            before: the step after which they are reported.
            places, sums: as `TensorStore.places` and `TensorStore.sums` return them.
        """
        lost = self.lost.drop(self.store, places, sums[: len(places)])
        if not all(map(math.isfinite, sums[len(places) :])):
            self.store.noise.clear()
            self.policy.on_invalid(before, "the cached noise was not finite")
        elif lost:
            self.policy.on_lost_value(before, "a cached value was not finite")

    def run_follows(self) -> None:
        self._observe_rest()

    def run_ends(self, steps: int) -> None:
        self.policy.on_end(steps)
        self._observe_rest()
        self._learning = self.controller.finish()

    def flush(self) -> None:
        self._observe_rest()
        self._learning = self.controller.finish()

    # --- for the report ---

    @property
    def memory(self) -> CacheMemory:
        return self.store.memory

    def site_reports(self) -> tuple[SiteReport, ...]:
        return tuple(
            SiteReport(
                transformer, branch, self.site,
                computed=tuple(step for step, computed in [*steps.items()] if computed),
                extrapolated=tuple(step for step, computed in [*steps.items()] if not computed),
            )
            for (transformer, branch), steps in [*self.computed.items()]
        )  # fmt: skip

    def notes(self) -> tuple[str, ...]:
        notes = *self.policy.notes(), *self._added_steps(), *self.store.notes()
        return (*notes, *self._learning)

    def run_changes(self) -> tuple[str, ...]:
        return self.changes.notes(self.computed, self.policy.second)

    def _added_steps(self) -> tuple[str, ...]:
        """A note on the steps that were computed in addition to the plan, with the reasons."""
        ran = [[*steps.items()] for steps in [*self.computed.values()]]
        computed = {step for steps in ran for step, was in steps if was}
        policy = self.policy
        added = {*policy.added_steps(computed)}
        if not added:
            return ()
        because = [*policy.reasons()]
        if self._missing & added:
            because.append("a value was missing")
        if self._changed & added:
            because.append("a part of the layout began or ended")
        which, omitted = (", ".join(map(str, s)) for s in (sorted(added), policy.omitted_steps()))
        more = f"{len(added)} more step{'s' if len(added) > 1 else ''} than planned ({which})"
        what = f"steps {which} in place of {omitted}" if omitted else more
        why = f", because {' and '.join(because)}" if because else ""
        return (f"Computed {what}{why}.",)


def _same_space(latents: Any, value: torch.Tensor) -> bool:
    """Whether the denoiser's input has the shape of its prediction. At step 0 it is noise then."""
    return isinstance(latents, torch.Tensor) and latents.shape == value.shape
