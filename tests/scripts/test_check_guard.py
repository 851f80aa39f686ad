"""The guard on the trained miniature: faults are reported, and cost no more than fewer steps do.

The exception is a text that changes in a run of few steps (research/LOG.md): there the guard is
compared with a run without it only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import check_guard
import pytest
from check_guard import LATENTS, NAN, NONE, TEXT, WRONG, clip_of

from dit_accel.caching import controller
from dit_accel.models import miniature
from dit_accel.planning.profile import Profile

# One process makes the profiles, which take a while.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("check guard")]

STEPS = 20
PROMPT = "a small red square moving left on a plain gray background"
CLIP = clip_of(PROMPT, 77, STEPS)
REPORTED = {
    TEXT: "the text changed",
    LATENTS: "the latents jumped",
    NAN: "a cached value was not finite",
    WRONG: "was forced. It is of another pipeline: weights is",
}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return check_guard.load()


@pytest.fixture(scope="module")
def profile(pipe: Any) -> Any:
    return check_guard.calibrated(pipe, STEPS, batch=4)


@pytest.fixture(scope="module")
def wrong(pipe: Any) -> Any:
    return check_guard.calibrated(check_guard.other_model(pipe), STEPS, batch=4)


def test_without_a_fault_the_plan_is_followed_and_beats_fewer_steps(pipe, profile):
    row = check_guard.check(pipe, profile, profile, CLIP, NONE)
    assert row.computed == STEPS / 2.5
    assert row.guarded_db == row.unguarded_db > row.fewer_db
    assert row.notes == ()


@pytest.fixture(scope="module")
def rows(pipe: Any, profile: Any) -> Callable[[str], check_guard.Row]:
    """One row a fault, made when it is first asked for."""

    def made(fault: str) -> check_guard.Row:
        scored = () if fault == TEXT else ("guarded", "fewer")
        return check_guard.check(pipe, profile, profile, CLIP, fault, scored)

    return functools.cache(made)


@pytest.mark.parametrize("fault", [TEXT, LATENTS, NAN])
def test_a_fault_is_reported(rows, fault):
    row = rows(fault)
    assert any(note.startswith("Guard after step") for note in row.notes)
    assert any(REPORTED[fault] in note for note in row.notes)
    assert row.computed <= STEPS / 2.5 + 1, "a speed that was asked for is reached"


@pytest.mark.parametrize(("fault", "more"), [(LATENTS, 0), (NAN, 1)])
def test_a_fault_never_costs_more_than_fewer_steps(rows, fault, more):
    """The plan goes on: its step after a jump decides, and one step more restores a value."""
    row = rows(fault)
    assert row.guarded_db > row.fewer_db
    assert row.computed == STEPS / 2.5 + more


@pytest.fixture
def unbounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard computes as much as it does for a quality."""
    monkeypatch.setattr(controller, "MAX_ADDED_STEPS", None)


@pytest.mark.usefixtures("unbounded")
def test_after_another_text_little_of_the_plan_is_worth_keeping(pipe, profile):
    """Few long steps: the error from before the text changed is as large as that of fewer steps."""
    scored = ("guarded", "unguarded")
    row = check_guard.check(pipe, profile, profile, CLIP, TEXT, scored)
    assert row.computed > STEPS / 2.5 + 1
    assert row.guarded_db > row.unguarded_db + 3


def test_another_text_never_costs_more_than_fewer_steps_where_there_are_many(pipe):
    shipped = Profile.load(miniature.path() / "dit-accel-profile.safetensors")
    clip = clip_of(PROMPT, 77, 50)
    row = check_guard.check(pipe, shipped, shipped, clip, TEXT, ("guarded", "fewer"))
    assert row.guarded_db > row.fewer_db
    assert row.computed < 50 * 0.8, "steps of a small expected error are still extrapolated"


@pytest.mark.usefixtures("unbounded")
def test_a_profile_of_another_model_that_is_forced_is_never_worse_than_fewer_steps(
    pipe, profile, wrong
):
    row = check_guard.check(pipe, profile, wrong, CLIP, WRONG, ("guarded", "fewer"))
    assert any(REPORTED[WRONG] in note for note in row.notes)
    assert row.guarded_db > row.fewer_db + 3
    assert row.computed < STEPS
