"""Runs as they are: late beginnings, several loops and other forwards, on every family."""

import pytest
import torch
from odd_runs import RUNS

from dit_accel import accelerate

REUSED = 0.25  # relative error that half of the steps may cost on random weights

quick = pytest.mark.parametrize("name", ["wan-v2v", "hunyuan-true-cfg"])
every = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) for name in RUNS if name != "ltx-long"]
)


def counted(pipe):
    """The forwards of a pipeline's transformers, one entry each."""
    calls = []
    for name in ("transformer", "transformer_2"):
        part = getattr(pipe, name, None)
        if part is not None:
            part.register_forward_hook(lambda module, *_: calls.append(module))
    return calls


def check_planned(name):
    row = RUNS[name]
    pipe, arguments = row.build()
    calls = counted(pipe)
    stock = row(pipe, arguments)
    assert len(calls) == row.steps * row.loops * len(row.branches)
    with accelerate(pipe, speedup=2) as handle:
        assert torch.equal(row(pipe, arguments), stock)
        first = handle.report()
        assert any("the next ones are planned from it" in note for note in first.notes)
        for _ in range(2):
            calls.clear()
            clip = row(pipe, arguments)
            report = handle.report()
            assert 0 < float((clip - stock).norm() / stock.norm()) < REUSED
            assert not any("No profile was found" in note for note in report.notes)
            half = -(-row.steps // 2) * row.loops
            assert len(calls) == half * len(row.branches)
            assert (report.steps, report.steps_computed) == (row.steps * row.loops, half)
            assert report.branches == row.branches
    assert (first.steps, first.steps_computed) == (row.steps * row.loops,) * 2
    assert torch.equal(row(pipe, arguments), stock)


@quick
def test_the_second_call_is_planned_and_reports_what_ran(name):
    check_planned(name)


@every
def test_the_second_call_of_every_family_is_planned_and_reports_what_ran(name):
    check_planned(name)
