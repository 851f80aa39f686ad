"""`accelerate(pipe, ...)`: install on a pipeline, report what happened, remove.

with accelerate(pipe, threshold=0.1, site="model") as handle:
    video = pipe(prompt).frames
print(handle.report().summary())
"""

from __future__ import annotations

import math
import os
from types import TracebackType
from typing import Any

import torch

from dit_accel import following, scenes, targets
from dit_accel.autopilot import DEFAULT_QUALITY, Autopilot, checked, find_profile, load_profile
from dit_accel.bench import Stopwatch, count_flops
from dit_accel.caching import Cache
from dit_accel.courses import Course, EveryStep, PlanCourse
from dit_accel.families import Family, family_of, transformers_of
from dit_accel.following import Follower
from dit_accel.isolation import Scene
from dit_accel.layout import Layout
from dit_accel.outcome import Report, SceneReport
from dit_accel.patching import Patches
from dit_accel.plans import Plan
from dit_accel.profile import Profile
from dit_accel.session import Session
from dit_accel.staging import SceneConfig
from dit_accel.unicp import PRESETS, PrunedCache, UniCP
from dit_accel.windows import DEFAULT_THRESHOLD, EDCW


def accelerate(
    pipe: Any,
    *,
    threshold: float | None = None,
    site: str = "model",
    config: EDCW | None = None,
    plan: Plan | Course | None = None,
    mix: tuple[float, ...] = (1.0,),
    accel: str | UniCP | None = None,
    quality: float | None = None,
    speedup: float | None = None,
    profile: Profile | str | os.PathLike[str] | None = None,
    guard: bool = True,
    force: bool = False,
    static: bool = False,
    cache_memory: int | None = None,
    layout: Layout | str | os.PathLike[str] | None = None,
    scene: SceneConfig | None = None,
) -> Handle:
    """Accelerate a diffusers video pipeline, in place: to a quality, a speed or a threshold.

    Args:
        pipe: a pipeline whose transformer is in `dit_accel.FAMILIES`.
        threshold: δ, the drift a window may reach, >= 0; 0 computes every step, bit-equal to the
            stock pipeline.
        site: what is kept: "attention" (each self-attention's output), "block" (each block's
            residual) or "model" (the residual of the whole block stack).
        config: all settings of the windows; its threshold takes the place of `threshold`.
        plan: which steps to compute and what serves the others, decided beforehand (`planner`);
            carried out at the denoiser's output, in place of windows at a site.
        mix: of the parts that the plan's forecasts have.
        accel: "unicp", all that pays: as `quality` or `speedup` say, a quality of 36 dB where
            neither is given. "unicp-paper", or a `UniCP` of your own: at each self-attention,
            windows with this threshold, and where they do not serve, pruned attention by the shift
            of weight; with a `UniCP` its windows' threshold counts. Where pruning does not pay, it
            is off and the report says so.
        quality: PSNR in dB against the uncached clip that 95 % of clips shall reach.
        speedup: steps over computed steps.
        profile: what calibration measured of this pipeline, or the file of it; else it is looked
            for in the model's folder and in the user's cache; where there is none, the first run is
            computed whole and recorded.
        guard: whether a run may leave its plan where what is measured on the way is far from what
            was to be expected.
        force: use a profile of another pipeline all the same.
        static: with quality or speedup: every run does exactly the same, and the device is never
            read (for torch.compile and CUDA graphs); no guard, and nothing turns careful.
        cache_memory: with quality or speedup: bytes that kept values may hold on the device; older
            ones wait in the CPU's memory. None: no bound.
        layout: subjects, their boxes and references, or the file of them: the pipeline is then to
            be called for one prompt a shot, `prompt=layout.prompts`.
        scene: settings of isolation, references and subjects' texts; None: the defaults.

    With no target at all: windows at the default threshold; with a layout alone, no cache.

    Returns:
        The handle: a context manager with `report()` and `remove()`.

    Raises:
        ValueError: the pipeline is of no known family, or a setting is out of range.
        RuntimeError: the pipeline is accelerated already; nothing is changed.

    Source: UniCP (arXiv 2502.04393), EDCW; IR-Diffusion (arXiv 2411.19261); our reading.
    """
    family = family_of(pipe)
    staged = scenes.prepare(family, layout, scene)
    if accel == "unicp":
        if threshold is not None:
            raise ValueError("accel is 'unicp' with threshold; accepted: with quality or speedup")
        accel, quality = None, DEFAULT_QUALITY if quality is None and speedup is None else quality
    if cache_memory is not None and cache_memory < 1:
        raise ValueError(f"cache_memory is {cache_memory!r}; accepted: bytes, at least 1")
    targets.check_choice((("quality", quality), ("speedup", speedup), ("threshold", threshold)))
    if quality is not None or speedup is not None:
        if plan is not None or config is not None or accel is not None or site != "model":
            raise ValueError(
                "quality or speedup is given with plan, config, accel or site; accepted: alone"
            )
        return _piloted(
            pipe, family, profile, quality, speedup, guard=guard, force=force, static=static,
            memory=cache_memory, scene=staged,
        )  # fmt: skip
    given = {"profile": profile is not None, "static": static, "cache_memory": cache_memory}
    for name, value in given.items():
        if value:
            raise ValueError(f"{name} is given without a target; accepted: with quality or speedup")
    if accel is not None:
        if plan is not None or config is not None or site != "model":
            raise ValueError("accel is given with plan, site or config; accepted: threshold alone")
        preset = _preset(accel, DEFAULT_THRESHOLD if threshold is None else threshold)
        return Handle(pipe, family, "attention", preset.windows, preset=preset, scene=staged)
    if plan is not None:
        if config is not None or threshold is not None or site != "model":
            raise ValueError("plan is given with threshold, site or config; accepted: plan alone")
        course = PlanCourse(plan, mix) if isinstance(plan, Plan) else plan
        return Handle(pipe, family, following.SITE, None, course, scene=staged)
    if staged is not None and threshold is None and config is None and site == "model":
        return Handle(pipe, family, following.SITE, EDCW(threshold=0.0), EveryStep(), scene=staged)
    if site not in family.sites:
        raise ValueError(f"site is {site!r}; accepted for {family.name}: {', '.join(family.sites)}")
    windows = config or EDCW(threshold=DEFAULT_THRESHOLD if threshold is None else threshold)
    return Handle(pipe, family, site, windows, scene=staged)


