"""One run of a pipeline for the command: uncached or accelerated.

In: a loaded pipeline and resolved settings. Out: a `Generation`; the pipeline is restored.
Knows `accelerate` and the call of the pipeline; decides nothing. Ours.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from dit_accel.cli.common.errors import RunFailed, refused
from dit_accel.cli.run import shots
from dit_accel.core import generation

if TYPE_CHECKING:
    from dit_accel.caching.reference import ReferenceRun
    from dit_accel.cli.common.progress import StepBar
    from dit_accel.cli.run.settings import Settings
    from dit_accel.core.measure import StepListener
    from dit_accel.planning.text import Text


def run_uncached(
    pipe: Any, settings: Settings, bar: StepBar
) -> tuple[generation.Generation, ReferenceRun | None]:
    """Make the clip of the stock pipeline; with a layout, that of its scene without a cache.

    If runs are learnt from, the run is recorded for `run_accelerated`. The seconds of recording are
    not counted.
    """
    from dit_accel.caching.reference import recorded

    if not _learns(settings):
        with shots.without_cache(pipe, settings):
            return _generate(pipe, settings, (bar,)), None
    with recorded(pipe) as reference:
        result = _generate(pipe, settings, (bar, reference))
    return result.without(reference.seconds, reference.seconds_after), reference


def run_accelerated(
    pipe: Any, settings: Settings, bar: StepBar, text: Text | None, reference: ReferenceRun | None
) -> generation.Generation:
    """Make the clip of the accelerated pipeline, with its report.

    Args:
        text: the encoded prompt. If the run uses it, its seconds are added to the run's.
        reference: the record of the uncached run of the same clip.

    Raises:
        RunFailed: the frames are not finite.
    """
    from dit_accel import accelerate

    given = text.arguments(pipe) if text is not None else {}
    before = text.seconds if text is not None and given else 0.0
    with accelerate(pipe, settings.accel) as handle:
        if reference is not None:
            handle.learn_from(reference)
        result = _generate(pipe, settings, (bar,), given)
        return dataclasses.replace(
            result, report=handle.report(), whole_seconds=result.whole_seconds + before
        )


def learn(
    pipe: Any, settings: Settings, result: generation.Generation, uncached: generation.Generation
) -> None:
    """Store how good the plan was, for the guarantees of later runs."""
    from dit_accel.caching.learning import learning_of
    from dit_accel.core.video import to_uint8
    from dit_accel.metrics.scoring import score_clips

    learning = learning_of(pipe) if _learns(settings) else None
    if learning is None or result.report is None:
        return
    pair = (to_uint8(made.frames) for made in (uncached, result))  # as calibration scores clips
    scores = score_clips(*pair, data_range=255, metrics=("psnr_db",))
    psnr = scores["psnr_db"].value
    if psnr is not None:
        learning.add_report(result.report, psnr, settings.clip)


def _learns(settings: Settings) -> bool:
    """Whether later plans learn from this run."""
    from dit_accel.config import PlannedConfig

    return isinstance(settings.accel, PlannedConfig) and settings.accel.learns


def check_accepted(pipe: Any, settings: Settings) -> None:
    """Refuse settings that `accelerate` would refuse, before the work."""
    from dit_accel import accelerate

    with refused("", (TypeError, ValueError)), accelerate(pipe, settings.accel):
        pass


def _generate(
    pipe: Any,
    settings: Settings,
    listeners: tuple[StepListener, ...],
    more: dict[str, Any] | None = None,
) -> generation.Generation:
    given = shots.overrides(settings) | (more or {})
    try:
        return generation.generate(
            pipe, settings.clip, device=settings.device, listeners=listeners, overrides=given
        )
    except generation.NotFiniteError as error:
        hint = "" if settings.dtype == "float32" else "; try --dtype float32"
        raise RunFailed(f"{error} in {settings.dtype}{hint}") from error
