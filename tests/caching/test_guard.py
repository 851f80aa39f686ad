"""The guarded policy, on floats alone: what is decided, step by step."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dit_accel.caching.guard import LONG_RUN_STEPS, MAX_EXPECTED_ERROR, GuardedPolicy
from dit_accel.core.interceptor import RunInfo
from dit_accel.planning.choice import MAX_BAND_RATIO, MAX_BAND_SCORE, TOLERATED_ERROR, ErrorBand
from dit_accel.planning.plan import Extrapolation, Plan, SecondExpert

TOTAL = 24
USUAL = 1.0  # the error that is expected everywhere
LINE = (
    MAX_EXPECTED_ERROR / TOTAL
)  # what a line may miss at a step of mean length, without a profile
FAULT = 2 * USUAL * MAX_BAND_RATIO  # one that is outside of every band


def plan_of(*computed: int, num_steps: int = TOTAL) -> Plan:
    """Every other step is the computed step before it again."""
    rest = [step for step in range(num_steps) if step not in computed]
    return Plan(
        num_steps, {s: Extrapolation(({max(c for c in computed if c < s): 1.0},)) for s in rest}
    )


PLAN = plan_of(0, 1, 2, 5, 10, 15, 20)
BANDS = {step: ErrorBand(math.log(USUAL), 0.2) for step in (2, 5, 10, 15, 20)}


def guarded(**changes: Any) -> GuardedPolicy:
    given = {"plan": PLAN, "timesteps": [float(TOTAL - s) for s in range(TOTAL)], "bands": BANDS}
    return GuardedPolicy(**given | changes)


def drive(
    guarded: GuardedPolicy, extrapolation_errors: dict[int, float] | None = None, until: int = TOTAL
):
    """The steps that a run computes; errors are the usual where no other is given."""
    done: list[int] = []
    for step in range(until):
        if guarded.extrapolation_at(step) is None:
            done.append(step)
            usual = None if len(done) < 3 else USUAL
            guarded.observe(step, (extrapolation_errors or {}).get(step, usual))
    return tuple(done)


def test_worked_example():
    """A plan of 10 steps that computes 0, 1, 2, 5 and 8; an error of 0.1 is expected at 5 and 8."""
    plan = plan_of(0, 1, 2, 5, 8, num_steps=10)
    expected = {step: ErrorBand(math.log(0.1), 0.2) for step in (5, 8)}

    def computed_with(error_at_5: float) -> list[int]:
        policy = GuardedPolicy(plan, [10.0 - step for step in range(10)], bands=expected)
        computed = []
        for step in range(10):
            if policy.extrapolation_at(step) is None:
                computed.append(step)
                policy.observe(step, {5: error_at_5, 8: 0.1}.get(step))
        return computed

    # 0.12: log(0.12 / 0.1) = 0.18 is 0.9 standard deviations of 0.2: the plan goes on.
    assert computed_with(0.12) == [0, 1, 2, 5, 8]
    # 9.0 is 90 times the expected: the plan is left, and every other step is computed to the end.
    # The fresh value of step 5 is right, so step 6 may reuse it; 9 is the last step.
    assert computed_with(9.0) == [0, 1, 2, 5, 7, 9]


def test_what_is_expected_changes_nothing():
    policy = guarded()
    assert drive(policy) == PLAN.computed
    assert (policy.abandoned, policy.notes()) == (None, ())
    assert policy.extrapolation_errors == dict.fromkeys((2, 5, 10, 15, 20), USUAL)


def test_a_score_is_in_standard_deviations_of_the_logarithm():
    band = ErrorBand(math.log(USUAL), 0.2)
    assert band.score(USUAL) == pytest.approx(0.0)
    assert band.score(USUAL * math.exp(0.4)) == pytest.approx(2.0)
    assert band.score(math.nan) == band.score(math.inf) == math.inf


def test_the_band_holds_six_deviations_and_always_a_ratio_to_the_expected():
    spread = math.log(MAX_BAND_RATIO)  # so wide that six deviations are more than the ratio
    wide, narrow = ErrorBand(math.log(USUAL), spread), ErrorBand(math.log(USUAL), 0.01)
    assert wide.contains(USUAL * math.exp(spread * MAX_BAND_SCORE - 0.01))
    assert not wide.contains(USUAL * math.exp(spread * MAX_BAND_SCORE + 0.01))
    assert narrow.contains(USUAL * 0.99 * MAX_BAND_RATIO)
    assert not narrow.contains(USUAL * 1.01 * MAX_BAND_RATIO)
    assert narrow.contains(0.0)  # nothing at all is no fault
    assert not narrow.contains(math.nan)


def test_an_error_that_is_small_by_itself_is_tolerated_whatever_was_expected():
    band = ErrorBand(math.log(TOLERATED_ERROR / 1000), 0.01)
    assert band.contains(TOLERATED_ERROR)
    assert not band.contains(TOLERATED_ERROR * 1.01)


def test_the_guard_abandons_the_plan_at_an_error_outside_the_band():
    policy = guarded()
    done = drive(policy, {5: FAULT})
    assert policy.abandoned is not None
    assert policy.abandoned[0] == 5
    assert done[:4] == PLAN.computed[:4]
    assert done[4:7] == (7, 9, 11), "the fresh value is used once, and so is each after it"
    (note,) = policy.notes()
    assert note == (
        f"Guard after step 5: the extrapolation error was {FAULT:.1f} times the expected one; "
        "the plan was replaced by short windows."
    )


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_guard_abandons_the_plan_at_what_is_not_finite_even_where_no_band_is_known(value):
    policy = guarded(bands={})
    drive(policy, {5: value})
    assert policy.abandoned == (5, "a value was not finite")


def test_windows_after_the_plan_are_short_once_a_step_is_computed():
    """Step 3 is computed, 4 is cached, and so on to the last."""
    policy = guarded()
    for step in range(3):
        policy.observe(step, None)
    policy.on_invalid(2, "the text changed")
    done = []
    for step in range(3, TOTAL):
        if policy.extrapolation_at(step) is None:
            done.append(step)
            policy.observe(step, 0.01, 0.5)
    assert done == [3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23]


@pytest.mark.parametrize(
    ("trust", "expected"),
    [(1.0, {5: 1.5, 3: -0.5}), (0.5, {5: 1.25, 3: -0.25}), (0.0, {5: 1.0}), (-3.0, {5: 1.0}),
     (9.0, {5: 1.5, 3: -0.5}), (math.nan, {5: 1.0})],
)  # fmt: skip
def test_the_line_is_damped_to_what_was_right(trust, expected):
    """Steps 3 and 5 are two apart, 6 is one further on: the line is 1.5 and -0.5 of them."""
    policy = guarded(branch_weights=(1.0, -3.0))
    for step in range(3):
        policy.observe(step, None)
    policy.on_invalid(2, "the text changed")
    policy.observe(3, 9.0, 1.0)
    assert policy.extrapolation_at(4).weights[0].keys() == {3}, (
        "nothing from before the fault is read"
    )
    policy.observe(5, 0.01, trust)
    assert policy.needed_steps(5) == (3, 5)
    assert policy.extrapolation_at(6) == Extrapolation((expected, expected))


@pytest.mark.parametrize(
    ("extrapolation_error", "left"), [(TOLERATED_ERROR, False), (USUAL * 1.4, False), (9.0, True)]
)
def test_after_a_suspicion_the_error_of_the_next_step_decides(extrapolation_error, left):
    """Two deviations of 0.2 of the nearest band are a factor of 1.49."""
    policy = guarded()
    done = []
    for step in range(TOTAL):
        if step == 7:
            policy.on_suspicious(6, "the latents jumped")
        if policy.extrapolation_at(step) is None:
            done.append(step)
            policy.observe(
                step, None if len(done) < 3 else extrapolation_error if step == 7 else USUAL, 0.0
            )
    (note,) = policy.notes()
    assert note.startswith("Guard after step 6: the latents jumped; ")
    if left:
        assert done == [0, 1, 2, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23]
        assert policy.abandoned == (6, "the latents jumped")
    else:
        assert done == [0, 1, 2, 5, 7, 10, 15, 20]
        assert policy.abandoned is None


def late(policy: GuardedPolicy, *steps: int) -> None:
    """So many steps were computed, and the others but the last one observed."""
    for step in steps:
        policy.on_computed(step)
        assert policy.observes_late
    for step in steps[:-1]:
        policy.observe(step, USUAL, 0.0)


@pytest.mark.parametrize(("extrapolation_error", "left"), [(USUAL * 1.4, False), (9.0, True)])
def test_a_suspicion_that_comes_late_is_decided_by_the_step_that_was_computed(
    extrapolation_error, left
):
    """Step 5 was computed since: no other one is, and until its error is known nothing is late."""
    policy = guarded()
    late(policy, 0, 1, 2, 5)
    policy.on_suspicious(3, "the latents jumped")
    assert not policy.observes_late
    assert policy.extrapolation_at(6) is not None
    policy.observe(5, extrapolation_error, 0.0)
    assert policy.observes_late != left
    assert policy.abandoned == ((3, "the latents jumped") if left else None)
    assert policy.needed_steps(5) == ((5,) if left else PLAN.needed_steps(5))


def test_an_error_that_comes_late_leaves_the_values_from_its_step_on():
    policy = guarded()
    late(policy, 0, 1, 2, 5, 10)
    policy.observe(5, FAULT)
    assert policy.abandoned is not None and not policy.observes_late
    policy.observe(10, FAULT, 0.5)
    assert policy.needed_steps(10) == (5, 10)
    assert policy.extrapolation_at(11) == Extrapolation(({10: 1.1, 5: -0.1},))
    assert policy.extrapolation_at(12) is None


def test_what_is_found_after_the_last_step_is_noted():
    for find in ("on_suspicious", "on_invalid"):
        policy = guarded()
        late(policy, *PLAN.computed)
        policy.on_end(TOTAL)
        getattr(policy, find)(22, "it broke")
        assert policy.abandoned is None
        assert policy.notes() == (
            "Guard after step 22: it broke; no step was left to compute, so the plan continued.",
        )


@pytest.mark.parametrize(("ratio", "left"), [(1.4, False), (1.6, True)])
def test_without_bands_the_errors_of_the_run_say_what_is_usual(ratio, left):
    """As in a run that nobody calibrated: its errors were 0.8, and 1.5 times that is usual."""
    policy = guarded(bands={})
    errors = {5: 0.8, 7: 0.8 * ratio, 10: 0.8, 15: 0.8, 20: 0.8}
    done = []
    for step in range(TOTAL):
        if step == 7:
            policy.on_suspicious(6, "the latents jumped")
        if policy.extrapolation_at(step) is None:
            done.append(step)
            policy.observe(step, errors.get(step), 0.0)
    assert (policy.abandoned is not None) == left
    assert policy.added_steps({*done}) == tuple(sorted({*done} - {*PLAN.computed}))
    assert policy.added_steps({*done}) == (7,) or left
    assert policy.reasons() == ("the latents jumped after step 6",)


def test_a_lost_value_is_noted_and_the_plan_goes_on():
    policy = guarded()
    policy.on_lost_value(4, "a cached value was not finite")
    policy.on_lost_value(8, "a cached value was not finite")
    assert drive(policy) == PLAN.computed
    assert policy.notes() == (
        "Guard after step 4: a cached value was not finite; the value was restored from its "
        "neighbours.",
    )


def test_a_plan_of_another_model_is_not_used_and_lines_are_where_they_may():
    """A line through two steps misses at a third in proportion to its distances from both.

    Steps are one apart and of mean length. Measured at 2, by the line through 0 and 1: 2 · 1. From
    1 and 2 it is 2 · 1 at step 3, 3 · 2 at 4, 4 · 3 at 5: 1, 3 and 6 times as much. Measured at 5,
    by that line: 12; from 2 and 5 it is 4, 10, 18 and 28 at 6 to 9.
    """
    policy = guarded(trusted=False)
    assert [policy.extrapolation_at(step) for step in (0, 1, 2)] == [None] * 3
    for step, extrapolation_error in ((0, None), (1, None), (2, LINE / 3)):
        policy.observe(step, extrapolation_error, 0.5)
    assert policy.extrapolation_at(3) == Extrapolation(({2: 1.5, 1: -0.5},))
    assert policy.extrapolation_at(4) is not None
    assert policy.extrapolation_at(5) is None
    policy.observe(5, LINE / 2, 0.0)
    assert policy.needed_steps(5) == (2, 5)
    assert [policy.extrapolation_at(s) is None for s in (6, 7, 8, 9)] == [False, False, False, True]
    (note,) = policy.notes()
    assert note == (
        "Guard: the profile is of another model, so its plan was not used. Steps were extrapolated "
        "where the expected error was small."
    )


def test_a_short_step_may_be_missed_by_more():
    """Step 3 is a quarter as long as the mean one: the same at four times the error."""
    times = [24.0, 23.0, 22.0, 21.0, 20.75, *[float(20 - s) for s in range(19)]]
    for extrapolation_error, extrapolated in ((4 * LINE - 0.01, True), (4 * LINE + 0.01, False)):
        policy = guarded(trusted=False, timesteps=times)
        for step, error in ((0, None), (1, None), (2, extrapolation_error)):
            policy.observe(step, error, 0.5)
        assert (policy.extrapolation_at(3) is not None) == extrapolated


@pytest.mark.parametrize("state", ["abandoned", "untrusted"])
def test_no_line_goes_through_the_other_experts_values(state):
    """The second expert's first step is computed, and a line then has its own values alone."""
    policy = guarded(trusted=state == "abandoned", second=SecondExpert(10))
    for step in (6, 7, 8, 9):
        policy.observe(step, 1e-4, 1.0)
        if state == "abandoned" and step == 6:
            policy.on_invalid(step, "the text changed")
    assert policy.extrapolation_at(10) is None
    policy.observe(10, 1e-4, 1.0)
    after = policy.extrapolation_at(11)
    assert after is None if state == "untrusted" else [*after.weights[0]] == [10]


