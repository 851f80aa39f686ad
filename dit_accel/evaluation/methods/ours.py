"""Rows of dit_accel, of the stock pipeline, and of fewer steps, the simplest alternative.

In: a pipeline and a number. Out: the pipeline accelerated by `accelerate`; it is restored
afterwards.
Source: UniCP, arXiv 2502.04393; plans, docs/how-it-works.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dit_accel.attention.pcas import PCAS
from dit_accel.attention.trim_text import trim_text
from dit_accel.caching.learning import FixedLearning
from dit_accel.caching.windows import EDCW
from dit_accel.config import AccelConfig, QualityConfig, SpeedupConfig, ThresholdConfig, UniCPConfig
from dit_accel.evaluation.methods.row import (
    FEWER_STEPS,
    UNCACHED,
    Active,
    Apply,
    Method,
    MethodContext,
    MethodHandle,
    Number,
    fewer,
)
from dit_accel.handle import accelerate
from dit_accel.planning.profile import Profile


@contextmanager
def _uncached(pipe: Any, number: Number, context: MethodContext) -> Iterator[MethodHandle]:
    yield MethodHandle()


@contextmanager
def _fewer_steps(pipe: Any, number: Number, context: MethodContext) -> Iterator[MethodHandle]:
    steps = fewer(number, context, FEWER_STEPS)
    yield MethodHandle(overrides={"num_inference_steps": steps})


@contextmanager
def _ours(
    pipe: Any, config: AccelConfig, calibration_runs: float | None = 0.0
) -> Iterator[MethodHandle]:
    with accelerate(pipe, config) as handle:
        yield MethodHandle(report=handle.report, calibration_runs=calibration_runs)


def _edcw(site: str, order: int = 0) -> Apply:
    return lambda pipe, number, _: _ours(
        pipe, ThresholdConfig(float(number or 0.0), order=order, site=site)
    )


def _unicp(**changes: Any) -> Apply:
    """The preset with changes. With `always`, pruning is used and measured also if it is slower."""
    parts = {"pcas": PCAS(always=True), **changes}
    return lambda pipe, number, _: _ours(pipe, UniCPConfig(EDCW(float(number or 0.0)), **parts))


def _pruned(pipe: Any, number: Number, _: MethodContext) -> Active:
    return _alone(pipe, PCAS(keep_mass=float(number or 1.0), cap=1.0, always=True))


def _sliced(pipe: Any, number: Number, _: MethodContext) -> Active:
    rank = int(number or 1)
    return _alone(pipe, PCAS(mode="slice", rank=rank, value_rank=rank, always=True))


def _alone(pipe: Any, pcas: PCAS) -> Active:
    return _ours(pipe, UniCPConfig(EDCW(threshold=0.0), pcas, shift=None))


@contextmanager
def _trimmed(pipe: Any, number: Number, context: MethodContext) -> Iterator[MethodHandle]:
    with trim_text(pipe):
        yield MethodHandle()


def _planned(way: type[QualityConfig | SpeedupConfig]) -> Apply:
    def apply(pipe: Any, number: Number, context: MethodContext) -> Active:
        profile = context.profile
        known = FixedLearning(pipe, context.learned) if profile is None else None
        config = way(
            float(number or 0.0), profile=profile, static=context.static, learn=False,
            cache_memory=context.cache_memory, records=False, known=known,
        )  # fmt: skip
        return _ours(pipe, config, 0.0 if profile is None else _runs_behind(profile))

    return apply


def _runs_behind(path: Path) -> float | None:
    """The cost of a profile's calibration, in uncached runs. An older profile does not state it.
    Then each clip counts once uncached and `PASSES` times with every candidate plan, and each probe
    as a whole run."""
    profile = Profile.load(path)
    spent = profile.metadata.get("cost_runs")
    if isinstance(spent, (int, float)):
        return float(spent)
    made = (profile.metadata.get(name) for name in ("clips", "probes", "probed"))
    known = [value for value in made if isinstance(value, int)]
    if len(known) != 3:
        return None
    clips, probes, probed = known
    planned = sum(len(c.computed) for c in profile.candidates) / profile.sampler.num_steps
    return float(clips * (1 + PASSES * planned) + probes * probed)


PASSES = 2  # passes of calibration over the candidate plans, unless one batch has all clips
THRESHOLD = "threshold δ"
MILD_TO_STRONG = (0.05, 0.1, 0.2, 0.4)


def _windows(name: str, summary: str, apply: Apply, sweep: tuple[float, ...]) -> Method:
    """A row of cache windows. All but `edcw` are for research."""
    return Method(name, f"error-aware dynamic cache windows (EDCW) {summary}", apply, THRESHOLD,
                  0.1, sweep, research=name != "edcw")  # fmt: skip


def _paper(name: str, summary: str, **changes: Any) -> Method:
    """A row of UniCP with changes to some of its parts."""
    return Method(f"unicp-paper{name}", summary, _unicp(**changes), THRESHOLD, 0.1, MILD_TO_STRONG,
                  research=name == "/no-tail")  # fmt: skip


OURS = (
    Method(UNCACHED, "the stock pipeline, the reference of all scores", _uncached),
    _windows("edcw", "at the site model", _edcw("model"), MILD_TO_STRONG),
    _windows("edcw/block", "at the site block", _edcw("block"), MILD_TO_STRONG[1:]),
    _windows("edcw/attention", "at the site attention", _edcw("attention"), MILD_TO_STRONG[1:]),
    _windows("edcw-line", "at the site model, extrapolated by the line through the last two "
             "cached values", _edcw("model", 1), (0.02, *MILD_TO_STRONG)),
    _windows("edcw-parabola", "at the site model, extrapolated by the parabola through the last "
             "three cached values", _edcw("model", 2), (0.02, *MILD_TO_STRONG)),
    _paper("", "UniCP at attentions: cache windows, pruned attention, and both blended (DWS)"),
    _paper("/no-prune", "the same, without pruning: cache windows only", pcas=None, shift=None),
    _paper("/no-shift", "the same, without blending", shift=None),
    _paper("/no-tail", "the same, without the estimate of pruned blocks",
           pcas=PCAS(tail=False, always=True)),
    Method("pcas/prune", "attention to the key blocks with the most mass, after dense first steps",
           _pruned, "attention mass", 0.9, (0.5, 0.7, 0.9), low=0.01, high=1.0),
    Method("pcas/slice", "low-rank queries, keys and values, after dense first steps",
           _sliced, "rank", 64, (16, 24, 64, 96), low=1, high=1024, whole=True, research=True),
    Method("trim-text", "HunyuanVideo: attention without padded text tokens and their mask; exact",
           _trimmed),
    Method("quality", "the fastest plan that guarantees the PSNR for 95 % of clips, with its guard",
           _planned(QualityConfig), "dB", 32, (28, 32, 36, 45), low=1.0, high=100.0,
           profiled=True),
    Method("speedup",
           "the plan with the highest predicted PSNR at this ratio of steps, with its guard",
           _planned(SpeedupConfig), "steps over computed steps", 2.5,
           (1.5, 2.0, 2.5, 3.0, 4.0, 5.0), low=1.0, high=100.0, profiled=True),
    Method(FEWER_STEPS, "the stock schedule and solver at fewer steps", _fewer_steps, "steps", 25,
           (40, 30, 25, 20, 15, 10), low=1, high=1000, whole=True, fewer=True, control=True),
)  # fmt: skip
