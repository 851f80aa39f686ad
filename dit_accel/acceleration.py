"""`accelerate(pipe, ...)`: install on a pipeline, report what happened, remove.

with accelerate(pipe, threshold=0.1, site="model") as handle:
    video = pipe(prompt).frames
print(handle.report().summary())
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch

from dit_accel import following
from dit_accel.bench import Stopwatch, count_flops
from dit_accel.caching import Cache
from dit_accel.families import Family, family_of, transformers_of
from dit_accel.following import Follower
from dit_accel.outcome import Report
from dit_accel.patching import Patches
from dit_accel.planner import Plan
from dit_accel.session import Session
from dit_accel.unicp import PRESETS, PrunedCache, UniCP
from dit_accel.windows import DEFAULT_THRESHOLD, EDCW


def accelerate(
    pipe: Any,
    *,
    threshold: float = DEFAULT_THRESHOLD,
    site: str = "model",
    config: EDCW | None = None,
    plan: Plan | None = None,
    accel: str | UniCP | None = None,
) -> Handle:
    """Put error-aware dynamic cache windows, or a plan, on a diffusers video pipeline, in place.

    Args:
        pipe: a pipeline whose transformer is in `dit_accel.FAMILIES`.
        threshold: δ, the drift a window may reach, >= 0; 0 computes every step, bit-equal to the
            stock pipeline.
        site: what is kept: "attention" (each self-attention's output), "block" (each block's
            residual) or "model" (the residual of the whole block stack).
        config: all settings of the windows; its threshold takes the place of `threshold`.
        plan: which steps to compute and what serves the others, decided beforehand (`planner`);
            carried out at the denoiser's output, in place of windows at a site.
        accel: "unicp-paper", or a `UniCP` of your own: at each self-attention, windows with this
            threshold, and where they do not serve, pruned attention by the shift of weight; with a
            `UniCP` its windows' threshold counts. Where pruning does not pay, it is off and the
            report says so.

    Returns:
        The handle: a context manager with `report()` and `remove()`.

    Raises:
        ValueError: the pipeline is of no known family, or a setting is out of range.
        RuntimeError: the pipeline is accelerated already; nothing is changed.

    Source: UniCP (arXiv 2502.04393), EDCW; our reading.
    """
    family = family_of(pipe)
    if accel is not None:
        if plan is not None or config is not None or site != "model":
            raise ValueError("accel is given with plan, site or config; accepted: threshold alone")
        preset = _preset(accel, threshold)
        return Handle(pipe, family, "attention", preset.windows, preset=preset)
    if plan is not None:
        if config is not None or threshold != DEFAULT_THRESHOLD or site != "model":
            raise ValueError("plan is given with threshold, site or config; accepted: plan alone")
        return Handle(pipe, family, following.SITE, None, plan)
    if site not in family.sites:
        raise ValueError(f"site is {site!r}; accepted for {family.name}: {', '.join(family.sites)}")
    return Handle(pipe, family, site, config or EDCW(threshold=threshold))


def _preset(accel: str | UniCP, threshold: float) -> UniCP:
    if isinstance(accel, UniCP):
        return accel
    if accel not in PRESETS:
        raise ValueError(f"accel is {accel!r}; accepted: {', '.join(PRESETS)}, or a UniCP")
    return PRESETS[accel](windows=EDCW(threshold=threshold))


class Handle:
    """An installed acceleration. Made by `accelerate`; leaves nothing behind when removed."""

    def __init__(
        self,
        pipe: Any,
        family: Family,
        site: str,
        config: EDCW | None,
        plan: Plan | None = None,
        preset: UniCP | None = None,
    ) -> None:
        self.family, self.site, self.config, self.plan = family, site, config, plan
        self._transformers = transformers_of(pipe, family)
        self._patches = Patches()
        self._session = Session(pipe, self._transformers)
        self._cache: Cache | Follower
        self._clock = _Clock(self._session)
        try:
            self._session.install(self._patches)
            if plan is not None:
                self._cache = Follower(self._session, plan)
                self._session.answer = self._cache.answer
            else:
                self._cache = (
                    Cache(self._session, family, site, config or EDCW())
                    if preset is None
                    else PrunedCache(self._session, family, preset)
                )
                self._cache.install(self._patches)
            self._session.observers = [self._cache, self._clock]
        except BaseException:
            self._patches.undo()
            raise

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

    def report(self) -> Report:
        """What the last run did.

        Raises:
            RuntimeError: nothing has run yet.
        """
        session, cache = self._session, self._cache
        if session.step < 0:
            raise RuntimeError("report: no run yet; call the pipeline first")
        cache.settle()
        sites = cache.site_reports()
        full, spent, notes = self._flops(sites)
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
            notes=notes + (cache.notes() if isinstance(cache, PrunedCache) else ()),
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
        return full, full - saved, ()

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
