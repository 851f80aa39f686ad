"""Installs an acceleration on a pipeline, reports what it did, and removes it.

Goes in: a pipeline and a config. Comes out: a `Handle`. It knows which engine carries out which
config, and nothing of how a technique works. Sources: see `accelerate`.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from functools import partial
from itertools import chain
from types import TracebackType
from typing import Any, cast

from dit_accel.caching.branch_parallel import BranchParallel
from dit_accel.caching.chooser import keeps_noise
from dit_accel.caching.controller import RunController
from dit_accel.caching.engine import Engine
from dit_accel.caching.executor import PlanExecutor
from dit_accel.caching.learning import Learning
from dit_accel.caching.loops import CallLoops
from dit_accel.caching.monitor import FiniteCheck
from dit_accel.caching.policy import ComputeAll, Policy
from dit_accel.caching.reference import ReferenceRun
from dit_accel.caching.sites import SiteCache
from dit_accel.caching.unicp import UniCP, UniCPCache
from dit_accel.caching.windows import EDCW
from dit_accel.config import (
    AccelConfig,
    PlanConfig,
    PlannedConfig,
    QualityConfig,
    SpeedupConfig,
    ThresholdConfig,
    UniCPConfig,
)
from dit_accel.config.keywords import config_of
from dit_accel.core.families import Family, blocks_of, family_of, transformers_of
from dit_accel.core.flops import Costs, Rows, count_run
from dit_accel.core.measure import LoopTimer
from dit_accel.core.patching import Patches
from dit_accel.core.private_names import other_cache
from dit_accel.core.report import CacheSite, Report, SceneReport, SiteReport
from dit_accel.core.session import Session
from dit_accel.layout import Layout
from dit_accel.planning.lookup import profile_for
from dit_accel.planning.plan import Plan
from dit_accel.planning.profile import Profile
from dit_accel.planning.selection import Target
from dit_accel.scenes import prepare
from dit_accel.scenes.isolation import SceneAttention
from dit_accel.scenes.rows import SceneConfig

_LOG = logging.getLogger(__name__)


def accelerate(
    pipe: Any,
    config: AccelConfig | EDCW | UniCP | None = None,
    *,
    threshold: float | None = None,
    site: str = "model",
    plan: Plan | Policy | None = None,
    mix: tuple[float, ...] = (1.0,),
    accel: str | UniCP | None = None,
    quality: float | None = None,
    speedup: float | None = None,
    profile: Profile | str | os.PathLike[str] | None = None,
    guard: bool = True,
    force: bool = False,
    static: bool = False,
    learn: bool = True,
    cache_memory: int | str | None = None,
    layout: Layout | str | os.PathLike[str] | None = None,
    scene: SceneConfig | None = None,
    branch_parallel: Any = False,
) -> Handle:
    """Accelerate a diffusers video pipeline in place, for a quality, a speedup or a threshold.

    `quality`, `speedup`, `plan`, `threshold` and `accel` are five ways to decide which steps are
    computed. Without any of them, and without `layout` and `branch_parallel`, cache windows run at
    the default threshold.

    Args:
        pipe: a pipeline with a transformer. If the transformer has no row in `dit_accel.FAMILIES`,
            only quality, speedup and plan work.
        config: an `AccelConfig` in place of all keywords below; or the settings of the windows
            (`EDCW`), or a `UniCP`, together with the keywords that go with `threshold` or `accel`.
        threshold: δ, the drift a window may reach, >= 0; 0 computes every step (`ThresholdConfig`).
        site: where windows cache values: "attention", "block" or "model". With `threshold` or
            alone.
        plan: which steps are computed, and what the others are extrapolated from (`PlanConfig`).
        mix: the weight of each component in the guided prediction. Only with `plan`.
        accel: "unicp" is a plan for `quality` or `speedup`; without them, for a quality of 36 dB.
            "unicp-paper" is the paper's method, with `threshold`. A `UniCP` object has settings of
            your own (`UniCPConfig`).
        quality: target: the PSNR in dB, against the uncached clip, that 95 % of clips should reach
            (`QualityConfig`).
        speedup: target: all steps / computed steps (`SpeedupConfig`).
        profile, guard, force, static, learn, cache_memory: see `PlannedConfig`. Only with `quality`
            or `speedup`.
        layout, scene: see `AccelConfig`. They go with every method. A layout without a method
            caches nothing (`UncachedConfig`).
        branch_parallel: see `AccelConfig`. With quality, speedup or plan, or alone.

    Returns:
        The handle: a context manager with `report()` and `remove()`.

    Raises:
        ValueError: the pipeline has no transformer; or a setting is out of range, or its family
            does not support it.
        RuntimeError: the pipeline is accelerated already. Nothing is changed then.

    Example:
        >>> with dit_accel.accelerate(pipe, quality=32) as handle:  # doctest: +SKIP
        ...     video = pipe(prompt).frames
        >>> print(handle.report().summary())  # doctest: +SKIP

    Source: our reading of UniCP (arXiv 2502.04393, EDCW) and IR-Diffusion (arXiv 2411.19261).
    """
    chosen = config_of(
        config, threshold=threshold, site=site, plan=plan, mix=mix, accel=accel, quality=quality,
        speedup=speedup, profile=profile, guard=guard, force=force, static=static,
        learn=learn, cache_memory=cache_memory, layout=layout, scene=scene,
        branch_parallel=branch_parallel,
    )  # fmt: skip
    return Handle(pipe, chosen, prepare.prepare(family_of(pipe), chosen.layout, chosen.scene))


class Handle:
    """An installed acceleration, made by `accelerate`. `remove` restores the pipeline exactly."""

    def __init__(
        self, pipe: Any, config: AccelConfig, scene: prepare.Prepared | None = None
    ) -> None:
        self.config, self.family = config, family_of(pipe)
        session = self._session = Session(pipe, transformers_of(pipe, self.family))
        session.on_call = self._call_begins
        self._patches = Patches(session.is_active)
        self._costs: dict[tuple[str, Rows], Costs] = {}  # FLOPs by transformer and input size
        self.executor = build_engine(config, session, self.family, with_scene=scene is not None)
        device = partial(getattr, session, "device")  # the device of the last forward's latents
        self._timer = LoopTimer([*session.transformers.values()], device=device)
        self._finite = FiniteCheck(session)
        self._make_scene = scene
        self._loops = CallLoops(session, self._report_run)
        self._branches: BranchParallel | None = None
        self._scene: SceneAttention | None = None
        self._last_scene: SceneReport | None = None  # set when the scene is removed
        self._entered = False
        self._around: list[Any] = []  # the pipeline's modules when the hooks were installed
        self._install()

    def _install(self) -> None:
        session = self._session
        self._around = self._modules_of(session.transformers)
        try:
            session.install(self._patches)
            self.executor.install(self._patches)
            session.interceptors = [self._loops, self._finite, self.executor, self._timer]
            if self.config.branch_parallel:
                self._branches = BranchParallel(session, self.family, self.config.branch_parallel)
                session.interceptors.insert(3, self._branches)
            if self._make_scene is not None:
                self._scene = self._make_scene(session)
                self._scene.install(self._patches)
                # The engine wraps the scene: an extrapolated forward does not need the scene's
                # rows. The timer comes last, so it starts after the plan was chosen.
                session.interceptors.insert(3, self._scene)
        except BaseException:
            self._patches.undo()
            raise

    def _modules_of(self, transformers: dict[str, Any]) -> list[Any]:
        inside = (blocks_of(module, self.family) for module in transformers.values())
        return [*transformers.values(), *chain.from_iterable(inside)]

    def _stands(self, transformers: dict[str, Any]) -> bool:
        """Whether our hooks are still on all modules of these transformers."""
        # A transformer of another family may lack the blocks that `_modules_of` reads.
        if list(transformers.values()) != list(self._session.transformers.values()):
            return False
        now = self._modules_of(transformers)
        return list(map(id, now)) == list(map(id, self._around)) and not self._patches.replaced

    def _call_begins(self) -> None:
        """Put our hooks on the transformers, blocks and attentions that the pipeline has now."""
        session = self._session
        self._costs.clear()  # a LoRA that was loaded since the last call adds layers
        found = transformers_of(session.pipe, self.family)
        if self._stands(found):
            self._patches.settle()
            return
        if family_of(session.pipe) != self.family:
            raise ValueError(
                f"pipe has a {family_of(session.pipe).transformer} now, but was accelerated with a "
                f"{self.family.transformer}; call remove() on the handle, then accelerate() again"
            )
        self._patches.undo()
        self.executor.clear()
        session.adopt(found)
        self._install()

    @property
    def site(self) -> CacheSite:
        """Where values are cached."""
        return self.executor.site

    def __enter__(self) -> Handle:
        """Return the handle itself.

        Raises:
            RuntimeError: the handle was removed, or entered before.
        """
        if self._entered or not self._patches:
            was = "entered" if self._patches else "removed"
            raise RuntimeError(
                f"the handle was {was} before; accepted: a new accelerate() for each `with` block"
            )
        self._entered = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Restore the pipeline exactly and free the cached values. `report` still works."""
        self.executor.flush()
        self._patches.undo()
        self.executor.clear()
        if self._branches is not None:
            self._branches.clear()
        if self._scene is not None:
            self._last_scene = self._last_scene or self._scene.report()
            self._scene.clear()

    def learn_from(self, reference: ReferenceRun) -> bool:
        """Learn from the uncached reference of the clip that the next run makes.

        The plan of that next run does not use the reference yet. Otherwise the run would be planned
        from measurements of its own clip.

        A reference of another clip, also of another size or number of steps, is learnt from in the
        same way: what was recorded belongs to the reference's own run, and is stored as that.

        Args:
            reference: recorded by `recorded`, best with the same prompt and seed as the next run.

        Returns:
            Whether anything is learnt. False if this handle does not learn (`learn=False`, or not
            a quality or speedup), or if the reference could not be recorded.

        Raises:
            ValueError: the pipeline's weights or scheduler changed since the recording.
        """
        engine = self.executor
        controller = engine.controller if isinstance(engine, PlanExecutor) else None
        return isinstance(controller, RunController) and controller.learn_from(reference.run)

    def report(self) -> Report:
        """A report of the last call, over all of its denoising loops.

        Raises:
            RuntimeError: nothing has run yet.
        """
        if self._session.step < 0:
            raise RuntimeError("there is no run to report yet; call the pipeline first")
        return self._loops.report()

    def _report_run(self) -> Report:
        """The report of the last denoising loop."""
        session, engine = self._session, self.executor
        if not session.is_elsewhere:  # else the running thread reads them at its next step
            engine.flush()
        sites = engine.site_reports()
        scene = self._last_scene or (self._scene.report() if self._scene is not None else None)
        full, spent, uncounted = self._count(sites, scene)
        settings = self.config.describe()
        others = tuple(
            f"{name} has {other_cache(module)}. The predicted quality does not hold with it, and "
            "the FLOPs that it saves are not counted."
            for name, module in session.transformers.items()
            if other_cache(module) is not None
        )
        changes = engine.run_changes()
        branches = self._branches.notes() if self._branches is not None else ()
        return Report(
            family=self.family.name,
            site=engine.site,
            threshold=self.config.window_threshold,
            steps=session.num_steps or session.step + 1,
            branches=tuple(dict.fromkeys(branch for _, branch in [*session.inputs])),
            sites=sites,
            flops_full=full,
            flops_spent=spent,
            seconds=self._timer.seconds,
            peak_memory_bytes=self._timer.peak_memory_bytes,
            host_syncs=engine.host_syncs,
            quality=settings.get("quality"),
            speedup=settings.get("speedup"),
            prediction=None if others or changes else engine.policy.prediction(),
            planned=engine.policy.planned,
            notes=others + uncounted + branches + engine.notes() + changes + self._finite.notes(),
            scene=scene,
            config=settings,
            requested=str(self.config),
            **dataclasses.asdict(engine.memory),
        )

    def _count(
        self, sites: tuple[SiteReport, ...], scene: SceneReport | None
    ) -> tuple[int | None, int | None, tuple[str, ...]]:
        """FLOPs of the stock pipeline and of this run; a note if they cannot be counted."""
        if not self.family.blocks:  # it is not known how many tokens each layer gets
            name = self.family.transformer
            note = f"FLOPs are not counted: the table of models (FAMILIES) has no row for {name}."
            return None, None, (note,)
        return *count_run(self._session, self.family, sites, scene, self._costs), ()


