"""Steering and its guard, on floats alone: what is decided, step by step."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dit_accel.plans import Forecast, Plan
from dit_accel.steering import BAND, HARMLESS, LEAST, Band, Steering

TOTAL = 24
USUAL = 1.0  # the surprise that is expected everywhere
FAULT = 2 * USUAL * math.exp(LEAST)  # one that is outside of every band


def plan_of(*computed: int, total: int = TOTAL) -> Plan:
    """Every other step is served by the computed step before it."""
    served = [step for step in range(total) if step not in computed]
    return Plan(total, {s: Forecast(({max(c for c in computed if c < s): 1.0},)) for s in served})


PLAN = plan_of(0, 1, 2, 5, 10, 15, 20)
CAREFUL = plan_of(0, 1, 2, 5, 8, 10, 12, 15, 17, 20, 22)
BANDS = {step: Band(math.log(USUAL), 0.2) for step in (2, 5, 10, 15, 20)}


def steering(**changes: Any) -> Steering:
    given = {"plan": PLAN, "times": [float(TOTAL - s) for s in range(TOTAL)], "bands": BANDS}
    return Steering(**given | changes)


def drive(steering: Steering, surprises: dict[int, float] | None = None, until: int = TOTAL):
    """The steps that a run computes; surprises are the usual where no other is given."""
    done: list[int] = []
    for step in range(until):
        if steering.forecast_of(step) is None:
            done.append(step)
            usual = None if len(done) < 3 else USUAL
            steering.learn(step, (surprises or {}).get(step, usual))
    return tuple(done)


def test_what_is_expected_changes_nothing():
    course = steering(careful=CAREFUL, turn=5, alarm=1.0)
    assert drive(course) == PLAN.computed
    assert (course.tripped, course.turned, course.notes()) == (None, False, ())
    assert course.surprises == dict.fromkeys((2, 5, 10, 15, 20), USUAL)


def test_a_score_is_in_standard_deviations_of_the_logarithm():
    band = Band(math.log(USUAL), 0.2)
    assert band.score(USUAL) == pytest.approx(0.0)
    assert band.score(USUAL * math.exp(0.4)) == pytest.approx(2.0)
    assert band.score(math.nan) == band.score(math.inf) == math.inf


def test_the_band_holds_six_deviations_and_always_a_ratio_to_the_expected():
    spread = LEAST  # so wide that six deviations are more than the ratio
    wide, narrow = Band(math.log(USUAL), spread), Band(math.log(USUAL), 0.01)
    assert wide.holds(USUAL * math.exp(spread * BAND - 0.01))
    assert not wide.holds(USUAL * math.exp(spread * BAND + 0.01))
    assert narrow.holds(USUAL * math.exp(LEAST - 0.01))
    assert not narrow.holds(USUAL * math.exp(LEAST + 0.01))
    assert narrow.holds(0.0)  # nothing at all is no fault
    assert not narrow.holds(math.nan)


def test_a_surprise_that_is_small_by_itself_is_harmless_whatever_was_expected():
    band = Band(math.log(HARMLESS / 1000), 0.01)
    assert band.holds(HARMLESS)
    assert not band.holds(HARMLESS * 1.01)


def test_a_run_turns_careful_when_its_mean_score_passes_the_alarm():
    """Two surprises of e^0.5 times the expected: each 2.5 deviations, so is their mean."""
    high = USUAL * math.exp(0.5)
    course = steering(careful=CAREFUL, turn=5, alarm=2.4)
    assert drive(course, {2: high, 5: high}) == CAREFUL.computed
    assert course.score == pytest.approx(2.5)
    (note,) = course.notes()
    assert note == (
        "Turned careful after step 5: surprises were 2.5 standard deviations above the profile's."
    )
    calm = steering(careful=CAREFUL, turn=5, alarm=2.6)
    assert drive(calm, {2: high, 5: high}) == PLAN.computed


def test_surprises_after_the_turn_do_not_count():
    course = steering(careful=CAREFUL, turn=5, alarm=0.5)
    assert drive(course, {10: 2.0, 15: 2.0, 20: 2.0}) == PLAN.computed


def test_what_either_plan_reads_is_kept_up_to_the_turn():
    plan = Plan(8, {3: Forecast(({2: 1.0},)), 6: Forecast(({5: 1.0},))})
    careful = Plan(8, {3: Forecast(({2: 1.0},)), 7: Forecast(({0: 1.0, 1: 1.0},))})
    course = steering(plan=plan, careful=careful, turn=4, bands={})
    assert course.reads(2) == (0, 1, 2)
    assert course.reads(4) == (0, 1)
    assert course.reads(5) == (5,)


def test_the_guard_trips_on_a_surprise_outside_the_band_and_says_so():
    course = steering()
    done = drive(course, {5: FAULT})
    assert course.tripped is not None
    assert course.tripped[0] == 5
    assert done[:4] == PLAN.computed[:4]
    assert {6, 7} <= set(done), "the next steps are computed at once"
    (note,) = course.notes()
    assert note == (
        f"Guard after step 5: the surprise was {FAULT:.1f} times the expected; "
        "went on by error-aware windows."
    )


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_guard_trips_on_what_is_not_finite_even_where_no_band_is_known(value):
    course = steering(bands={})
    drive(course, {5: value})
    assert course.tripped == (5, "a value was not finite")


def test_windows_after_a_trip_shrink_on_a_spike_and_grow_in_calm():
    """Calm is below the expected surprise. Steps 3 and 4 are computed; from 5 on a window of one
    more step each, up to four: 6 served, then 8 and 9, then 11, 12 and 13. The spike at step 14
    closes it: 15 is computed, calm again, and the windows grow anew."""
    course = steering()
    course.learn(0, None)
    course.learn(1, None)
    course.learn(2, 0.1)
    course.trip(2, "the latents jumped")
    calm, spike = 0.01, 5.0
    done = []
    for step in range(3, TOTAL):
        if course.forecast_of(step) is None:
            done.append(step)
            course.learn(step, {3: 9.0, 4: 9.0, 14: spike}.get(step, calm))
    assert done == [3, 4, 5, 7, 10, 14, 15, 17, 20, 23]


def test_windows_are_served_by_lines_through_what_was_computed_after_the_fault():
    course = steering(mix=(1.0, -3.0))
    for step in range(3):
        course.learn(step, None)
    course.trip(2, "the text changed")
    for step, surprise in ((3, 9.0), (4, 9.0), (5, 0.01)):  # lines from before the fault miss
        assert course.forecast_of(step) is None
        course.learn(step, surprise)
    assert course.reads(5) == (4, 5)
    served = course.forecast_of(6)
    assert served == Forecast(({5: 2.0, 4: -1.0}, {5: 2.0, 4: -1.0}))


def test_after_a_trip_the_last_step_is_computed():
    course = steering()
    assert drive(course, {5: FAULT})[-1] == TOTAL - 1


def test_the_first_fault_is_the_one_that_is_told():
    course = steering()
    course.trip(3, "the text changed")
    course.trip(4, "the latents jumped")
    assert course.tripped == (3, "the text changed")


def test_without_the_guard_the_plan_is_followed_whatever_happens():
    course = steering(guard=False)
    assert drive(course, {5: math.nan, 10: 9.0}) == PLAN.computed
    course.trip(11, "the latents jumped")
    assert (course.tripped, course.notes()) == (None, ())


def test_only_what_can_change_the_course_is_measured():
    assert steering().measures
    assert steering(guard=False, careful=CAREFUL).measures
    assert not steering(guard=False).measures


def test_a_new_run_forgets_the_last():
    course = steering(careful=CAREFUL, turn=5, alarm=1.0)
    high = USUAL * math.exp(0.5)
    drive(course, {2: high, 5: high, 10: FAULT})
    assert course.turned and course.tripped
    course.begin(TOTAL)
    assert (course.turned, course.tripped, course.notes()) == (False, None, ())
    assert drive(course) == PLAN.computed
    assert course.score == pytest.approx(0.0)


def test_a_run_of_other_steps_is_refused():
    with pytest.raises(ValueError, match="the plan is for 24 steps; this run has 20"):
        steering().begin(20)
