"""`accelerate(pipe, ...)`: install on a pipeline, report what happened, remove.

with accelerate(pipe, threshold=0.1, site="model") as handle:
    video = pipe(prompt).frames
print(handle.report().summary())
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any

from dit_accel.caching.controller import RunController
from dit_accel.caching.executor import PlanExecutor
from dit_accel.caching.policy import ComputeAll, Policy
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
    UncachedConfig,
    UniCPConfig,
    config_of,
)
from dit_accel.core.families import Family, family_of, transformers_of
from dit_accel.core.flops import count_run
from dit_accel.core.measure import LoopTimer
from dit_accel.core.patching import Patches
from dit_accel.core.report import OUTPUT_SITE, Report, SceneReport
from dit_accel.core.session import Session
from dit_accel.layout import Layout
from dit_accel.planning.lookup import profile_for
from dit_accel.planning.plan import Plan
from dit_accel.planning.profile import Profile
from dit_accel.scenes import prepare
from dit_accel.scenes.isolation import SceneAttention
from dit_accel.scenes.rows import SceneConfig


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
    cache_memory: int | None = None,
    layout: Layout | str | os.PathLike[str] | None = None,
    scene: SceneConfig | None = None,
) -> Handle:
    """Accelerate a diffusers video pipeline, in place: to a quality, a speed or a threshold.

    Args:
        pipe: a pipeline whose transformer is in `dit_accel.FAMILIES`.
        config: all that the keywords below may say, as one object; or settings of the windows
            (`EDCW`) or of `UniCP`, with those keywords that go with `threshold` or `accel`.
        threshold: δ, the drift a window may reach, >= 0; 0 computes every step (`ThresholdConfig`).
        site: with a threshold: what is kept, "attention", "block" or "model".
        plan: which steps to compute and what serves the others (`PlanConfig`).
        mix: with a plan: of the parts that its forecasts have.
        accel: "unicp", all that pays: as `quality` or `speedup` say, a quality of 36 dB where
            neither is given. "unicp-paper", with this threshold, or a `UniCP` of your own, with the
            threshold of its windows (`UniCPConfig`).
        quality: PSNR in dB against the uncached clip that 95 % of clips shall reach
            (`QualityConfig`).
        speedup: steps over computed steps (`SpeedupConfig`).
        profile, guard, force, static, cache_memory: with these two, as of `PlannedConfig`.
        layout, scene: with any of them, as of `AccelConfig`; a layout alone: no cache
            (`UncachedConfig`).

    With nothing at all: windows at the default threshold.

    Returns:
        The handle: a context manager with `report()` and `remove()`.

    Raises:
        ValueError: the pipeline is of no known family, or a setting is out of range.
        RuntimeError: the pipeline is accelerated already; nothing is changed.

    Source: UniCP (arXiv 2502.04393), EDCW; IR-Diffusion (arXiv 2411.19261); our reading.
    """
    chosen = config_of(
        config, threshold=threshold, site=site, plan=plan, mix=mix, accel=accel, quality=quality,
        speedup=speedup, profile=profile, guard=guard, force=force, static=static,
        cache_memory=cache_memory, layout=layout, scene=scene,
    )  # fmt: skip
    return Handle(pipe, chosen, prepare.prepare(family_of(pipe), chosen.layout, chosen.scene))


class Handle:
    """An installed acceleration. Made by `accelerate`; leaves nothing behind when removed.

    Args:
        pipe: the pipeline.
        config: what is done on it.
        scene: that of the config's layout.
    """

    def __init__(
        self, pipe: Any, config: AccelConfig, scene: prepare.Prepared | None = None
    ) -> None:
        self.config, self.family = config, family_of(pipe)
        self._transformers = transformers_of(pipe, self.family)
        self._patches = Patches()
        self._session = Session(pipe, self._transformers)
        self._cache = _cache_of(config, self._session, self.family, alone=scene is None)
        self._clock = LoopTimer([*self._transformers.values()])
        self._scene: SceneAttention | None = None
        self._done: SceneReport | None = None  # of the scene, once it is removed
        try:
            self._session.install(self._patches)
            if isinstance(self._cache, PlanExecutor):
                self._session.answer = self._cache.answer
            else:
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
    def site(self) -> str:
        """Where values are kept."""
        return self._cache.kind if isinstance(self._cache, SiteCache) else OUTPUT_SITE

    @property
    def follower(self) -> PlanExecutor:
        """What carries out a plan.

        Raises:
            RuntimeError: no plan is at work, but windows at a site.
        """
        if not isinstance(self._cache, PlanExecutor):
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
        policy = cache.policy if isinstance(cache, PlanExecutor) else None
        controller = policy if isinstance(policy, RunController) else None
        kept = cache.kept if isinstance(cache, PlanExecutor) else None
        if session.step < 0:
            raise RuntimeError("report: no run yet; call the pipeline first")
        cache.settle()
        sites = cache.site_reports()
        scene = self._scene_report()
        full, spent, notes = count_run(session, self.family, sites, scene)
        return Report(
            family=self.family.name,
            site=self.site,
            threshold=_threshold(self.config),
            steps=session.num_steps or session.step + 1,
            branches=tuple(dict.fromkeys(branch for _, branch in session.inputs)),
            sites=sites,
            flops_full=full,
            flops_spent=spent,
            seconds=self._clock.seconds,
            peak_memory_bytes=self._clock.peak_memory_bytes,
            kept_bytes=cache.kept_bytes,
            host_syncs=cache.host_syncs,
            packed_bytes=kept.most_packed if kept is not None else 0,
            packed_bits=kept.bits if kept is not None else None,
            offloaded_bytes=kept.most_away if kept is not None else 0,
            quality=controller.quality if controller else None,
            speedup=controller.speedup if controller else None,
            prediction=controller.prediction() if controller else None,
            planned=controller.guarded.plan.computed if controller else (),
            notes=notes + cache.notes(),
            scene=scene,
            config=self.config.describe(),
            asked=str(self.config),
        )

    def _scene_report(self) -> SceneReport | None:
        return self._done or (self._scene.report() if self._scene is not None else None)


def _cache_of(
    config: AccelConfig, session: Session, family: Family, *, alone: bool
) -> SiteCache | PlanExecutor:
    """What carries a config out; `alone`: without a scene."""
    if isinstance(config, ThresholdConfig):
        if config.site not in family.sites:
            accepted = f"accepted for {family.name}: {', '.join(family.sites)}"
            raise ValueError(f"site is {config.site!r}; {accepted}")
        return SiteCache(session, family, config.site, config)
    if isinstance(config, UniCPConfig):
        return UniCPCache(session, family, config)
    if isinstance(config, PlanConfig):
        return PlanExecutor(session, config.policy)
    if isinstance(config, PlannedConfig):
        return _piloted(config, session, family, alone=alone)
    return PlanExecutor(session, ComputeAll())


def _piloted(
    config: PlannedConfig, session: Session, family: Family, *, alone: bool
) -> PlanExecutor:
    profile, remarks = profile_for(session.pipe, config.profile, force=config.force)
    policy = RunController(
        session.pipe, family, profile,
        quality=config.quality if isinstance(config, QualityConfig) else None,
        speedup=config.speedup if isinstance(config, SpeedupConfig) else None,
        guard=config.guard, static=config.static, force=config.force, remarks=remarks,
    )  # fmt: skip
    follower = PlanExecutor(session, policy)
    follower.heard, follower.heard_start = policy.hear, policy.hear_start
    follower.heard_latents = policy.hear_latents
    follower.kept.memory, follower.min_bits = config.cache_memory, lambda: policy.min_bits
    if alone:  # what calibration knows of texts is of clips without a scene
        follower.heard_text = policy.hear_text
    return follower


def _threshold(config: AccelConfig) -> float | None:
    """Of the windows; None where a plan decides."""
    if isinstance(config, ThresholdConfig):
        return config.threshold
    if isinstance(config, UniCPConfig):
        return config.windows.threshold
    return 0.0 if isinstance(config, UncachedConfig) else None


__all__ = ["Handle", "accelerate"]