@pytest.mark.parametrize("extrapolation_error", [1.0, math.inf])
def test_without_a_profile_everything_is_computed_where_lines_miss(extrapolation_error):
    policy = guarded(trusted=False)
    assert drive(policy, dict.fromkeys(range(2, TOTAL), extrapolation_error)) == tuple(range(TOTAL))
    assert policy.abandoned is None


def test_a_forced_plan_is_followed_without_the_guard():
    plain = guarded(trusted=False, guard=False)
    assert plain.extrapolation_at(8) == PLAN.extrapolations[8]


@pytest.mark.parametrize(("total", "spared"), [(LONG_RUN_STEPS, 0), (LONG_RUN_STEPS - 1, 3)])
def test_windows_after_the_plan_err_little_in_a_run_of_many_steps(total: int, spared: int):
    """Fewer steps miss little there; in a run of few, what the plan left before is more."""
    times = [float(total - s) for s in range(total)]
    for missed, extrapolated in (
        (MAX_EXPECTED_ERROR, spared),
        (MAX_EXPECTED_ERROR / (3 * total), 3),
    ):
        policy = GuardedPolicy(plan_of(0, 1, 2, 5, 10, num_steps=total), times)
        drive(policy, until=12)
        policy.on_invalid(11, "the text changed")
        assert policy.extrapolation_at(12) is None
        for step in (12, 13, 14):
            policy.observe(step, missed)
        found = []
        for step in range(15, 21):
            if (forecast := policy.extrapolation_at(step)) is None:
                policy.observe(step, missed)
            found.append(forecast)
        assert sum(forecast is not None for forecast in found) == extrapolated


