"""Try cheaper computes along uncached runs: what error each level makes at a step, and its cost.

At some steps of an uncached run the denoiser is run once more at each level, from the same latents,
with what would be kept then: values of full steps so many steps ago (the *age*), and bases that
were learned on those. The run itself goes on by its full predictions, untouched. What is compared
is the guided prediction. Every age is a run of its own, which keeps at its multiples alone.

FLOPs are of the modules that a level leaves out; seconds are the forwards', synchronised, and only
as good as the machine is quiet.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from dit_accel import drift
from dit_accel.bench import count_flops, device_name, synchronise
from dit_accel.families import Family, family_of, transformers_of
from dit_accel.following import guided
from dit_accel.leveling import Fixed, Leveling
from dit_accel.levels import CANDIDATES, FULL, Level, LevelTable
from dit_accel.patching import Patches
from dit_accel.recording import run
from dit_accel.session import Session
from dit_accel.spending import without_weights
from dit_accel.takes import Clip

AGES = (1, 3, 8)
TRIED = 10  # steps of a run, about
Told = Callable[[int, int], None]


@dataclass
class Trial:
    """What one run told: guided relative errors by level and step, and sums of both costs."""

    errors: dict[tuple[Level, int], float] = field(default_factory=dict)
    flops: dict[Level, float] = field(default_factory=dict)
    seconds: dict[Level, float] = field(default_factory=dict)


def try_levels(
    pipe: Any,
    clips: Sequence[Clip],
    levels: Sequence[Level] = CANDIDATES,
    *,
    ages: Sequence[int] = AGES,
    tried: int = TRIED,
    overrides: dict[str, Any] | None = None,
    kept: Callable[[str, Callable[[], Trial]], Trial] = lambda name, make: make(),
    told: Told = lambda done, total: None,
) -> LevelTable:
    """Errors and costs of levels on some clips.

    Args:
        pipe: a diffusers pipeline of a family with blocks and attentions as sites, not accelerated.
        clips: of equal steps, guidance and size, at least one.
        levels: none full.
        ages: steps since the last full one, rising, from 1; at least three times the largest fit
            into a run.
        tried: about how many steps of a run each level is tried at, >= 1.
        overrides: arguments of the pipeline's call that replace the clips'.
        kept: takes a name and what makes a trial, and may know it from before.
        told: hears how many runs are done, and of how many.

    Raises:
        ValueError: a number is out of range, or a level cannot be carried out on this pipeline.
    """
    if not clips or not levels or tried < 1:
        raise ValueError(
            f"{len(clips)} clips, {len(levels)} levels, tried is {tried}; accepted: 1 or more"
        )
    total = clips[0].steps
    if list(ages) != sorted({*ages}) or not ages or ages[0] < 1 or 3 * ages[-1] > total:
        raise ValueError(f"ages is {ages}; accepted: rising, from 1 to {total // 3}")
    found: list[list[Trial]] = []
    for age in ages:
        found.append([])
        for index, clip in enumerate(clips):
            told(sum(map(len, found)), len(ages) * len(clips))
            name = f"levels-{[level.name for level in levels]}-{age}-{tried}-{index}"
            make = partial(_try, pipe, clip, levels, age, tried, overrides)
            found[-1].append(kept(name, make))
    trials = [trial for row in found for trial in row]
    errors = [
        [interpolated(_typical([t.errors for t in row], level), total) for row in found]
        for level in levels
    ]
    return LevelTable(
        tuple(levels), tuple(ages), torch.tensor(errors, dtype=torch.float64),
        _shares([t.flops for t in trials], levels), _shares([t.seconds for t in trials], levels),
        device_name(_device(pipe)), len(clips),
    )  # fmt: skip


def _try(
    pipe: Any, clip: Clip, levels: Sequence[Level], age: int, tried: int,
    overrides: dict[str, Any] | None,
) -> Trial:  # fmt: skip
    """One run, every level at some of its steps."""
    family, patches = family_of(pipe), Patches()
    session = Session(pipe, transformers_of(pipe, family))
    source = Fixed()
    source.levels = dict(enumerate(levels))  # so that all of them are kept for
    leveling = Leveling(session, family, levels, source)
    answer = _Answer(session, family, leveling, clip, age, tried, levels)
    try:
        session.install(patches)
        leveling.install(patches)
        session.answer, session.observers = answer, [leveling]
        run(pipe, [clip], {"output_type": "latent"} | (overrides or {}))
    finally:
        patches.undo()
        leveling.clear()
    return answer.trial


class _Answer:
    """Answers the forwards of a session: at some steps at every level too."""

    def __init__(
        self, session: Session, family: Family, leveling: Leveling, clip: Clip, age: int,
        tried: int, levels: Sequence[Level],
    ) -> None:  # fmt: skip
        self.session, self.leveling, self.levels = session, leveling, levels
        self.family, self.guidance, self.age = family, clip.guidance, age
        self.parts = 2 if family.branches == "separate" and clip.guidance > 1 else 1
        every = max(1, round(clip.steps / age / tried))
        self.due = range(2 * age, clip.steps, every * age)
        self.trial = Trial()
        self._costs: dict[tuple[str, str], dict[str, int]] = {}
        self._made: dict[Level, list[torch.Tensor]] = {}

    def __call__(self, forward: Callable[[], Any]) -> Any:
        step, leveling = self.session.step, self.leveling
        for level in self.levels if step in self.due else ():
            leveling.take(level, keeps=False)
            for site in leveling.sites:
                site.traces = {}
            self._compute(level, forward)
        leveling.take(FULL, keeps=step % self.age == 0)
        if step not in self.due:
            return forward()
        output = self._compute(FULL, forward)
        if len(self._made[FULL]) == self.parts:
            self._compare(step)
        return output

    def _compute(self, level: Level, forward: Callable[[], Any]) -> Any:
        trial, device = self.trial, self.session.latents.device
        synchronise(device)
        began = time.perf_counter()
        output = forward()
        synchronise(device)
        spent = time.perf_counter() - began
        trial.seconds[level] = trial.seconds.get(level, 0.0) + spent
        key = self.session.transformer, self.session.branch
        costs = self._costs_of(*key)
        saved = self.leveling.saved(costs, *key) if level != FULL else 0.0
        trial.flops[level] = trial.flops.get(level, 0.0) + costs[""] - saved
        self._made.setdefault(level, []).append(output[0].detach())
        return output

    def _costs_of(self, transformer: str, branch: str) -> dict[str, int]:
        key = transformer, branch
        if key not in self._costs:
            args, kwargs = self.session.inputs[key]
            stock = without_weights(self.session.transformers[transformer])
            self._costs[key] = count_flops(stock, args, kwargs)
        return self._costs[key]

    def _compare(self, step: int) -> None:
        full = self._guided(self._made[FULL])
        for level in self.levels:
            change = self._guided(self._made[level]) - full
            self.trial.errors[level, step] = float(drift.relative_l2_of(change, full))
        self._made.clear()

    def _guided(self, parts: list[torch.Tensor]) -> torch.Tensor:
        if len(parts) == 2:  # the conditional one comes first
            return parts[1] + self.guidance * (parts[0] - parts[1])
        return guided(parts[0], self.guidance, self.family.branches)


def _typical(errors: Sequence[Mapping[tuple[Level, int], float]], level: Level) -> dict[int, float]:
    """By step, the mean over clips of the logarithms."""
    steps = sorted({step for found in errors for at, step in found if at == level})
    return {
        step: sum(math.log(max(found[level, step], 1e-12)) for found in errors) / len(errors)
        for step in steps
    }


def interpolated(logs: Mapping[int, float], total: int) -> list[float]:
    """`total` numbers: logarithms that are known at some steps, on straight lines between them and
    level beyond the ends, put back.

    >>> [round(value) for value in interpolated({1: 0.0, 3: math.log(100)}, 5)]
    [1, 1, 10, 100, 100]
    """
    places = sorted(logs)
    found = []
    for step in range(total):
        at = min(max(step, places[0]), places[-1])
        low = max(place for place in places if place <= at)
        high = min(place for place in places if place >= at)
        share = (at - low) / (high - low) if high > low else 0.0
        found.append(math.exp(logs[low] + share * (logs[high] - logs[low])))
    return found


def _shares(spent: Sequence[Mapping[Level, float]], levels: Sequence[Level]) -> torch.Tensor:
    whole = sum(found[FULL] for found in spent)
    shares = [sum(found[level] for found in spent) / whole for level in levels]
    return torch.tensor(shares, dtype=torch.float64)


def _device(pipe: Any) -> torch.device:
    transformer = next(iter(transformers_of(pipe, family_of(pipe)).values()))
    return next(transformer.parameters()).device
