"""Measure a pipeline, so that plans can be made for it: the profile.

From a handful of clips, one after the other:

1. *Uncached*: the inner products of each clip's predictions, part by part, and of the noise that it
   started from; what one unit of each guided prediction adds to the final latents (`shares`): a
   twin of the scheduler is stepped along on unit vectors, so that any sampler that is linear in the
   predictions gives its shares, Euler and multistep alike. That they rebuild the final latents is
   checked.
2. *Probes* on the first clips: runs that reuse a single prediction at one step, and what became of
   the error that it made (`gain`, `memory`).
3. *Rungs*: a plan for each of a ladder of speeds, carried out on every clip. What changes its
   windows' lines is fitted, clip after clip, to what is really left (`fitting`), in two passes;
   each clip is served by changes that have not seen it, and scored against its uncached twin:
   honest errors.

Memory: the predictions of one clip, in float32 on the CPU. With `work`, what is done is kept in a
folder, clip by clip, and the same call goes on where it was.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch

from dit_accel.acceleration import accelerate
from dit_accel.families import family_of
from dit_accel.fitting import Moments
from dit_accel.following import Follower, PlanCourse, guided
from dit_accel.identity import identify
from dit_accel.metrics import psnr
from dit_accel.patching import Patches
from dit_accel.planner import Field, fit, gram_of, search, turning
from dit_accel.plans import Forecast, Plan, Schedule, lines, reads
from dit_accel.profile import Profile, Rung
from dit_accel.sampling import Lanes, NotLinearError, check_steps
from dit_accel.takes import Clip, call_arguments

LINEAR = 0.02  # relative error up to which the shares must rebuild the final latents
DEPTH = 5  # computed predictions that a refined forecast reads
LADDER = (2.0, 2.5, 3.0, 3.4, 3.85, 4.2, 4.55, 5.0, 5.6, 6.25, 7.2)
LEAST = 3  # clips that a change is fitted to; before, it is as fitted on uncached runs
PASSES = 2  # over the clips: the first ones of the first pass are served by few others
CAREFUL = 1.3  # how many times the computed steps of a rung its careful end has, in all
Told = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Recording:
    """One uncached run of n steps, latents of N numbers.

    Args:
        parts: `(B, n, N)` float32, the parts of the guided prediction.
        schedule: of this run.
        start: `(N,)` float32, the noise.
        final: `(N,)` float32, the final latents.
        frames: as the pipeline gave them.
    """

    parts: torch.Tensor
    schedule: Schedule
    start: torch.Tensor
    final: torch.Tensor
    frames: Any

    @property
    def gram(self) -> torch.Tensor:
        """`(R, R)` float64: inner products of all rows, over the squared norm of the final."""
        return gram_of(torch.cat([*self.parts, self.start[None]]), self.final)

    def guided(self, step: int) -> torch.Tensor:
        """`(N,)`: the guided prediction of a step."""
        return torch.einsum("b,bn->n", torch.tensor(self.schedule.mix), self.parts[:, step])


def calibrate(
    pipe: Any,
    clips: Sequence[Clip],
    *,
    speedups: Sequence[float] = LADDER,
    careful: bool = False,
    probes: int = 8,
    probed: int = 3,
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
        careful: whether every rung gets a careful end too, which a run may turn to; doubles the
            runs, and did not pay on the miniature (docs/planning.md).
        probes: steps at which a single prediction is reused, >= 2.
        probed: clips that are probed, from the first on, 1 to all; each costs `probes` runs.
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
    wrong = [s for s in speedups if not 1 < s <= clips[0].steps]
    if wrong:
        raise ValueError(f"speedups has {wrong}; accepted: above 1, up to {clips[0].steps}")
    calibration = _Calibration(pipe, clips, speedups, work, overrides, told, careful)
    return calibration.run(probes, probed, dtype)


class _Calibration:
    """One call of `calibrate`."""

    def __init__(
        self, pipe: Any, clips: Sequence[Clip], speedups: Sequence[float], work: Path | None,
        overrides: dict[str, Any] | None, told: Told, careful: bool = False,
    ) -> None:  # fmt: skip
        self.pipe, self.clips, self.speedups = pipe, clips, speedups
        self.overrides, self.told, self.careful = overrides, told, careful
        self.kept = _Work(work, clips, overrides, pipe)
        self.recordings: dict[int, Recording] = {}

    def run(self, probes: int, probed: int, dtype: str) -> Profile:
        grams = [self._gram(index) for index in range(len(self.clips))]
        schedule = self.kept.get("schedule", lambda: self._recording(0).schedule)
        clip = self.clips[0]
        separate = family_of(self.pipe).branches == "separate" and clip.guidance > 1
        if separate and len(schedule.mix) == 1 and self.speedups:
            raise ValueError(
                f"guidance is not {clip.guidance:g} at every step; accepted: the same at all, or "
                "no speedups"
            )
        found = [self._probed(index, probes) for index in range(probed)]
        gain, memory = summed_up([p for part in found for p in part], schedule.total)
        field = Field(schedule, torch.stack(grams), gain, memory)
        plans = self._ladder(field, f"{probes}-{probed}")
        for turn in range(PASSES):
            results = [self._rungs(turn, index, field, plans) for index in range(len(self.clips))]
        rungs, careful = _summary(plans, results, schedule.total)
        made = {"clips": len(self.clips), "probes": probes, "probed": probed, **versions()}
        identity = identify(
            self.pipe, steps=clip.steps, guidance=clip.guidance, height=clip.height,
            width=clip.width, frames=clip.frames, dtype=dtype, parts=len(schedule.mix),
        )  # fmt: skip
        return Profile(identity, schedule, field.gram, gain, memory, DEPTH, rungs, careful, made)

    def _recording(self, index: int) -> Recording:
        if index not in self.recordings:
            if sum(r.parts.nbytes for r in self.recordings.values()) > 2 << 30:
                self.recordings.clear()
            self.recordings[index] = record(self.pipe, self.clips[index], self.overrides)
        return self.recordings[index]

    def _gram(self, index: int) -> torch.Tensor:
        def make() -> torch.Tensor:
            self.told("uncached", index, len(self.clips))
            return self._recording(index).gram

        return self.kept.get(f"gram-{index}", make)

    def _probed(self, index: int, probes: int) -> list[tuple[int, float, float]]:
        def make() -> list[tuple[int, float, float]]:
            clip, recording = self.clips[index], self._recording(index)
            steps = probe_steps(clip.steps, probes)
            found = []
            for place, step in enumerate(steps):
                self.told("probe", index * len(steps) + place, 0)
                found.append((step, *_probe(self.pipe, clip, self.overrides, recording, step)))
            return found

        return self.kept.get(f"probe-{index}-{probes}", make)

    def _ladder(
        self, field: Field, probes: str
    ) -> list[tuple[tuple[int, ...], tuple[int, ...] | None]]:
        """Computed steps of every rung, fastest last, and of its careful end."""
        counts = sorted({round(field.total / s) for s in self.speedups}, reverse=True)
        counts = [count for count in counts if 2 <= count < field.total]

        def make() -> list[tuple[tuple[int, ...], tuple[int, ...] | None]]:
            self.told("search", 0, 0)
            plans: list[tuple[tuple[int, ...], tuple[int, ...] | None]] = []
            before: tuple[int, ...] | None = None
            for count in counts:
                start = _thinned(before, count) if before else None
                found = search(field, count, start=start)[0].computed
                plans.append((found, careful_end(found, field) if self.careful else None))
                before = found
            return plans

        return self.kept.get(f"ladder-{counts}-{self.careful}-{probes}", make)

    def _rungs(
        self, turn: int, index: int, field: Field, plans: Sequence[tuple[tuple[int, ...], Any]]
    ) -> list[_Outcome]:
        """Carries out every plan on one clip; changes are fitted to the other clips so far."""
        every = [computed for rung in plans for computed in rung if computed is not None]
        if not every:
            return []
        place = turn * len(self.clips) + index
        before = self.kept.moments(place - 1, every)

        def make() -> list[_Outcome]:
            moments = copy.deepcopy(before)
            recording, found = self._recording(index), []
            for number, computed in enumerate(every):
                whole = PASSES * len(self.clips) * len(every)
                self.told("rungs", place * len(every) + number, whole)
                found.append(self._carry_out(index, computed, field, recording, moments))
            self.kept.keep_moments(place, every, moments)
            return found

        return self.kept.get(f"rungs-{place}-{every}", make)

    def _carry_out(
        self, index: int, computed: tuple[int, ...], field: Field, recording: Recording,
        moments: dict[tuple[int, ...], Moments],
    ) -> _Outcome:  # fmt: skip
        prior = fit(computed, field, depth=DEPTH)[0]
        with accelerate(self.pipe, plan=prior, mix=field.schedule.mix) as handle:
            fold = partial(
                guided, guidance=self.clips[index].guidance, branches=handle.family.branches
            )
            course = _Fitting(handle.follower, index, computed, prior, recording, moments, fold)
            handle.follower.course = course
            with _Sampler(self.pipe.scheduler) as sampler:
                frames = _run(self.pipe, self.clips[index], self.overrides)
        error = sampler.final - recording.final
        latents = -20 * math.log10(max(float(error.norm() / recording.final.norm()), 1e-9))
        return _Outcome(
            computed,
            min(float(psnr(recording.frames, frames, data_range=1.0)), 100.0),
            latents,
            tuple(course.surprise.get(step, math.nan) for step in computed),
            {step: moment.change() for step, moment in course.problems.items()},
        )


@dataclass(frozen=True)
class _Outcome:
    """One plan on one clip; `changes` fitted to all clips up to it, by window."""

    computed: tuple[int, ...]
    psnr_db: float
    latents_db: float
    surprise: tuple[float, ...]
    changes: dict[int, torch.Tensor | None]


class _Fitting(PlanCourse):
    """Follows the computed steps of a plan, and fits every window's change when it opens."""

    measures = True

    def __init__(
        self, follower: Follower, prompt: int, computed: tuple[int, ...], prior: Plan,
        recording: Recording, moments: dict[tuple[int, ...], Moments],
        fold: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:  # fmt: skip
        super().__init__(prior, recording.schedule.mix)
        self.fold = fold
        self.follower, self.prompt, self.recording = follower, prompt, recording
        self.computed, self.moments = computed, moments
        self.schedule = recording.schedule
        self.surprise: dict[int, float] = {}
        self.problems: dict[int, Moments] = {}  # of this plan, by the step that opens the window
        self._behind = torch.zeros_like(recording.final)  # what should have been added, and was not
        self._forecasts: dict[int, Forecast] = dict(prior.forecasts)

    def learn(self, step: int, surprise: float | None, lean: float | None = None) -> None:
        if surprise is not None:
            self.surprise[step] = surprise

    def forecast_of(self, step: int) -> Forecast | None:
        if step not in self.plan.forecasts:
            if step - 1 in self.computed and step > 0:
                self._passed(step - 1)
            return None
        if step - 1 in self.computed:
            self._open(step - 1)
        return self._forecasts[step]

    def reads(self, step: int) -> tuple[int, ...]:
        return tuple(reads(self.computed, step, DEPTH))

    def _open(self, opened: int) -> None:
        """A window opens after this computed step: fit its change, and foresee what it adds."""
        self._passed(opened)
        place = self.computed.index(opened)
        closed = (*self.computed[1:], self.schedule.total)[place]
        read = reads(self.computed, opened, DEPTH)
        ends = torch.tensor([opened]), torch.tensor([closed])
        line = lines(torch.tensor([read]), *ends, self.schedule)[0]
        features = self._features(read)
        due = sum(
            (float(self.schedule.shares[s]) * self.recording.guided(s)
             for s in range(opened + 1, closed)),
            torch.zeros_like(self._behind),
        )  # fmt: skip
        left = due + self._behind - _weighted(line, features)
        history = (*self.computed[: place + 1], closed)
        problem = self.moments.setdefault(history, Moments())
        change = problem.change(without=self.prompt, least=LEAST)
        if change is None:
            change = self._prior(read, opened, closed) - line
        size = float(self.recording.final.square().mean())
        problem.add(self.prompt, features, left, size)
        self.problems[opened] = problem
        up_to_close = self.computed[: place + 2]  # else the change spreads to the end of the run
        plan = Plan.of(up_to_close, self.schedule, {opened: change}, DEPTH)
        self._forecasts |= {s: plan.forecasts[s] for s in range(opened + 1, closed)}
        self._behind = left - _weighted(change, features)

    def _passed(self, step: int) -> None:
        """A computed step added its own prediction, not the uncached run's."""
        parts = self._features([step])[:-1]
        added = _weighted(torch.tensor(self.schedule.mix), parts)
        self._behind += float(self.schedule.shares[step]) * (self.recording.guided(step) - added)

    def _features(self, read: Sequence[int]) -> torch.Tensor:
        """`(F, N)` float32: the kept parts of these steps, and the noise."""
        kept = list(self.follower.kept.values())[: len(self.schedule.mix)]
        rows = [part[step] for part in kept for step in read]
        start = next(iter(self.follower.start.values()), torch.zeros_like(rows[0]))
        return torch.stack([_flat(self.fold(row)) for row in [*rows, start]])

    def _prior(self, read: Sequence[int], opened: int, closed: int) -> torch.Tensor:
        """The window's weights in the plan that was fitted on uncached runs."""
        sums = torch.zeros(len(self.schedule.mix), len(read), dtype=torch.float64)
        start = 0.0
        for step in range(opened + 1, closed):
            share, served = float(self.schedule.shares[step]), self.plan.forecasts[step]
            start += share * served.start
            for part, weights in enumerate(served.reads):
                for place, at in enumerate(read):
                    sums[part, place] += share * self.schedule.mix[part] * weights.get(at, 0.0)
        return torch.cat([sums.flatten(), torch.tensor([start], dtype=torch.float64)])


def _weighted(weights: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return torch.einsum("f,fn->n", weights.to(rows.dtype), rows)


def careful_end(computed: tuple[int, ...], field: Field) -> tuple[int, ...] | None:
    """The same steps up to where a run may turn careful, and more of them after it; None where
    there is no room."""
    turn = turning(computed, field.total)
    begun = [step for step in computed if step <= turn]
    more = round(CAREFUL * len(computed))
    room = field.total - turn - 1
    count = min(more - len(begun), room)
    if count <= len(computed) - len(begun) or room < 3:
        return None
    found = search(field, len(begun) + count, fixed=begun)[0].computed
    return found


def _thinned(steps: Sequence[int], count: int) -> list[int]:
    """`count` of these steps, evenly, the first among them."""
    return [steps[round(i * (len(steps) - 1) / max(count - 1, 1))] for i in range(count)]


def _summary(
    plans: Sequence[tuple[tuple[int, ...], Any]],
    results: Sequence[Sequence[_Outcome]],
    total: int,
) -> tuple[tuple[Rung, ...], tuple[Rung, ...]]:
    """Outcomes of every clip -> rungs, and their careful ends."""
    rungs: list[Rung] = []
    careful: list[Rung] = []
    place = 0
    for first, second in plans:
        for computed, into in ((first, rungs), (second, careful)):
            if computed is None:
                continue
            into.append(_rung([outcomes[place] for outcomes in results], turning(first, total)))
            place += 1
    return tuple(rungs), tuple(careful)


def _rung(outcomes: Sequence[_Outcome], turn: int) -> Rung:
    scored, computed = outcomes, outcomes[0].computed
    logs = torch.tensor([o.surprise for o in scored], dtype=torch.float64).clamp_min(1e-9).log()
    mean = logs.mean(0).nan_to_num()
    spread = logs.std(0).nan_to_num().clamp_min(1e-3) if len(scored) > 1 else torch.ones_like(mean)
    seen = [i for i, step in enumerate(computed) if step <= turn and i >= 2]
    alarm = ((logs - mean) / spread).nan_to_num()[:, seen]
    width = max(len(c) for c in outcomes[-1].changes.values() if c is not None)
    changes = torch.zeros(len(computed), width, dtype=torch.float64)
    for row, step in enumerate(computed):
        change = outcomes[-1].changes.get(step)
        if change is not None:
            changes[row, : len(change)] = change
    return Rung(
        computed, changes,
        torch.tensor([o.psnr_db for o in scored], dtype=torch.float64),
        torch.tensor([o.latents_db for o in scored], dtype=torch.float64),
        mean, spread, alarm.mean(1) if seen else torch.zeros(len(scored), dtype=torch.float64),
    )  # fmt: skip


# --- single runs --------------------------------------------------------------


def record(pipe: Any, clip: Clip, overrides: dict[str, Any] | None = None) -> Recording:
    """One uncached run, written down.

    Raises:
        NotLinearError: predictions and shares do not rebuild the final latents.
    """
    family = family_of(pipe)
    two = family.branches == "separate" and clip.guidance > 1
    mix = (1.0, 1.0 - clip.guidance) if two else (1.0,)
    heard: tuple[list[torch.Tensor], ...] = ([], [])
    with (
        accelerate(pipe, plan=Plan(clip.steps, {}), mix=mix) as handle,
        _Sampler(pipe.scheduler) as sampler,
    ):
        handle.follower.heard = lambda part, value: heard[part].append(_flat(value))
        frames = _run(pipe, clip, overrides)
    guided = torch.stack(sampler.predictions)
    parts = torch.stack([torch.stack(part) for part in heard[: len(mix)]]) if two else guided[None]
    if two:
        mixed = torch.einsum("b,bsn->sn", torch.tensor(mix), parts)
        if float((mixed - guided).norm() / guided.norm()) > LINEAR:  # guidance that varies, say
            parts, mix = guided[None], (1.0,)
    rebuilt = sampler.shares[:-1].float() @ guided + sampler.shares[-1] * sampler.start
    error = float((rebuilt - sampler.final).norm() / sampler.final.norm())
    if not error < LINEAR:
        raise NotLinearError(
            f"{type(pipe.scheduler).__name__} is not linear in the predictions: they rebuild the "
            f"final latents with an error of {error:.1%}; accepted: less than {LINEAR:.0%}"
        )
    times = pipe.scheduler.timesteps.double().cpu().flatten()
    schedule = Schedule(sampler.shares[:-1], times, mix)
    return Recording(parts, schedule, sampler.start, sampler.final, frames)


def _run(pipe: Any, clip: Clip, overrides: dict[str, Any] | None) -> Any:
    return pipe(**call_arguments(pipe, clip) | (overrides or {})).frames[0]


def _flat(value: torch.Tensor) -> torch.Tensor:
    return value.detach().float().cpu().flatten()


class _Sampler:
    """Listens to a scheduler's steps."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._patches = Patches()
        self._lanes: Lanes | None = None
        self.predictions: list[torch.Tensor] = []
        self.start = self.final = torch.empty(0)

    @property
    def shares(self) -> torch.Tensor:
        """`(n + 1,)` float64: of every prediction, then of the start."""
        assert self._lanes is not None
        return self._lanes.shares

    def __enter__(self) -> Self:
        check_steps(self._scheduler)
        self._patches.wrap(self._scheduler, "step", self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.undo()

    def _listen(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        def step(output: torch.Tensor, timestep: Any, sample: torch.Tensor, **kwargs: Any) -> Any:
            if self._lanes is None:
                self._lanes = Lanes(self._scheduler)
                self.start = _flat(sample)
            self._lanes.step(timestep, **kwargs)
            self.predictions.append(_flat(output))
            stepped = inner(output, timestep, sample, **kwargs)
            self.final = _flat(stepped[0])
            return stepped

        return step


# --- gain and memory --------------------------------------------------------------


def probe_steps(total: int, probes: int) -> list[int]:
    """Steps from 1 on, closer together at the start, where gain changes fastest."""
    places = (round((total - 2) * (i / (probes - 1)) ** 1.7) + 1 for i in range(probes))
    return sorted(set(places))


def _probe(
    pipe: Any, clip: Clip, overrides: dict[str, Any] | None, recording: Recording, step: int
) -> tuple[float, float]:
    """Of an error made at one step: how much larger it is at the end, and the cosine of both."""
    mix = recording.schedule.mix
    reused = Forecast(tuple({step - 1: 1.0} for _ in mix))
    with (
        accelerate(pipe, plan=Plan(clip.steps, {step: reused}), mix=mix),
        _Sampler(pipe.scheduler) as sampler,
    ):
        _run(pipe, clip, {"output_type": "latent"} | (overrides or {}))
    change = recording.guided(step - 1) - recording.guided(step)
    made = float(recording.schedule.shares[step]) * change
    became = sampler.final - recording.final
    sizes = float(made.norm()), float(became.norm())
    if 0.0 in sizes:
        return 1.0, 1.0  # nothing was made, or nothing is left: no news
    return sizes[1] / sizes[0], float(made @ became) / (sizes[0] * sizes[1])


def summed_up(found: Sequence[tuple[int, float, float]], total: int) -> tuple[torch.Tensor, float]:
    """Probes (step, gain, cosine) -> the gain at every step, and the memory.

    Gain is the root mean square over clips, and lies on straight lines in its logarithm between the
    steps that were probed. Memory is the median of what the cosines say: e^(-steps left / memory).
    """
    steps = sorted({step for step, _, _ in found})
    logs = [
        math.log(math.sqrt(statistics.fmean(g * g for s, g, _ in found if s == step)))
        for step in steps
    ]
    gain = [math.exp(_between(steps, logs, step)) for step in range(total)]
    memory = statistics.median(
        (total - step) / -math.log(min(max(cosine, 0.02), 0.99)) for step, _, cosine in found
    )
    return torch.tensor(gain, dtype=torch.float64), memory


def _between(places: Sequence[int], values: Sequence[float], at: int) -> float:
    """On the line between the two neighbours; level beyond the ends."""
    if at <= places[0]:
        return values[0]
    for i in range(1, len(places)):
        if at <= places[i]:
            share = (at - places[i - 1]) / (places[i] - places[i - 1])
            return values[i - 1] + share * (values[i] - values[i - 1])
    return values[-1]


# --- what is done so far --------------------------------------------


def versions() -> dict[str, str]:
    """Of the packages that a profile depends on."""
    import importlib.metadata

    return {name: importlib.metadata.version(name) for name in ("dit-accel", "diffusers", "torch")}


class _Work:
    """A folder of what is done, one file a piece; nothing is kept where there is no folder."""

    def __init__(
        self, folder: Path | None, clips: Sequence[Clip], overrides: dict[str, Any] | None,
        pipe: Any,
    ) -> None:  # fmt: skip
        self.folder = folder
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        mine = hashlib.sha256(repr((list(clips), overrides)).encode()).hexdigest()
        identity = identify(pipe)
        self._stamp("clips", mine)
        self._stamp("pipelines", f"{identity.weights} {identity.sampler}")

    def _stamp(self, of: str, mine: str) -> None:
        assert self.folder is not None
        stamp = self.folder / of
        if stamp.is_file() and stamp.read_text() != mine:
            raise ValueError(
                f"work is {self.folder}, which is of other {of}; accepted: another folder"
            )
        if not stamp.is_file():
            part = self.folder / f"{of}.{os.getpid()}"  # others may work in the same folder
            part.write_text(mine)
            part.replace(stamp)

    def get(self, name: str, make: Callable[[], Any]) -> Any:
        """What is kept under a name, else what `make` returns, which is then kept."""
        if self.folder is None:
            return make()
        path = self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.pt"
        if path.is_file():
            with contextlib.suppress(OSError, RuntimeError, EOFError):
                return torch.load(path, weights_only=False)
        value = make()
        self._write(path, value)
        return value

    def moments(self, index: int, plans: Any) -> dict[tuple[int, ...], Moments]:
        """As they were after a clip, of these plans; none before the first."""
        if index < 0:
            return {}
        return self.get(f"moments-{index}-{plans}", lambda: self._last)

    def keep_moments(self, index: int, plans: Any, moments: dict[tuple[int, ...], Moments]) -> None:
        """Keep them for the next clip."""
        self._last = moments
        if self.folder is not None:
            self.get(f"moments-{index}-{plans}", lambda: moments)

    @staticmethod
    def _write(path: Path, value: Any) -> None:
        part = path.with_suffix(f".{os.getpid()}")
        torch.save(value, part)
        part.replace(path)