def test_after_the_plan_the_last_step_is_computed():
    policy = guarded()
    assert drive(policy, {5: FAULT})[-1] == TOTAL - 1


def test_the_first_fault_is_the_one_that_is_noted():
    policy = guarded()
    policy.on_invalid(3, "the text changed")
    policy.on_invalid(4, "the latents jumped")
    assert policy.abandoned == (3, "the text changed")


def test_without_the_guard_the_plan_is_followed_whatever_happens():
    policy = guarded(guard=False)
    assert drive(policy, {5: math.nan, 10: 9.0}) == PLAN.computed
    policy.on_invalid(11, "the latents jumped")
    assert (policy.abandoned, policy.notes()) == (None, ())


def test_errors_are_measured_for_the_guard_alone():
    assert guarded().needs_error
    assert not guarded(guard=False).needs_error


def test_a_new_run_forgets_the_last():
    policy = guarded()
    drive(policy, {10: FAULT})
    assert policy.abandoned
    policy.start(RunInfo(TOTAL))
    assert (policy.abandoned, policy.notes()) == (None, ())
    assert drive(policy) == PLAN.computed


def test_a_run_of_other_steps_is_refused():
    with pytest.raises(ValueError, match="plan is for 24 steps, but this run has 20; accepted"):
        guarded().start(RunInfo(20))


