"""Measures a pipeline, so that plans can be made for it: out comes its profile.

In: a pipeline, and a dozen clips or more. Every clip is made without acceleration and recorded
(`record.py`); the first ones are probed for error gain and memory; then one candidate plan a
speedup is searched, and carried out on every clip (`refine.py`).
Clips run one after the other, in two passes, or several in one call (`batch`). If all are in one
batch, one pass is enough, as they come to every window together.
Memory: the predictions of a batch, in float32 on the CPU. Source: ours.
"""

from __future__ import annotations

import copy
import importlib.metadata
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from dit_accel.calibration.checkpoint import Checkpoint
from dit_accel.calibration.record import UncachedRun, gain_and_memory, probe, probe_steps, record
from dit_accel.calibration.refine import REFINED_DEPTH, Problems, RefinedPlan, carry_out
from dit_accel.core.families import family_of
from dit_accel.core.generation import ClipSpec
from dit_accel.planning.candidate import CandidatePlan
from dit_accel.planning.difficulty import PromptDifficulty
from dit_accel.planning.lookup import profile_key
from dit_accel.planning.plan import SamplerCoefficients
from dit_accel.planning.profile import Profile
from dit_accel.planning.search import ErrorModel, search

SPEEDUPS = (2.0, 2.5, 2.94, 3.125, 3.33, 3.57, 3.85, 4.17, 4.55, 5.0, 5.56, 6.25, 7.14, 8.33)
FIT_PASSES = 2  # over several batches: in the first pass, the first ones know few other clips
MAX_RECORDED_BYTES = 4 << 30  # of recordings that are in memory for the next pass
ProgressCallback = Callable[[str, int, int], None]
ComputedSteps = list[tuple[int, ...]]  # of every candidate plan


