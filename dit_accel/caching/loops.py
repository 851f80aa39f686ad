"""Joins the reports of a call's denoising loops into one report.

Goes in: the report of each run of a pipeline's call. Comes out: one report of the call. Some
pipelines make a long clip in several parts, each with a loop of its own. The steps are numbered
through all loops. It knows reports, and no engine. Ours; there is no source.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any

from dit_accel.core.interceptor import Interceptor
from dit_accel.core.report import Report, SceneReport, SiteReport
from dit_accel.core.session import Session

_STEPS = ("computed", "cached", "extrapolated", "pruned", "blended")
_BY_STEP = ("drift", "attention_share")


class CallLoops(Interceptor):
    """Collects the reports of a call's earlier runs.

    It is the first interceptor: a run's report has to be made before the others begin the next run.

    Args:
        session: of the pipeline.
        report: makes the report of the session's current run.
    """

    def __init__(self, session: Session, report: Callable[[], Report]) -> None:
        self.session, self._report = session, report
        self._earlier: list[Report] = []
        self._call: int | None = None

    def run_follows(self) -> None:
        """Add the last run's report, if the next run belongs to the same call."""
        session, call = self.session, self.session.calls
        if call != self._call:
            self._earlier = []
        elif session.steps_ran == session.num_steps:  # the last run was not aborted
            self._earlier.append(self._report())
        self._call = call

    def report(self) -> Report:
        """The report of the whole call, as far as it has run."""
        return joined([*self._earlier, self._report()])


def joined(reports: Sequence[Report]) -> Report:
    """Join the reports of the loops of one call, which are in order, into one."""
    if len(reports) == 1:
        return reports[0]
    last = reports[-1]
    first_steps = [0, *accumulate(one.steps for one in reports)]
    notes = dict.fromkeys(note for one in reports for note in one.notes)
    expected = [one.prediction for one in reports]
    peaks = [one.peak_memory_bytes for one in reports if one.peak_memory_bytes is not None]
    return dataclasses.replace(
        last,
        steps=first_steps[-1],
        branches=tuple(dict.fromkeys(branch for one in reports for branch in one.branches)),
        sites=_joined_sites(reports, first_steps),
        flops_full=_total(one.flops_full for one in reports),
        flops_spent=_total(one.flops_spent for one in reports),
        seconds=sum(one.seconds for one in reports),
        peak_memory_bytes=max(peaks, default=None),
        cached_bytes=max(one.cached_bytes for one in reports),
        packed_bytes=max(one.packed_bytes for one in reports),
        offloaded_bytes=max(one.offloaded_bytes for one in reports),
        packed_bits=min((one.packed_bits for one in reports if one.packed_bits), default=None),
        host_syncs=sum(one.host_syncs for one in reports),
        notes=(f"The call ran {len(reports)} denoising loops.", *notes),
        prediction=_worst(expected),
        planned=tuple(
            step + first
            for one, first in zip(reports, first_steps, strict=False)
            for step in one.planned
        ),
        scene=_joined_scene([one.scene for one in reports if one.scene is not None]),
    )


def _total(counts: Iterable[int | None]) -> int | None:
    """The sum; None if one of the counts is not known."""
    known = list(counts)
    return None if None in known else sum(count or 0 for count in known)


def _joined_sites(reports: Sequence[Report], first_steps: Sequence[int]) -> tuple[SiteReport, ...]:
    """The report of every site, with the steps of all loops."""
    found: dict[tuple[str, str, str], SiteReport] = {}
    for report, first in zip(reports, first_steps, strict=False):
        for site in report.sites:
            key = site.transformer, site.branch, site.name
            moved = _moved(site, first)
            found[key] = _added(found[key], moved) if key in found else moved
    return tuple(found.values())


def _moved(site: SiteReport, first: int) -> SiteReport:
    """A site's report with `first` added to all of its step numbers."""
    moved: dict[str, Any] = {
        name: tuple(step + first for step in getattr(site, name)) for name in _STEPS
    }
    for name in _BY_STEP:
        moved[name] = {step + first: value for step, value in getattr(site, name).items()}
    return dataclasses.replace(site, **moved)


def _added(one: SiteReport, other: SiteReport) -> SiteReport:
    added: dict[str, Any] = {name: getattr(one, name) + getattr(other, name) for name in _STEPS}
    added |= {name: getattr(one, name) | getattr(other, name) for name in _BY_STEP}
    return dataclasses.replace(one, **added)


def _worst(
    expected: Sequence[dict[str, Any] | None],
) -> dict[str, Any] | None:
    """The lowest of the loops' predictions; None if a loop has none. If the PSNR of a prediction is
    None, that loop is exact."""
    known = [one for one in expected if one is not None]
    if len(known) < len(expected):
        return None
    return min(known, key=lambda one: one["psnr_db"] if one["psnr_db"] is not None else 1e9)


def _joined_scene(scenes: Sequence[SceneReport]) -> SceneReport | None:
    if not scenes:
        return None
    return dataclasses.replace(
        scenes[-1],
        split_calls=sum(one.split_calls for one in scenes),
        extra_flops=sum(one.extra_flops for one in scenes),
        notes=tuple(dict.fromkeys(note for one in scenes for note in one.notes)),
    )
