"""Every technique over every odd run: neutral is identity, reports are true, removal is exact."""

import pytest
import torch
from odd_runs import RUNS

from dit_accel import EDCW, accelerate
from dit_accel.core.families import family_of

TECHNIQUES = {
    "plan": {"speedup": 2.0},
    "static plan": {"speedup": 2.0, "static": True},
    "packed plan": {"speedup": 2.0, "cache_memory": 1},
    "windows at model": {"config": EDCW(1e9, first=2)},
    "windows at block": {"config": EDCW(1e9, first=2), "site": "block"},
    "windows at attention": {"config": EDCW(1e9, first=2), "site": "attention"},
    "UniCP": {"accel": "unicp-paper", "threshold": 1e9},
}
COMPANIONS = {
    "wan-v2v": "a later begin",
    "ltx-condition": "a later begin",
    "cogvideox-v2v": "a later begin",
    "hunyuan-true-cfg": "several forwards a step",
    "wan-modular": "several forwards a step",
    "wan-two-experts": "two experts",
}
QUICK = {("wan-v2v", "windows at block"), ("wan-modular", "static plan")}


def case(name, technique):
    marks = [] if (name, technique) in QUICK else [pytest.mark.slow]
    if name in COMPANIONS:
        marks.append(pytest.mark.composes(technique, COMPANIONS[name]))
    return pytest.param(name, technique, marks=marks, id=f"{name}, {technique}")


CASES = [case(name, technique) for name in RUNS for technique in TECHNIQUES]


def skip_what_the_family_has_not(pipe, settings):
    family = family_of(pipe)
    if settings.get("site", "model") not in family.sites:
        pytest.skip(f"{family.name} has no site {settings['site']}")
    if "accel" in settings and family.name != "wan":
        pytest.skip(f"{family.name} has no pruned attention")


@pytest.mark.parametrize(("name", "technique"), CASES)
def test_what_ran_is_reported_and_nothing_is_left(name, technique):
    row, settings = RUNS[name], TECHNIQUES[technique]
    pipe, arguments = row.build()
    skip_what_the_family_has_not(pipe, settings)
    steps = row.steps * row.loops
    stock = row(pipe, arguments)
    neutral = {name: value for name, value in settings.items() if name == "site"}
    if "speedup" not in settings:
        with accelerate(pipe, threshold=0.0, **neutral) as handle:
            assert torch.equal(row(pipe, arguments), stock)
            assert handle.report().steps == handle.report().steps_computed == steps
    with accelerate(pipe, **settings) as handle:
        for _ in range(2):
            clip = row(pipe, arguments)
        report = handle.report()
        if technique == "packed plan":
            assert report.packed_bytes > 0
        again = row(pipe, arguments)
    assert torch.equal(again, clip) and torch.isfinite(clip).all()
    assert not torch.equal(clip, stock)
    assert report.steps == report.steps_run == steps
    assert row.loops * 2 <= report.steps_computed < 0.7 * steps
    assert report.branches == row.branches
    assert torch.equal(row(pipe, arguments), stock)