def calibrate(
    pipe: Any, clips: Sequence[ClipSpec], *, speedups: Sequence[float] = SPEEDUPS, probes: int = 8,
    probed: int = 3, batch: int = 1, dtype: str = "float32", work: Path | None = None,
    overrides: dict[str, Any] | None = None,
    on_progress: ProgressCallback = lambda what, done, total: None,
) -> Profile:  # fmt: skip
    """Measure a pipeline, and carry out candidate plans.

    Args:
        pipe: a diffusers pipeline of a known family, not accelerated.
        clips: of equal size, steps and guidance; a dozen or more.
        speedups: each is a candidate plan, carried out on every clip. Empty: there are none, and
            plans are made from inner products alone.
        probes: steps at which one prediction is reused, >= 2.
        probed: clips that are probed, from the first on, 1 to all; each costs `probes` runs.
        batch: clips in one call of the pipeline, >= 1.
        dtype: what the denoiser computes in, for the profile's key.
        work: folder of the checkpoint; it can be deleted afterwards.
        overrides: arguments of the pipeline's call that replace the clips'.
        on_progress: is called with what is being done, how much is done, and of how much.

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
    calibration = _Calibration(pipe, clips, speedups, work, overrides, on_progress, batch)
    return calibration.run(probes, probed, dtype)


def fit_passes(clips: int, batch: int) -> int:
    """How often every candidate plan is carried out on every clip."""
    return 1 if 1 < clips <= batch else FIT_PASSES


class _Calibration:
    """One call of `calibrate`. Every piece of work is a checkpoint's, by what it depends on."""

    def __init__(
        self, pipe: Any, clips: Sequence[ClipSpec], speedups: Sequence[float], work: Path | None,
        overrides: dict[str, Any] | None, on_progress: ProgressCallback, batch: int,
    ) -> None:  # fmt: skip
        self.pipe, self.clips, self.speedups = pipe, clips, speedups
        self.overrides, self.on_progress = overrides, on_progress
        self.checkpoint = Checkpoint(work, clips, overrides, pipe)
        self.passes = fit_passes(len(clips), batch)
        self.batches = [
            tuple(range(first, min(first + batch, len(clips))))
            for first in range(0, len(clips), batch)
        ]
        self._recordings: dict[tuple[int, ...], list[UncachedRun]] = {}
        self._problems: Problems = {}

    def run(self, probes: int, probed: int, dtype: str) -> Profile:
        """All of it."""
        measured = list(chain.from_iterable(self._uncached(batch) for batch in self.batches))
        grams, texts = zip(*measured, strict=True)
        sampler = self._sampler()
        found = [self._probed(batch, probes, probed) for batch in self.batches]
        gain, memory = gain_and_memory(list(chain.from_iterable(found)), sampler.num_steps)
        error_model = ErrorModel(sampler, torch.stack(grams), gain, memory)
        of = f"{probes}-{probed}-{self.batches}"
        plans = self._searched(error_model, of)
        for number in range(self.passes):  # the last pass counts
            results = [
                self._carried_out(number, place, error_model, plans, of)
                for place in range(len(self.batches))
            ]
        candidates = tuple(
            _candidate([batch[place] for batch in results]) for place in range(len(plans))
        )
        clip = self.clips[0]
        key = profile_key(
            self.pipe, steps=clip.steps, guidance=clip.guidance, height=clip.height,
            width=clip.width, frames=clip.frames, dtype=dtype, parts=len(sampler.branch_weights),
        )  # fmt: skip
        gram = error_model.mean_gram[None]  # errors are linear in it: the mean is enough
        metadata = {"clips": len(self.clips), "probes": probes, "probed": probed, **versions()}
        return Profile(
            key, sampler, gram, gain, memory, REFINED_DEPTH, candidates, metadata,
            difficulty(texts, candidates),
        )  # fmt: skip

    def _sampler(self) -> SamplerCoefficients:
        sampler: SamplerCoefficients = self.checkpoint.get(
            "sampler", lambda: self._recorded(self.batches[0])[0].sampler
        )
        guidance = self.clips[0].guidance
        two = family_of(self.pipe).branches == "separate" and guidance > 1
        if two and len(sampler.branch_weights) == 1 and self.speedups:
            raise ValueError(
                f"guidance is not {guidance:g} at every step; accepted: the same at all, or no "
                "speedups"
            )
        return sampler

    def _recorded(self, batch: tuple[int, ...]) -> list[UncachedRun]:
        if batch not in self._recordings:
            in_memory = chain.from_iterable(self._recordings.values())
            if sum(recording.nbytes for recording in in_memory) > MAX_RECORDED_BYTES:
                self._recordings.clear()
            clips = [self.clips[index] for index in batch]
            self._recordings[batch] = record(self.pipe, clips, self.overrides)
        return self._recordings[batch]

    def _uncached(self, batch: tuple[int, ...]) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """For every clip of a batch the Gram matrix and the pooled text."""

        def make() -> list[tuple[torch.Tensor, torch.Tensor | None]]:
            self.on_progress("uncached", batch[0], len(self.clips))
            return [(recording.gram, recording.text) for recording in self._recorded(batch)]

        return self.checkpoint.get(f"uncached-{batch}", make)

    def _probed(
        self, batch: tuple[int, ...], probes: int, probed: int
    ) -> list[tuple[int, float, float]]:
        """For those clips of a batch that are probed: step, gain, cosine."""
        mine = [index for index in batch if index < probed]

        def make() -> list[tuple[int, float, float]]:
            clips, recordings = [self.clips[i] for i in mine], self._recorded(batch)[: len(mine)]
            steps = probe_steps(clips[0].steps, probes)
            found = []
            for place, step in enumerate(steps):
                self.on_progress("probe", batch[0] * len(steps) + place * len(mine), 0)
                grown = probe(self.pipe, clips, self.overrides, recordings, step)
                found += [(step, *pair) for pair in grown]
            return found

        return self.checkpoint.get(f"probe-{mine}-{batch}-{probes}", make) if mine else []

    def _searched(self, error_model: ErrorModel, of: str) -> ComputedSteps:
        """Of every candidate plan, the fastest last; each search starts from the plan before."""
        n = error_model.num_steps
        counts = sorted({round(n / s) for s in self.speedups}, reverse=True)
        counts = [count for count in counts if 2 <= count < n]

        def make() -> ComputedSteps:
            self.on_progress("search", 0, 0)
            plans: ComputedSteps = []
            for count in counts:
                start = _thinned(plans[-1], count) if plans else None
                plans.append(search(error_model, count, start=start)[0].computed)
            return plans

        return self.checkpoint.get(f"search-{counts}-{of}", make)

    def _carried_out(
        self, number: int, place: int, error_model: ErrorModel, plans: ComputedSteps, of: str
    ) -> list[RefinedPlan]:
        """Every plan on one batch, in pass `number`; `of`: what the error model depends on."""
        if not plans:
            return []
        batch = self.batches[place]
        before = number * len(self.clips) + batch[0]

        def make() -> tuple[list[RefinedPlan], Problems]:
            # a copy: what is added before an interrupt must not count twice
            problems, found = copy.deepcopy(self._problems), []
            clips = {index: self.clips[index] for index in batch}
            total = self.passes * len(self.clips) * len(plans)
            for done, computed in enumerate(plans):
                self.on_progress("candidates", before * len(plans) + done * len(batch), total)
                refined = carry_out(
                    self.pipe, clips, computed, error_model, self._recorded(batch), problems,
                    self.overrides,
                )  # fmt: skip
                found.append(refined)
            return found, problems

        name = f"candidates-{number * len(self.batches) + place}-{plans}-{of}"
        found, self._problems = self.checkpoint.get(name, make)
        return found


