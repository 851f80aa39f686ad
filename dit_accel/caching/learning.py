"""Learns from the runs of a pipeline, and makes profiles for later runs from what was learnt.

Goes in: a pipeline, its runs as they begin, recorded runs, and measured PSNRs. Comes out: a
`Profile` from all that is known by then, and notes. What is learnt is stored in a file. If another
process changed the file, it is read again while the device computes step 0 of a run. If the file
cannot be read or written, the report has a note, and the clip is still made. The module knows where
the file is and when it is used. `planning/learned.py` knows its content; `planning/transfer.py`
plans from the observations and the prior. Ours; there is no source.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dit_accel.caching.recording import WholeRun
from dit_accel.core.files import reason_of
from dit_accel.core.generation import ClipSpec
from dit_accel.core.report import Report
from dit_accel.planning import learned_file
from dit_accel.planning.candidate import LARGEST_DB
from dit_accel.planning.first_run import profile_of_gram
from dit_accel.planning.learned import (
    KINDS,
    MOST_ROWS,
    Learned,
    Measured,
    Observations,
    RunKind,
    is_off,
)
from dit_accel.planning.learned_file import Stamp, stamp_of
from dit_accel.planning.lookup import cache_folder, profile_key
from dit_accel.planning.parts import Parts, parts_of
from dit_accel.planning.profile import Profile
from dit_accel.planning.profile_file import ProfileError
from dit_accel.planning.profile_key import ProfileKey

GROWTH = 1.25  # a new profile is made once the number of clips has grown by this factor
_LOG = logging.getLogger(__name__)


def learned_key(key: ProfileKey, parts: Parts) -> ProfileKey:
    """The key of the pipeline's file. It covers all weights, also LoRAs and their scales.

    Args:
        key: of the pipeline.
        parts: of the pipeline.
    """
    weights = hashlib.sha256(f"{key.weights} {parts.lasting}".encode()).hexdigest()[:16]
    return dataclasses.replace(key, weights=weights)


class Learning:
    """What was learnt about one pipeline, in this process and from its file.

    Args:
        pipe: the pipeline. If its parts change, another file is used.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self.key = ProfileKey("", "", "", "", "")  # of the pipeline
        self.known = Learned(self.key)
        self.problem: str | None = None  # why the file is not used
        self._parts: Parts | None = None
        self.path = Path()
        self._stamp: Stamp | None = None  # of the file, when it was last read or written
        self._last: _LearnedProfile | None = None
        self._measured: tuple[Profile, tuple[float, ...], Profile] | None = None

    def begin(self, parts: Parts) -> None:
        """A run begins, and the pipeline has these parts.

        If the parts changed, this reads from the device. Later that would wait for step 0.
        """
        if parts != self._parts:
            self._parts, self._stamp, self._last = parts, None, None
            self.key = profile_key(self._pipe)
            self.known = Learned(learned_key(self.key, parts))
            self.path = learned_file.path_in(cache_folder(), self.known.key)

    def read(self) -> None:
        """Read the file, if it changed."""
        stamp = stamp_of(self.path)
        if stamp is not None and stamp != self._stamp:
            self._stamp, self.problem = stamp, None
            try:
                found = learned_file.load(self.path)
                self.known = found if found.key == self.known.key else self.known
            except (ProfileError, OSError) as error:
                self.problem = str(error)

    def profile(self, kind: RunKind, prior: Profile | None = None) -> Profile | None:
        """The profile for such a run; the prior if nothing else is known; None if nothing is known.

        The profile stays the same until there are clearly more clips (`GROWTH`), because each new
        profile needs a search for plans.

        Args:
            prior: the profile of such runs that was made from the prior; None: it covers no such
                run.
        """
        groups = self._groups(kind, with_prior=prior is not None)
        if not groups:
            return prior
        found = max(groups, key=_clips)
        clips, last = _clips(found), self._last
        if last is not None and last.is_for(kind, clips, prior):
            return last.profile
        gram = torch.stack([one.products for one in found]).sum(0) / clips
        sampler, guidance = found[0].kind.sampler, found[0].kind.guidance
        key = dataclasses.replace(
            self.key, steps=sampler.num_steps, parts=len(sampler.branch_weights), guidance=guidance
        )
        profile = profile_of_gram(gram, sampler, key, clips, prior)
        self._last = _LearnedProfile(profile, kind, clips, prior)
        return profile

    def profile_before_run(self, prior: Profile) -> Profile:
        """As `profile`, for a run that has not begun. Its size is not known yet."""
        kind = RunKind(prior.sampler, prior.key.guidance, 0)
        found = self.profile(kind, prior) or prior
        return self.with_measured(dataclasses.replace(found, key=prior.key))

    def with_measured(self, profile: Profile) -> Profile:
        """The profile, with the measured PSNRs as additional evidence for its guarantees."""
        kind = KINDS[0] if profile.candidates else KINDS[1]
        differences = self.known.differences(kind)
        last = self._measured
        if last is None or last[0] is not profile or last[1] != differences:
            made = profile
            if differences and profile.candidates:
                made = dataclasses.replace(profile, measured=differences)
            elif differences:
                evidence = profile.evidence.with_measured(differences)
                made = dataclasses.replace(profile, evidence=evidence)
            self._measured = last = profile, differences, made
        return last[2]

    def _groups(self, kind: RunKind, *, with_prior: bool) -> list[list[Observations]]:
        """The observations from which such a run can be planned, in groups of one kind.

        The first group is of the run's own kind, else of clips with another size. Then comes a
        group for each other guidance; a profile is transferred from it. Other samplers have groups
        only if there is no prior: plans that were transferred to other steps were worse than the
        prior's (research/LOG.md).
        """
        every = [one for one in self.known.observations if one.kind.may_transfer(kind)]
        sizes = (
            [one for one in every if one.kind.is_like(kind, any_size=any_size)]
            for any_size in (False, True)
        )
        own = next(filter(None, sizes), None)
        others = [
            [one] for one in every
            if not one.kind.is_like(kind, any_size=True)
            and (not with_prior or one.kind.has_steps_of(kind))
        ]  # fmt: skip
        return others if own is None else [own, *others]

    def add_whole(self, whole: WholeRun) -> None:
        """Learn from a run in which every step was computed and recorded, if it has no problem."""
        profile = whole.profile
        if profile is None or profile.sampler.num_rows > MOST_ROWS:
            return
        kind = RunKind(profile.sampler, profile.key.guidance, whole.numbers)
        one = Observations(kind, 1, profile.gram[0])
        sizes = one.products.diagonal()
        if bool(sizes.isfinite().all()) and bool((sizes[:-1] > 0).all()):
            self._change(lambda known: known.with_run(one))

    def add_measured(self, one: Measured) -> None:
        """Store the PSNR of a clip that was compared with its uncached reference."""
        self._change(lambda known: known.with_measured(one))

    def _change(self, change: Callable[[Learned], Learned]) -> None:
        """Make a change in the file; if that fails, only in this process."""
        try:
            last = (self._stamp, self.known) if self.problem is None else None
            empty = Learned(self.known.key)
            self.known, self._stamp = learned_file.update(self.path, empty, change, last)
            self.problem = None
        except (ProfileError, OSError) as error:
            self.known = change(self.known)
            reason = reason_of(error) if isinstance(error, OSError) else str(error)
            problem = f"{self.path}: {reason}" if isinstance(error, OSError) else reason
            if problem != self.problem:  # log it, because a report may never be made
                _LOG.warning("Learnt in this process only, not saved: %s.", problem)
            self.problem = problem

    def add_report(self, report: Report, psnr_db: float, clip: ClipSpec) -> None:
        """Store the PSNR of a run's clip against its uncached reference.

        Args:
            report: of the run.
            psnr_db: the measured PSNR.
            clip: the settings of the clip. If several runs made it, only the last one counts.
        """
        predicted = report.prediction or {}
        psnr, kind = predicted.get("psnr_db"), predicted.get("basis")
        if psnr is None or kind not in KINDS or not math.isfinite(psnr_db):
            return
        raw = psnr - predicted.get("offset_db", 0.0)
        if max(abs(raw), abs(psnr_db)) <= LARGEST_DB:
            text = json.dumps(clip.to_dict(), sort_keys=True)
            name = hashlib.sha256(text.encode()).hexdigest()[:16]
            self.add_measured(Measured(name, kind, raw, psnr_db))

    def notes(self) -> tuple[str, ...]:
        """A note if the file could not be read or written, with the reason."""
        problem = self.problem
        return () if problem is None else (f"Learnt in this process only, not saved: {problem}.",)