def test_a_plan_that_computes_every_step_stays_whole_whatever_happens():
    for changes in ({}, {"trusted": False}):
        policy = guarded(plan=plan_of(*range(TOTAL)), **changes)
        drive(policy, until=6)
        policy.on_invalid(5, "the text changed")
        policy.on_suspicious(5, "the latents jumped")
        assert all(policy.extrapolation_at(step) is None for step in range(TOTAL))
        assert not policy.needs_error and policy.notes() == ()


def test_windows_after_a_dense_plan_compute_what_the_plan_would_have():
    dense = plan_of(*(step for step in range(TOTAL) if step % 4 != 3))
    policy = guarded(plan=dense)
    before = drive(policy, until=8)
    policy.on_invalid(7, "the text changed")
    rest = {step for step in range(8, TOTAL) if policy.extrapolation_at(step) is None}
    assert {*before, *rest} >= {*dense.computed}


# --- where a speed was asked for ---


def run_with(policy: GuardedPolicy, events: dict[int, str]) -> list[int]:
    """The computed steps of a run, in the executor's order; an event is found after its step."""
    done: list[int] = []
    for step in range(TOTAL):
        if events.get(step - 1) == "text":
            policy.on_invalid(step - 1, "the text changed")
        if done and done[-1] == step - 1:
            error = {"error": FAULT, "broken": math.nan}.get(events.get(step - 1, ""), USUAL)
            policy.observe(step - 1, None if len(done) < 3 else error, 0.5)
        if events.get(step - 1) == "latents":
            policy.on_suspicious(step - 1, "the latents jumped")
        if (used := policy.extrapolation_at(step)) is None:
            done.append(step)
        else:
            assert {*used.weights[0]} <= {*done}
    return done


