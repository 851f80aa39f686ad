"""One run of a pipeline for the command line: its bar, its warm-up, and the cache at work."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from dit_accel.caching.windows import DEFAULT_THRESHOLD, EDCW
from dit_accel.cli.common.errors import BadInput, RunFailed
from dit_accel.cli.run import shots
from dit_accel.core import generation

if TYPE_CHECKING:
    from dit_accel.cli.common.progress import StepBar
    from dit_accel.cli.run.settings import Settings
    from dit_accel.config import AccelConfig
    from dit_accel.planning.text import Text


def warm_up(pipe: Any, settings: Settings) -> None:
    """One uncached step, thrown away."""
    generation.warm_up(pipe, settings.clip)


def take_uncached(pipe: Any, settings: Settings, bar: StepBar) -> generation.Generation:
    """The clip of the stock pipeline; with a layout, of its scene without a cache.

    Raises:
        RunFailed: if its frames are not finite.
    """
    with shots.alone(pipe, settings):
        return _take(pipe, settings, bar)


def _take(
    pipe: Any, settings: Settings, bar: StepBar, more: dict[str, Any] | None = None
) -> generation.Generation:
    given = shots.overrides(settings) | (more or {})
    try:
        return generation.generate(
            pipe, settings.clip, device=settings.device, listeners=(bar,), overrides=given
        )
    except generation.NotFiniteError as error:
        hint = "" if settings.dtype == "float32" else "; try --dtype float32"
        raise RunFailed(f"{error} in {settings.dtype}{hint}") from error


def take_accelerated(
    pipe: Any, settings: Settings, bar: StepBar, text: Text | None = None
) -> generation.Generation:
    """The clip of the accelerated pipeline, with its report; the pipeline is left as it was.

    Args:
        text: of the prompt, encoded already; where the run takes it over, its seconds are counted
            with the run's.
    """
    from dit_accel import accelerate

    given = text.arguments(pipe) if text is not None else {}
    before = text.seconds if text is not None and given else 0.0
    with accelerate(pipe, config_for(settings)) as handle:
        take = _take(pipe, settings, bar, given)
        return dataclasses.replace(
            take, report=handle.report(), whole_seconds=take.whole_seconds + before
        )


def check_accepted(pipe: Any, settings: Settings) -> None:
    """Refuse before the work what `accelerate` refuses.

    Raises:
        BadInput: if site, threshold or target do not suit this pipeline.
    """
    from dit_accel import accelerate

    try:
        with accelerate(pipe, config_for(settings)):
            pass
    except (TypeError, ValueError) as error:
        raise BadInput(str(error)) from error


def config_for(settings: Settings) -> AccelConfig:
    """What the settings ask of `accelerate`.

    Raises:
        ValueError: a value is out of range.
    """
    from dit_accel.config import QualityConfig, SpeedupConfig, ThresholdConfig, UniCPConfig

    scene: dict[str, Any] = {"layout": settings.layout, "scene": settings.scene}
    names = ("profile", "guard", "force", "static", "cache_memory")
    planned = {name: getattr(settings, name) for name in names} | scene
    if settings.quality is not None:
        return QualityConfig(settings.quality, **planned)
    if settings.speedup is not None:
        return SpeedupConfig(settings.speedup, **planned)
    threshold = DEFAULT_THRESHOLD if settings.threshold is None else settings.threshold
    if settings.accel is None:
        return ThresholdConfig(threshold, site=settings.site, **scene)
    return UniCPConfig(EDCW(threshold), **scene)
