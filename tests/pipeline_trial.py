"""Tries a pipeline at the site `output`, and says what it found: what `dit-accel models` prints.

Goes in: a `Row`. Comes out: a `Tried`, once all that must hold was checked: neutral is bit-equal,
the first run is recorded or planned by the prior, the second one computes fewer forwards, and as
many as its report says,
and a removed handle leaves the stock pipeline. A pipeline that cannot be planned has to be refused
before its first forward, or is computed whole, and its report says why. It knows `accelerate`, and
no pipeline. Source: ours.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from calls import state_of
from every_pipeline import Row

from dit_accel import accelerate
from dit_accel.core.families import family_of
from dit_accel.core.report import Report
from dit_accel.models.pipelines import Tried


class Counter:
    """How often the transformers of a pipeline were called, below all that stands around them."""

    def __init__(self, pipe: Any) -> None:
        self.count = 0
        parts = [getattr(pipe, name, None) for name in ("transformer", "transformer_2")]
        self._hooks = [
            part.register_forward_pre_hook(self._add) for part in parts if part is not None
        ]

    def _add(self, *_: Any) -> None:
        self.count += 1

    def take(self) -> int:
        """The calls since the last time."""
        count, self.count = self.count, 0
        return count

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()


def trial(row: Row) -> Tried:
    """Try a pipeline; an AssertionError where something does not hold."""
    pipe = row.build()
    family = family_of(pipe)
    named = family.name if family.blocks else ""
    if row.broken:
        with pytest.raises(Exception, match=re.escape(row.broken)):
            row.run(pipe)
        return Tried(row.title, row.transformer, named, family.sites, None, broken=row.broken)
    stock = row.run(pipe)  # the first run of diffusers leaves marks of its own
    before = state_of(pipe)
    counter = Counter(pipe)
    try:
        assert stock.isfinite().all() and torch.equal(row.run(pipe), stock)
        full = counter.take()
        planned, refused = _planned(row, pipe, stock, full, counter)
        if not refused:
            _neutral(row, pipe, stock, full, counter)
    finally:
        counter.remove()
    assert torch.equal(row.run(pipe), stock) and state_of(pipe) == before
    return Tried(row.title, row.transformer, named, family.sites, planned, refused)


def _planned(
    row: Row, pipe: Any, stock: torch.Tensor, full: int, counter: Counter
) -> tuple[tuple[int, int] | None, str]:
    """Forwards of the second call with a plan, of all; or the reason why there is none."""
    with accelerate(pipe, speedup=2.0) as handle:
        try:
            first = row.run(pipe)
        except ValueError as error:
            assert counter.take() == 0, "it was refused after its first forward"
            return None, str(error)
        if counter.take() == full:
            assert torch.equal(first, stock)
        else:  # planned by the prior; or its first loop was recorded, the later ones planned
            notes = " ".join(handle.report().notes)
            assert "Planned from a prior" in notes or "denoising loops" in notes
        second, count, report = row.run(pipe), counter.take(), handle.report()
    if count == full:  # it has to say why
        assert torch.equal(second, stock)
        return None, _reason(report)
    assert second.isfinite().all() and not torch.equal(second, stock)
    computed = sum(len(site.computed) for site in report.sites)
    extrapolated = sum(len(site.extrapolated) for site in report.sites)
    assert computed == count < full, (computed, count, full)
    assert computed + extrapolated == full
    return (count, full), ""


def _reason(report: Report) -> str:
    notes = [note for note in report.notes if note.startswith("Every step was computed: ")]
    assert notes, f"nothing was planned, and no note says why: {report.notes}"
    return notes[0].removeprefix("Every step was computed: ")


def _neutral(row: Row, pipe: Any, stock: torch.Tensor, full: int, counter: Counter) -> None:
    """A plan that computes all, and a threshold of 0 at each site, give the stock clip."""
    for settings in (
        {"speedup": 1.0},
        *({"threshold": 0.0, "site": s} for s in family_of(pipe).sites),
    ):
        with accelerate(pipe, **settings):
            for _ in range(2 if "speedup" in settings else 1):
                assert torch.equal(row.run(pipe), stock), settings
                assert counter.take() == full
