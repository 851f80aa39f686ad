"""Rows of the caches in diffusers that the installed version has.

In: a pipeline and a number. Out: the pipeline after `transformer.enable_cache(config)`, with
diffusers' defaults for all but the number. `disable_cache()` restores it.
Knows: Wan runs guidance as separate forwards, which two of the caches do not expect. Pyramid
Attention Broadcast counts branches as steps, and FasterCache splits a batch that does not exist
(0.42).
Source: diffusers, `hooks/`.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dit_accel.core.document import Field
from dit_accel.core.families import family_of, transformers_of
from dit_accel.evaluation.methods.row import Apply, Method, MethodContext, MethodHandle, Number

Configure = Callable[[Any, Any, Number, MethodContext], Any]


def _cache(config_class: str, configure: Configure, separate: str = "", runs: float = 0.0) -> Apply:
    """A context that enables a cache of diffusers on every transformer of a pipeline.

    Args:
        config_class: name of the configuration in diffusers.
        configure: (class, pipe, number, context) -> configuration.
        separate: the fault that the cache has if guidance runs as separate forwards.
        runs: number of uncached runs that its configuration is measured on.
    """

    @contextmanager
    def apply(pipe: Any, number: Number, context: MethodContext) -> Iterator[MethodHandle]:
        import diffusers

        kind, branches = getattr(diffusers, config_class), family_of(pipe).branches
        faulty = separate and branches == "separate" and context.clip.guidance > 1
        with _enabled(pipe, lambda: configure(kind, pipe, number, context)):
            yield MethodHandle(remarks=(separate,) if faulty else (), calibration_runs=runs)

    return apply


@contextmanager
def _enabled(pipe: Any, config: Callable[[], Any]) -> Iterator[None]:
    """Every transformer of the pipeline with a cache of its own configuration."""
    with contextlib.ExitStack() as stack:
        for module in transformers_of(pipe, family_of(pipe)).values():
            module.enable_cache(config())
            stack.callback(module.disable_cache)
        yield


def _attention_broadcast(kind: Any, pipe: Any, number: Any, context: MethodContext) -> Any:
    return kind(
        spatial_attention_block_skip_range=number,
        cross_attention_block_skip_range=2 * number,
        current_timestep_callback=lambda: pipe.current_timestep,
    )


def _faster_cache(kind: Any, pipe: Any, number: Any, context: MethodContext) -> Any:
    return kind(
        spatial_attention_block_skip_range=number,
        current_timestep_callback=lambda: pipe.current_timestep,
    )


def _by(name: str, **fixed: Any) -> Configure:
    """Set the number by its name in the configuration, together with fixed settings."""
    return lambda kind, pipe, number, context: kind(**{name: number}, **fixed)


def _mag_cache(kind: Any, pipe: Any, number: Any, context: MethodContext) -> Any:
    steps = context.clip.steps

    def measure(run: Callable[[], None]) -> list[float]:
        """Read the ratios of each branch from stdout, because diffusers only prints them."""
        printed = io.StringIO()
        calibrating = _enabled(pipe, lambda: kind(calibrate=True, num_inference_steps=steps))
        with calibrating, contextlib.redirect_stdout(printed):
            run()
        found = re.findall(r"^\[([^\]\[]*\d[^\]\[]*)\]$", printed.getvalue(), re.MULTILINE)
        if not found:
            raise RuntimeError("MagCache's calibration printed no ratios")
        branches = [[float(ratio) for ratio in text.split(",")] for text in found]
        return [sum(step) / len(step) for step in zip(*branches, strict=True)]

    name = f"mag-cache-{steps}"
    found = Field(context.calibrate(name, measure), f"calibration/{name}.json")
    ratios = [entry.number() for entry in found.entries(1)]
    return kind(threshold=number, num_inference_steps=steps, mag_ratios=ratios)


def _row(
    name: str,
    summary: str,
    config_class: str,
    configure: Configure,
    number: str,
    sweep: tuple[float | int, ...],
    *,
    low: float = 0.0,
    separate: str = "",
) -> Method:
    return Method(
        name=f"diffusers/{name}",
        summary=summary,
        apply=_cache(config_class, configure, separate, 1.0 if configure is _mag_cache else 0.0),
        number=number,
        default=sweep[0],
        sweep=sweep,
        low=low,
        whole=isinstance(sweep[0], int),
        diffusers_class=config_class,
    )


DIFFUSERS = (
    _row("first-block", "First Block Cache", "FirstBlockCacheConfig", _by("threshold"),
         "threshold", (0.05, 0.08, 0.12, 0.2)),
    _row("mag-cache", "MagCache, calibrated on one uncached clip", "MagCacheConfig", _mag_cache,
         "threshold", (0.06, 0.12, 0.24)),
    _row("sea-cache", "SeaCache", "SeaCacheConfig", _by("threshold"), "threshold",
         (0.1, 0.25, 0.5)),
    _row("pab", "Pyramid Attention Broadcast", "PyramidAttentionBroadcastConfig",
         _attention_broadcast, "skip range", (2, 4), low=1,
         separate="it counts calls as steps, and gives one branch the cached values of the other"),
    _row("faster-cache", "FasterCache", "FasterCacheConfig", _faster_cache, "skip range", (2,),
         low=1),
    _row("taylor-seer", "TaylorSeer, default modules", "TaylorSeerCacheConfig",
         _by("cache_interval"), "interval", (3, 5), low=1),
    _row("taylor-seer-attention", "TaylorSeer on all attentions", "TaylorSeerCacheConfig",
         _by("cache_interval", cache_identifiers=[r"blocks\.\d+\.attn\d"]), "interval", (3, 5),
         low=1),
    _row("taylor-seer-lite", "TaylorSeer, lite mode", "TaylorSeerCacheConfig",
         _by("cache_interval", use_lite_mode=True), "interval", (2, 3, 5), low=1),
)  # fmt: skip