def _piloted(
    pipe: Any, family: Family, given: Profile | str | os.PathLike[str] | None,
    quality: float | None, speedup: float | None, *, guard: bool, force: bool, static: bool,
    memory: int | None, scene: scenes.Prepared | None,
) -> Handle:  # fmt: skip
    for name, value, least in (("quality", quality, 0.0), ("speedup", speedup, 1.0)):
        if value is not None and not (least < value < math.inf or value == least == 1.0):
            raise ValueError(f"{name} is {value!r}; accepted: a finite number above {least:g}")
    source = given if given is not None else find_profile(pipe)
    profile = load_profile(source) if source is not None else None
    remarks = checked(profile, pipe, force=force) if profile is not None else ()
    course = Autopilot(
        pipe, family, profile, quality=quality, speedup=speedup, guard=guard, static=static,
        force=force, remarks=remarks,
    )  # fmt: skip
    handle = Handle(pipe, family, following.SITE, None, course, scene=scene)
    follower = handle.follower
    follower.heard, follower.heard_start, follower.memory = course.hear, course.hear_start, memory
    if scene is None:  # what calibration knows of texts is of clips without a scene
        follower.heard_text = course.hear_text
    return handle


def _preset(accel: str | UniCP, threshold: float) -> UniCP:
    if isinstance(accel, UniCP):
        return accel
    if accel not in PRESETS:
        raise ValueError(f"accel is {accel!r}; accepted: unicp, {', '.join(PRESETS)}, or a UniCP")
    return PRESETS[accel](windows=EDCW(threshold=threshold))