def _check_noise(plan: Plan | Policy, pipe: Any, family: Family) -> None:
    """Refuse a plan that uses the starting noise if the denoiser's input is not that noise alone.

    Raises:
        ValueError: the plan has a noise weight, and this pipeline's runs do not store the noise.
    """
    if isinstance(plan, Plan) and plan.weighs_noise and not keeps_noise(pipe, family):
        raise ValueError(
            "plan weighs the starting noise, but the input of this pipeline's denoiser is not the "
            "noise alone; accepted: a plan whose noise_weight is 0 at every step"
        )


def build_engine(
    config: AccelConfig, session: Session, family: Family, *, with_scene: bool = False
) -> Engine:
    """The engine that carries out a config.

    Raises:
        ValueError: the config does not suit the pipeline's family, or the profile does not.
    """
    if isinstance(config, ThresholdConfig):
        if config.site not in family.sites:
            sites = ", ".join(family.sites) or "none. Use quality, speedup or plan instead"
            accepted = f"accepted for {family.name}: {sites}"
            raise ValueError(f"site is {config.site!r}; {accepted}")
        return SiteCache(session, family, cast(CacheSite, config.site), config)
    if isinstance(config, UniCPConfig):
        return UniCPCache(session, family, config)
    if isinstance(config, PlanConfig):
        _check_noise(config.plan, session.pipe, family)
        return PlanExecutor(session, config.policy)
    if not isinstance(config, PlannedConfig):
        return PlanExecutor(session, ComputeAll())
    given = partial(profile_for, session.pipe, config.profile, force=config.force)
    look_up = given if config.known is None else None
    profile, remarks = look_up() if look_up is not None else (None, ())
    records = config.records or config.learns
    if profile is None and config.known is None and config.choice is None:  # else it is known
        _LOG.warning(
            "No profile was found for %s, so runs are planned from the prior. A run that the prior "
            "does not cover is %s.", config, "computed in full and recorded, and later runs are "
            "planned from the record" if records else "refused",
        )  # fmt: skip
    target = Target(
        config.quality if isinstance(config, QualityConfig) else None,
        config.speedup if isinstance(config, SpeedupConfig) else None,
    )
    controller = RunController(
        session.pipe, family, profile, target, guard=config.guard, static=config.static,
        force=config.force, choice=config.choice, remarks=remarks, look_up=look_up,
        use_text=not with_scene,  # calibration measured prompts only on clips without a scene
        learning=config.known or (Learning(session.pipe) if config.learns else None),
        records=records,
    )  # fmt: skip
    return PlanExecutor(session, controller, config.cache_memory)


__all__ = ["Handle", "accelerate"]