class FixedLearning(Learning):
    """What was learnt about a pipeline up to some moment. Later runs do not change it.

    Args:
        path: a copy of the pipeline's file; None: nothing was learnt by then.
    """

    def __init__(self, pipe: Any, path: Path | None) -> None:
        super().__init__(pipe)
        self._copy = path

    def read(self) -> None:
        pass

    def begin(self, parts: Parts) -> None:
        """A run begins.

        Raises:
            ProfileError: the file is damaged, or belongs to another pipeline.
            FileNotFoundError: there is no such file.
        """
        if parts == self._parts:
            return
        self._parts, self._last, self.key = parts, None, profile_key(self._pipe)
        key = learned_key(self.key, parts)
        self.known = Learned(key) if self._copy is None else learned_file.load(self._copy)
        if self.known.key != key:
            raise ProfileError(
                f"{self._copy} was learnt from another pipeline; accepted: a file of this pipeline"
            )

    def _change(self, change: Callable[[Learned], Learned]) -> None:
        pass


@dataclasses.dataclass(frozen=True)
class _LearnedProfile:
    """A profile that was made from observations, with the kind of run and the data behind it."""

    profile: Profile
    kind: RunKind
    clips: int
    prior: Profile | None

    def is_for(self, kind: RunKind, clips: int, prior: Profile | None) -> bool:
        """Whether the profile is still good enough for runs of a kind, of which `clips` clips are
        known now."""
        few = self.clips <= clips < GROWTH * self.clips
        return few and self.kind.is_like(kind) and (self.prior is None) == (prior is None)


def _clips(observations: list[Observations]) -> int:
    return sum(one.clips for one in observations)


def learning_of(pipe: Any) -> Learning | None:
    """What was learnt about a pipeline with its current parts; None: the environment switches
    learning off."""
    if is_off():
        return None
    found = Learning(pipe)
    found.begin(parts_of(pipe))
    found.read()
    return found