KINDS = ("text", "latents", "error", "broken")


@pytest.mark.parametrize("bands", [BANDS, {}])
@pytest.mark.parametrize("trusted", [True, False])
def test_no_fault_costs_more_than_one_step_where_a_speed_was_asked_for(bands, trusted):
    more = []
    for kind in KINDS:
        for step in range(TOTAL):
            for other in (kind, "text", "error"):
                policy = guarded(max_added=1, bands=bands, trusted=trusted)
                done = run_with(policy, {step: kind, (7 * step + 3) % TOTAL: other})
                more.append(len(done) - len(PLAN.computed))
                assert policy.abandoned is None or policy.notes()
                said = {*policy.added_steps({*done})}, {*policy.omitted_steps()}
                assert said == ({*done} - {*PLAN.computed}, {*PLAN.computed} - {*done})
    assert max(more) == 1
    assert min(more) >= 0, "a step is moved, and none is saved"


def test_the_first_step_of_a_second_expert_is_never_taken_back():
    for step in range(TOTAL):
        for kind, other in ((a, b) for a in KINDS for b in KINDS):
            policy = guarded(max_added=1, second=SecondExpert(10))
            done = run_with(policy, {step: kind, (step + 4) % TOTAL: other})
            assert 10 in done and len(done) <= len(PLAN.computed) + 1


@pytest.mark.parametrize("kind", ["text", "latents", "error"])
def test_without_that_bound_a_fault_costs_many(kind):
    done = run_with(guarded(), {5: kind, 6: "error"})
    assert len(done) > len(PLAN.computed) + 1


def test_a_step_that_is_spent_is_taken_back_at_the_next_fault():
    """The plan computes 0, 1, 2, 5, 10, 15, 20. Step 7 is the one more, after which the plan goes
    on. When the text changes after 11, its next step is computed in place of 15."""
    policy = guarded(max_added=1)
    assert run_with(policy, {6: "latents", 11: "text"}) == [0, 1, 2, 5, 7, 10, 12, 20]
    assert policy.omitted_steps() == (15,)
    assert policy.notes() == (
        "Guard after step 11: the text changed; the plan was replaced by damped lines.",
    )


def test_where_no_step_is_left_the_plan_goes_on():
    policy = guarded(max_added=0)
    assert run_with(policy, {21: "text"}) == [*PLAN.computed]
    assert policy.notes() == (
        "Guard after step 21: the text changed; no step was left to compute, so the plan "
        "continued.",
    )


def test_a_plan_of_another_model_keeps_its_steps_where_a_speed_was_asked_for():
    policy = guarded(trusted=False, max_added=1)
    assert drive(policy) == PLAN.computed
    assert policy.extrapolation_at(6) == Extrapolation(({20: 1.0},)), "no weight of the plan"
    (note,) = policy.notes()
    assert note == (
        "Guard: the profile is of another model. The steps of its plan were computed, and the "
        "others were extrapolated along damped lines."
    )
