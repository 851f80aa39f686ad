"""One run of a pipeline for the command line: its bar, its warm-up, and the cache at work."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from dit_accel import takes
from dit_accel.cli import shots
from dit_accel.cli.errors import BadInput, RunFailed

if TYPE_CHECKING:
    from dit_accel.cli.progress import StepBar
    from dit_accel.cli.settings import Settings


def warm_up(pipe: Any, settings: Settings) -> None:
    """One uncached step, thrown away."""
    takes.warm_up(pipe, settings.clip)


def take_uncached(pipe: Any, settings: Settings, bar: StepBar) -> takes.Take:
    """The clip of the stock pipeline; with a layout, of its scene without a cache.

    Raises:
        RunFailed: if its frames are not finite.
    """
    with shots.alone(pipe, settings):
        return _take(pipe, settings, bar)


def _take(pipe: Any, settings: Settings, bar: StepBar) -> takes.Take:
    given = shots.overrides(settings)
    try:
        return takes.take(
            pipe, settings.clip, device=settings.device, watchers=(bar,), overrides=given
        )
    except takes.NotFiniteError as error:
        hint = "" if settings.dtype == "float32" else "; try --dtype float32"
        raise RunFailed(f"{error} in {settings.dtype}{hint}") from error


def take_accelerated(pipe: Any, settings: Settings, bar: StepBar) -> takes.Take:
    """The clip of the accelerated pipeline, with its report; the pipeline is left as it was."""
    with _accelerated(pipe, settings) as handle:
        take = _take(pipe, settings, bar)
        return dataclasses.replace(take, report=handle.report())


def check_accepted(pipe: Any, settings: Settings) -> None:
    """Refuse before the work what `accelerate` refuses.

    Raises:
        BadInput: if site, threshold or target do not suit this pipeline.
    """
    try:
        with _accelerated(pipe, settings):
            pass
    except (TypeError, ValueError) as error:
        raise BadInput(str(error)) from error


def _accelerated(pipe: Any, settings: Settings) -> Any:
    from dit_accel import accelerate

    scene: dict[str, Any] = {"layout": settings.layout, "scene": settings.scene}
    if settings.quality is not None or settings.speedup is not None:
        return accelerate(
            pipe,
            quality=settings.quality,
            speedup=settings.speedup,
            profile=settings.profile,
            guard=settings.guard,
            force=settings.force,
            static=settings.static,
            cache_memory=settings.cache_memory,
            **scene,
        )
    if settings.accel is not None:
        return accelerate(pipe, accel=_preset(settings), **scene)
    return accelerate(pipe, threshold=settings.threshold, site=settings.site, **scene)


def _preset(settings: Settings) -> Any:
    """UniCP less what is switched off; where nothing is pruned there is nothing to shift."""
    from dit_accel.pcas import PCAS
    from dit_accel.shift import DWS
    from dit_accel.unicp import UniCP
    from dit_accel.windows import DEFAULT_THRESHOLD, EDCW

    threshold = DEFAULT_THRESHOLD if settings.threshold is None else settings.threshold
    windows = EDCW(threshold=threshold)
    return UniCP(
        windows=windows if settings.forecast else dataclasses.replace(windows, order=0),
        pcas=PCAS() if settings.prune else None,
        shift=DWS() if settings.prune and settings.shift else None,
    )