class Handle:
    """An installed acceleration. Made by `accelerate`; leaves nothing behind when removed."""

    def __init__(
        self,
        pipe: Any,
        family: Family,
        site: str,
        config: EDCW | None,
        course: Course | None = None,
        preset: UniCP | None = None,
        scene: scenes.Prepared | None = None,
    ) -> None:
        self.family, self.site, self.config = family, site, config
        self._transformers = transformers_of(pipe, family)
        self._patches = Patches()
        self._session = Session(pipe, self._transformers)
        self._cache: Cache | Follower
        self._clock = _Clock(self._session)
        self._scene: Scene | None = None
        self._done: SceneReport | None = None  # of the scene, once it is removed
        try:
            self._session.install(self._patches)
            if course is not None:
                self._cache = Follower(self._session, course)
                self._session.answer = self._cache.answer
            else:
                self._cache = (
                    Cache(self._session, family, site, config or EDCW())
                    if preset is None
                    else PrunedCache(self._session, family, preset)
                )
                self._cache.install(self._patches)
            self._session.observers = [self._cache, self._clock]
            self._scene = scene(self._session) if scene is not None else None
            if self._scene is not None:
                self._scene.install(self._patches)
                self._session.observers = [self._scene, self._cache, self._clock]
        except BaseException:
            self._patches.undo()
            raise

    @property
    def follower(self) -> Follower:
        """What carries out a plan.

        Raises:
            RuntimeError: no plan is at work, but windows at a site.
        """
        if not isinstance(self._cache, Follower):
            raise RuntimeError("follower: windows are at work here, no plan")
        return self._cache

    def __enter__(self) -> Handle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Restore the pipeline exactly and free what was kept; the report stays readable.

        Raises:
            RuntimeError: something was wrapped over ours since; undo that first.
        """
        self._cache.settle()
        self._patches.undo()
        self._cache.clear()
        if self._scene is not None:
            self._done = self._done or self._scene.report()
            self._scene.clear()

    def report(self) -> Report:
        """What the last run did.

        Raises:
            RuntimeError: nothing has run yet.
        """
        session, cache = self._session, self._cache
        course = cache.course if isinstance(cache, Follower) else None
        pilot = course if isinstance(course, Autopilot) else None
        if session.step < 0:
            raise RuntimeError("report: no run yet; call the pipeline first")
        cache.settle()
        sites = cache.site_reports()
        full, spent, notes = self._flops(sites)
        scene = self._scene_report()
        return Report(
            family=self.family.name,
            site=self.site,
            threshold=self.config.threshold if self.config is not None else None,
            steps=session.total or session.step + 1,
            branches=tuple(dict.fromkeys(branch for _, branch in session.inputs)),
            sites=sites,
            flops_full=full,
            flops_spent=spent,
            seconds=self._clock.seconds,
            peak_memory_bytes=self._clock.peak_memory_bytes,
            kept_bytes=cache.kept_bytes,
            device_reads=cache.device_reads,
            offloaded_bytes=getattr(cache, "offloaded_bytes", 0),
            quality=pilot.quality if pilot else None,
            speedup=pilot.speedup if pilot else None,
            prediction=pilot.prediction() if pilot else None,
            planned=pilot.steering.plan.computed if pilot else (),
            notes=notes + cache.notes(),
            scene=scene,
        )

    def _flops(self, sites: tuple[Any, ...]) -> tuple[int | None, int | None, tuple[str, ...]]:
        """FLOPs the stock pipeline would have spent and what this run spent."""
        full = saved = 0
        try:
            for (name, branch), (args, kwargs) in self._session.inputs.items():
                costs = count_flops(_without_weights(self._transformers[name]), args, kwargs)
                mine = [s for s in sites if (s.transformer, s.branch) == (name, branch)]
                full += costs[""] * max((s.steps for s in mine), default=0)
                for s in mine:
                    saved += self._cost(costs, s.name) * len(s.served)
                    unspent = sum(1 - share for share in s.spent.values())
                    saved += round(unspent * _products(costs, s.name)) if unspent else 0
        except (RuntimeError, NotImplementedError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            return None, None, (f"FLOPs could not be counted: {reason}",)
        return full, self._with_scene(full - saved), ()

    def _scene_report(self) -> SceneReport | None:
        return self._done or (self._scene.report() if self._scene is not None else None)

    def _with_scene(self, spent: int) -> int:
        """FLOPs with those of a scene: rows beside the user's cost what these cost."""
        scene = self._scene_report()
        if scene is None:
            return spent
        shots = len(scene.classes) - scene.further_rows
        return round(spent * len(scene.classes) / max(shots, 1)) + scene.extra_flops

    def _cost(self, costs: dict[str, int], site: str) -> int:
        if site == following.SITE:
            return costs[""]
        if site != "stack":
            return costs[site]
        groups = self.family.blocks  # lists, which are not called: their members are counted
        members = (path for path in costs if path.count(".") == 1 and path.split(".")[0] in groups)
        return sum(costs[path] for path in members)


def _products(costs: dict[str, int], attention: str) -> int:
    """FLOPs of an attention less those of the projections inside it."""
    inside = [path for path in costs if path.startswith(f"{attention}.")]
    tops = (p for p in inside if not any(p.startswith(f"{other}.") for other in inside))
    return costs[attention] - sum(costs[path] for path in tops)


def _without_weights(transformer: Any) -> Any:
    """A stock twin to count on: no weights, none of the hooks that offload or cache."""
    with torch.device("meta"):
        return type(transformer).from_config(transformer.config)


class _Clock:
    """Times the denoising loop: from a run's first forward to its last step's last."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._watch: Stopwatch | None = None

    @property
    def seconds(self) -> float:
        return self._watch.seconds if self._watch else 0.0

    @property
    def peak_memory_bytes(self) -> int | None:
        return self._watch.peak_memory_bytes if self._watch else None

    def run_begins(self, total: int | None) -> None:
        transformer = next(iter(self._session.transformers.values()))
        self._watch = Stopwatch(next(transformer.parameters()).device)
        self._watch.start()

    def step_begins(self, step: int) -> None:
        """Steps are not timed one by one: that would synchronise the device at each."""

    def forward_ends(self, transformer: str) -> None:
        total = self._session.total
        if self._watch and (total is None or self._session.step == total - 1):
            self._watch.stop()


__all__ = ["Handle", "accelerate"]