def difficulty(
    texts: Sequence[torch.Tensor | None], candidates: Sequence[CandidatePlan]
) -> PromptDifficulty | None:
    """Of prompts by their texts; None where a text is unknown, or there are no plans."""
    known = [text for text in texts if text is not None]
    if not candidates or len(known) < len(texts):
        return None
    psnr = torch.stack([candidate.psnr_db for candidate in candidates])
    return PromptDifficulty.fit(torch.stack(known), psnr)


def _thinned(steps: Sequence[int], count: int) -> list[int]:
    """`count` of these steps, evenly, the first among them."""
    return [steps[round(i * (len(steps) - 1) / max(count - 1, 1))] for i in range(count)]


def _candidate(batches: Sequence[RefinedPlan]) -> CandidatePlan:
    """One plan, from what it gave on every batch; the corrections of the last know all clips."""
    computed, corrections = batches[0].computed, batches[-1].corrections
    errors = torch.tensor(
        [row for b in batches for row in b.extrapolation_error], dtype=torch.float64
    )
    logs = errors.clamp(1e-9, 1e9).log()
    mean = logs.mean(0).nan_to_num()
    spread = logs.std(0).nan_to_num().clamp_min(1e-3) if len(logs) > 1 else torch.ones_like(mean)
    rows = torch.zeros(len(computed), max(map(len, corrections.values())), dtype=torch.float64)
    for row, step in enumerate(computed):
        if step in corrections:
            rows[row, : len(corrections[step])] = corrections[step]
    return CandidatePlan(
        computed, rows,
        torch.tensor([value for b in batches for value in b.psnr_db], dtype=torch.float64),
        torch.tensor([value for b in batches for value in b.latents_db], dtype=torch.float64),
        mean, spread, torch.zeros(len(logs), dtype=torch.float64),
    )  # fmt: skip


def versions() -> dict[str, str]:
    """Of the packages that a profile depends on."""
    return {name: importlib.metadata.version(name) for name in ("dit-accel", "diffusers", "torch")}


__all__ = ["SPEEDUPS", "calibrate", "fit_passes", "probe_steps"]
