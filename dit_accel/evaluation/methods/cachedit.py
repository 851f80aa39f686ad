"""Rows of cache-dit (extra `peers`), called as its README does.

In: a pipeline and a threshold. Out: the pipeline with cache-dit enabled; it is restored afterwards.
Knows: cache-dit 1.5.3 replaces `__call__` of the pipeline's class, and cannot be removed from one
of two pipelines. So its rows need a process of their own. DBCache decides by the first block
(F1B0). With its default of eight blocks, a small model would save nothing.
Source: cache-dit, https://github.com/vipshop/cache-dit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dit_accel.evaluation.methods.row import Apply, Method, MethodContext, MethodHandle, Number


def _cache_dit(config: str, calibrator: str = "", **settings: Any) -> Apply:
    """The function that installs a row. `settings` are those of the calibrator, a class of
    cache-dit."""

    @contextmanager
    def apply(pipe: Any, number: Number, context: MethodContext) -> Iterator[MethodHandle]:
        import cache_dit

        _check_version(cache_dit.__version__, calibrator)
        options = {} if not calibrator else {
            "calibrator_config": getattr(cache_dit, calibrator)(**settings)
        }  # fmt: skip
        cache = getattr(cache_dit, config)(
            Fn_compute_blocks=1,
            Bn_compute_blocks=0,
            residual_diff_threshold=float(number or 0.0),
            enable_separate_cfg=context.clip.guidance > 1,
        )
        cache_dit.enable_cache(pipe, cache_config=cache, **options)
        try:
            yield MethodHandle()
        finally:
            cache_dit.disable_cache(pipe)

    return apply


def _check_version(found: str, calibrator: str) -> None:
    """Refuse versions in which DMD reused the last value on a CPU, and counted too many steps."""
    number = tuple(int(part) for part in re.findall(r"\d+", found)[:3])
    if calibrator in ("DMDCalibratorConfig", "FoCaCalibratorConfig") and number < (1, 5, 3):
        raise ValueError(f"cache-dit is {found}; accepted for {calibrator}: 1.5.3 and later")


def _row(name: str, summary: str, apply: Apply, sweep: tuple[float, ...]) -> Method:
    return Method(
        name=f"cache-dit/{name}",
        summary=summary,
        apply=apply,
        number="threshold",
        default=0.12,
        sweep=sweep,
        package=("cache-dit", "peers"),
        own_process=True,
    )


CACHE_DIT = (
    _row("dbcache", "DBCache F1B0", _cache_dit("DBCacheConfig"), (0.05, 0.08, 0.12, 0.24)),
    _row("dbcache-taylor", "DBCache F1B0 with TaylorSeer of order 1",
         _cache_dit("DBCacheConfig", "TaylorSeerCalibratorConfig", taylorseer_order=1),
         (0.08, 0.12, 0.24)),
    _row("dbcache-dmd", "DBCache F1B0 with dynamic mode decomposition, from 1.5.3 on",
         _cache_dit("DBCacheConfig", "DMDCalibratorConfig"), (0.08, 0.12, 0.24)),
    _row("dbcache-foca", "DBCache F1B0 with FoCa, from 1.5.3 on",
         _cache_dit("DBCacheConfig", "FoCaCalibratorConfig"), (0.08, 0.12, 0.24)),
    _row("dbprune", "DBPrune F1B0", _cache_dit("DBPruneConfig"), (0.08, 0.12, 0.24)),
)  # fmt: skip
