"""One run of a pipeline for the command: uncached or accelerated.

In: a loaded pipeline and resolved settings. Out: a `Generation`; the pipeline is left as it was.
Knows `accelerate` and the call of the pipeline; decides nothing. Ours.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any

from dit_accel.cli.common.errors import RunFailed, refused
from dit_accel.cli.run import shots
from dit_accel.core import generation

if TYPE_CHECKING:
    from dit_accel.cli.common.progress import StepBar
    from dit_accel.cli.run.settings import Settings
    from dit_accel.planning.text import Text


def run_uncached(pipe: Any, settings: Settings, bar: StepBar) -> generation.Generation:
    """The clip of the stock pipeline; with a layout, of its scene without a cache."""
    with shots.without_cache(pipe, settings):
        return _generate(pipe, settings, bar)


def run_accelerated(
    pipe: Any, settings: Settings, bar: StepBar, text: Text | None = None
) -> generation.Generation:
    """The clip of the accelerated pipeline, with its report.

    Args:
        text: the encoded prompt. Where the run uses it, its seconds are counted with the run's.

    Raises:
        RunFailed: its frames are not finite.
    """
    from dit_accel import accelerate

    given = text.arguments(pipe) if text is not None else {}
    before = text.seconds if text is not None and given else 0.0
    with accelerate(pipe, settings.accel) as handle:
        result = _generate(pipe, settings, bar, given)
        return dataclasses.replace(
            result, report=handle.report(), whole_seconds=result.whole_seconds + before
        )


def learn(
    pipe: Any, settings: Settings, result: generation.Generation, uncached: generation.Generation
) -> None:
    """Write down how good the plan was, for the guarantees of later runs."""
    from dit_accel.caching.learning import learning_of
    from dit_accel.config import PlannedConfig
    from dit_accel.metrics.scoring import score_clips

    accel = settings.accel
    planned = isinstance(accel, PlannedConfig) and accel.learn and accel.layout is None
    learning = learning_of(pipe) if planned and result.report is not None else None
    if learning is None or result.report is None:
        return
    scores = score_clips(uncached.frames, result.frames, data_range=1.0, metrics=("psnr_db",))
    clip = hashlib.sha256(json.dumps(settings.to_dict(), sort_keys=True).encode())
    psnr = scores["psnr_db"].value
    if psnr is not None:
        learning.add_report(result.report, psnr, clip.hexdigest()[:16])


def check_accepted(pipe: Any, settings: Settings) -> None:
    """Refuse before the work what `accelerate` refuses."""
    from dit_accel import accelerate

    with refused("", (TypeError, ValueError)), accelerate(pipe, settings.accel):
        pass


def _generate(
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
