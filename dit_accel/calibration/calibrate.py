"""Measure a pipeline, so that plans can be made for it: the profile.

From a dozen clips or more:

1. *Uncached*: the inner products of each clip's predictions, part by part, and of the noise that it
   started from; what one unit of each adds to the final latents (`recording`).
2. *Probes* on the first clips: runs that reuse a single prediction at one step, and what became of
   the error that it made (`gain`, `memory`).
3. *Rungs*: a plan for each of a ladder of speeds, carried out on every clip. What changes its
   windows' lines is fitted to what is really left (`refining`); each clip is served by changes that
   have not seen it, and scored against its uncached twin: honest errors.

Clips are made one after the other, in two passes, or several in one call of the pipeline (`batch`);
where all are in one batch, one pass is enough, for they come to every window together.

Memory: the predictions of the clips of a batch, in float32 on the CPU. With `work`, what is done is
kept in a folder, batch by batch, and the same call goes on where it was.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from dit_accel.calibration.checkpoint import WorkFolder
from dit_accel.calibration.record import UncachedRun, probe, probe_steps, record_all, summed_up
from dit_accel.calibration.refine import REFINED_DEPTH, Problems, RefinedPlan, carry_out
from dit_accel.core.families import family_of
from dit_accel.core.generation import ClipSpec
from dit_accel.planning.difficulty import PromptDifficulty
from dit_accel.planning.lookup import profile_key
from dit_accel.planning.profile import CandidatePlan, Profile
from dit_accel.planning.search import ErrorModel, search

SPEEDUPS = (2.0, 2.5, 2.94, 3.125, 3.33, 3.57, 3.85, 4.17, 4.55, 5.0, 5.56, 6.25, 7.14, 8.33)
FIT_PASSES = 2  # over several batches: the first ones of the first pass are served by few others
MAX_RECORDED_BYTES = 4 << 30  # bytes of recordings that are kept for the next pass
Told = Callable[[str, int, int], None]
Ladder = list[tuple[int, ...]]  # the computed steps of every rung


def calibrate(
    pipe: Any,
    clips: Sequence[ClipSpec],
    *,
    speedups: Sequence[float] = SPEEDUPS,
    probes: int = 8,
    probed: int = 3,
    batch: int = 1,
    dtype: str = "float32",
    work: Path | None = None,
    overrides: dict[str, Any] | None = None,
    told: Told = lambda what, done, total: None,
) -> Profile:
    """Measure what plans are made of, and the plans.

    Args:
        pipe: a diffusers pipeline of a known family, not accelerated.
        clips: of equal size, steps and guidance; a dozen or more.
        speedups: the ladder; each is a plan that is carried out on every clip. Empty: none is, and
            plans rest on inner products alone.
        probes: steps at which a single prediction is reused, >= 2.
        probed: clips that are probed, from the first on, 1 to all; each costs `probes` runs.
        batch: clips that are made by one call of the pipeline, >= 1.
        dtype: what the denoiser computes in, for the profile's identity.
        work: folder for what is done so far; it can be deleted afterwards.
        overrides: arguments of the pipeline's call that replace the clips'.
        told: hears what is being done, how much of it is done, and of how much.

    Raises:
        ValueError: there are no clips, they differ in what must be equal, or a number is out of
            range.
        NotLinearError: the sampler is not linear in the predictions.
    """
    alike = {(c.steps, c.guidance, c.height, c.width, c.frames) for c in clips}
    if len(alike) != 1:
        raise ValueError(
            f"clips have {len(alike)} kinds of steps, guidance and size; accepted: one for all"
        )
    if probes < 2 or not 1 <= probed <= len(clips):
        raise ValueError(
            f"probes is {probes}, probed is {probed}; accepted: at least 2, and 1 to {len(clips)}"
        )
    if batch < 1:
        raise ValueError(f"batch is {batch}; accepted: 1 or more")
    wrong = [s for s in speedups if not 1 < s <= clips[0].steps]
    if wrong:
        raise ValueError(f"speedups has {wrong}; accepted: above 1, up to {clips[0].steps}")
    calibration = _Calibration(pipe, clips, speedups, work, overrides, told, batch)
    return calibration.run(probes, probed, dtype)


def fit_passes(clips: int, batch: int) -> int:
    """How often every plan is carried out on every clip."""
    return 1 if 1 < clips <= batch else FIT_PASSES


class _Calibration:
    """One call of `calibrate`."""

    def __init__(
        self, pipe: Any, clips: Sequence[ClipSpec], speedups: Sequence[float], work: Path | None,
        overrides: dict[str, Any] | None, told: Told, batch: int,
    ) -> None:  # fmt: skip
        self.pipe, self.clips, self.speedups = pipe, clips, speedups
        self.overrides, self.told = overrides, told
        self.kept = WorkFolder(work, clips, overrides, pipe)
        self.passes = fit_passes(len(clips), batch)
        self.batches = [
            tuple(range(first, min(first + batch, len(clips))))
            for first in range(0, len(clips), batch)
        ]
        self._recordings: dict[tuple[int, ...], list[UncachedRun]] = {}
        self._problems: Problems = {}

    def run(self, probes: int, probed: int, dtype: str) -> Profile:
        known = list(chain.from_iterable(self._known(batch) for batch in self.batches))
        grams, texts = zip(*known, strict=True)
        schedule = self.kept.get("schedule", lambda: self._recorded(self.batches[0])[0].sampler)
        clip = self.clips[0]
        separate = family_of(self.pipe).branches == "separate" and clip.guidance > 1
        if separate and len(schedule.branch_weights) == 1 and self.speedups:
            raise ValueError(
                f"guidance is not {clip.guidance:g} at every step; accepted: the same at all, or "
                "no speedups"
            )
        found = [self._probed(batch, probes, probed) for batch in self.batches]
        gain, memory = summed_up([p for part in found for p in part], schedule.num_steps)
        field = ErrorModel(schedule, torch.stack(grams), gain, memory)
        of, places = f"{probes}-{probed}-{self.batches}", range(len(self.batches))
        plans = self._ladder(field, of)
        for turn in range(self.passes):
            results = [self._rungs(turn, place, field, plans, of) for place in places]
        candidates = _summary(plans, results)
        made = {"clips": len(self.clips), "probes": probes, "probed": probed, **versions()}
        identity = profile_key(
            self.pipe, steps=clip.steps, guidance=clip.guidance, height=clip.height,
            width=clip.width, frames=clip.frames, dtype=dtype, parts=len(schedule.branch_weights),
        )  # fmt: skip
        gram = field.mean_gram[None]  # expected energies are linear in it: one matrix tells as much
        return Profile(
            identity, schedule, gram, gain, memory, REFINED_DEPTH, candidates, made,
            difficulty(texts, candidates),
        )  # fmt: skip

    def _recorded(self, batch: tuple[int, ...]) -> list[UncachedRun]:
        if batch not in self._recordings:
            held = chain.from_iterable(self._recordings.values())
            if sum(recording.nbytes for recording in held) > MAX_RECORDED_BYTES:
                self._recordings.clear()
            clips = [self.clips[index] for index in batch]
            self._recordings[batch] = record_all(self.pipe, clips, self.overrides)
        return self._recordings[batch]

    def _known(self, batch: tuple[int, ...]) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """Of every clip of a batch the Gram matrix and the pooled text."""

        def make() -> list[tuple[torch.Tensor, torch.Tensor | None]]:
            self.told("uncached", batch[0], len(self.clips))
            return [(recording.gram, recording.text) for recording in self._recorded(batch)]

        return self.kept.get(f"known-{batch}", make)

    def _probed(
        self, batch: tuple[int, ...], probes: int, probed: int
    ) -> list[tuple[int, float, float]]:
        """Of those clips of a batch that are probed: step, gain, cosine."""
        mine = [index for index in batch if index < probed]

        def make() -> list[tuple[int, float, float]]:
            clips, recordings = [self.clips[i] for i in mine], self._recorded(batch)[: len(mine)]
            steps = probe_steps(clips[0].steps, probes)
            found = []
            for place, step in enumerate(steps):
                self.told("probe", batch[0] * len(steps) + place * len(mine), 0)
                grown = probe(self.pipe, clips, self.overrides, recordings, step)
                found += [(step, *pair) for pair in grown]
            return found

        return self.kept.get(f"probe-{mine}-{batch}-{probes}", make) if mine else []

    def _ladder(self, field: ErrorModel, of: str) -> Ladder:
        """Computed steps of every rung, fastest last."""
        counts = sorted({round(field.num_steps / s) for s in self.speedups}, reverse=True)
        counts = [count for count in counts if 2 <= count < field.num_steps]

        def make() -> Ladder:
            self.told("search", 0, 0)
            plans: Ladder = []
            before: tuple[int, ...] | None = None
            for count in counts:
                start = _thinned(before, count) if before else None
                found = search(field, count, start=start)[0].computed
                plans.append(found)
                before = found
            return plans

        return self.kept.get(f"ladder-{counts}-{of}", make)

    def _rungs(
        self, turn: int, place: int, field: ErrorModel, plans: Ladder, of: str
    ) -> list[RefinedPlan]:
        """Carries out every plan on one batch; changes are fitted to all clips so far, by the
        field `of` these probes and batches."""
        if not plans:
            return []
        batch, number = self.batches[place], turn * len(self.batches) + place
        before = turn * len(self.clips) + batch[0]

        def make() -> tuple[list[RefinedPlan], Problems]:
            problems, found = copy.deepcopy(self._problems), []
            clips = {index: self.clips[index] for index in batch}
            whole = self.passes * len(self.clips) * len(plans)
            for done, computed in enumerate(plans):
                self.told("rungs", before * len(plans) + done * len(batch), whole)
                recordings = self._recorded(batch)
                found.append(
                    carry_out(
                        self.pipe, clips, computed, field, recordings, problems, self.overrides
                    )
                )
            return found, problems

        found, self._problems = self.kept.get(f"rungs-{number}-{plans}-{of}", make)
        return found


def difficulty(
    texts: Sequence[torch.Tensor | None], candidates: Sequence[CandidatePlan]
) -> PromptDifficulty | None:
    """How hard prompts are by their texts; None where texts or plans are not known."""
    said = [text for text in texts if text is not None]
    if not candidates or len(said) < len(texts):
        return None
    return PromptDifficulty.fit(
        torch.stack(said), torch.stack([candidate.psnr_db for candidate in candidates])
    )


def _thinned(steps: Sequence[int], count: int) -> list[int]:
    """`count` of these steps, evenly, the first among them."""
    return [steps[round(i * (len(steps) - 1) / max(count - 1, 1))] for i in range(count)]


def _summary(plans: Ladder, results: Sequence[Sequence[RefinedPlan]]) -> tuple[CandidatePlan, ...]:
    """Outcomes of every batch -> rungs."""
    return tuple(_rung([outcomes[place] for outcomes in results]) for place in range(len(plans)))


def _rung(outcomes: Sequence[RefinedPlan]) -> CandidatePlan:
    computed, changes = outcomes[0].computed, outcomes[-1].corrections
    extrapolation_error = torch.tensor(
        [row for o in outcomes for row in o.extrapolation_error], dtype=torch.float64
    )
    logs = extrapolation_error.clamp_min(1e-9).log()
    mean = logs.mean(0).nan_to_num()
    spread = logs.std(0).nan_to_num().clamp_min(1e-3) if len(logs) > 1 else torch.ones_like(mean)
    rows = torch.zeros(len(computed), max(map(len, changes.values())), dtype=torch.float64)
    for row, step in enumerate(computed):
        if step in changes:
            rows[row, : len(changes[step])] = changes[step]
    return CandidatePlan(
        computed, rows,
        torch.tensor([value for o in outcomes for value in o.psnr_db], dtype=torch.float64),
        torch.tensor([value for o in outcomes for value in o.latents_db], dtype=torch.float64),
        mean, spread, torch.zeros(len(logs), dtype=torch.float64),
    )  # fmt: skip


def versions() -> dict[str, str]:
    """Of the packages that a profile depends on."""
    import importlib.metadata

    return {name: importlib.metadata.version(name) for name in ("dit-accel", "diffusers", "torch")}


__all__ = ["SPEEDUPS", "calibrate", "fit_passes", "probe_steps"]
