"""Levels: the choice by hand and by brute force, and what a profile makes of it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import profiles
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dit_accel import autopilot, cheaper
from dit_accel.levels import FULL, Level, LevelTable, bound, choose, guided_energy, parse, weights
from dit_accel.planner import Field
from dit_accel.plans import Forecast, Plan, Schedule
from dit_accel.profile import Profile
from dit_accel.targets import for_speedup

HALF, TENTH = parse("block:0.25-0.75"), parse("attention")
RUNGS = [
    profiles.rung_of((0, 1, 2, 4, 6, 8, 11, 14, 17, 19), [40.0] * 50),
    profiles.rung_of((0, 1, 3, 6, 10, 14, 17), [36.0] * 50),
    profiles.rung_of((0, 1, 5, 9, 14), [28.0] * 50),
]


def table_of(
    errors: Sequence[float], costs: Sequence[float], steps: int = profiles.STEPS,
    ages: tuple[int, ...] = (1,), growth: float = 1.0,
) -> LevelTable:  # fmt: skip
    """Two levels, whose errors are the same at all steps and go with age to the power `growth`."""
    by_age = torch.tensor([[e * age**growth for age in ages] for e in errors], dtype=torch.float64)
    shares = torch.tensor(costs, dtype=torch.float64)
    return LevelTable(
        (HALF, TENTH), ages, by_age[:, :, None].expand(-1, -1, steps).contiguous(), shares,
        2 * shares, "a device", 3,
    )  # fmt: skip


# --- names ---


@pytest.mark.parametrize(
    "level",
    [FULL, Level("prune", density=0.3), Level("attention"), Level("attention", order=1),
     Level("block", span=(0.1, 0.9)), Level("block", span=(0.25, 1.0), order=1)],
    ids=lambda level: level.name,
)  # fmt: skip
def test_a_name_is_read_back(level):
    assert parse(level.name) == level


@pytest.mark.parametrize(
    "name", ["", "prune", "prune:2", "prune:0.3:line", "full:line", "block:0.5", "block:0.9-0.1"]
)
def test_a_level_that_is_none_is_refused_by_name(name):
    with pytest.raises(ValueError, match=r"level is '.*'; accepted: full, prune:DENSITY, block:"):
        parse(name)


def test_a_span_is_of_whole_blocks():
    assert list(parse("block:0.25-0.75").blocks(12)) == [3, 4, 5, 6, 7, 8]
    with pytest.raises(ValueError, match=r"level block:0\.4-0\.45: no block of 3 lies in its span"):
        parse("block:0.4-0.45").blocks(3)


def test_a_plan_has_levels_at_computed_steps_only():
    plan = Plan(4, {2: Forecast(({1: 1.0},))}, {1: HALF})
    assert plan.levels[1] is HALF
    with pytest.raises(ValueError, match=r"levels has the steps \[2, 9\]; accepted: computed ones"):
        Plan(4, {2: Forecast(({1: 1.0},))}, {2: HALF, 9: HALF, 3: HALF})


# --- measured ---


def test_errors_between_ages_lie_on_lines_of_logarithms():
    """0.1 at age 1, 0.4 at age 4: linear, so 0.2 at 2, and 1.6 at 16."""
    table = table_of([0.1, 0.3], [0.5, 0.1], ages=(1, 4))
    assert table.at(3, [1, 2, 4, 16])[0].tolist() == pytest.approx([0.1, 0.2, 0.4, 1.6])
    assert table_of([0.1, 0.3], [0.5, 0.1]).at(3, [1, 7])[1].tolist() == pytest.approx([0.3, 0.3])


def test_seconds_count_on_their_device_alone():
    table = table_of([0.1, 0.3], [0.5, 0.1])
    assert table.costs("a device").tolist() == [1.0, 0.2]
    assert table.costs("another").tolist() == table.costs().tolist() == [0.5, 0.1]


def test_a_table_of_wrong_shapes_is_refused():
    table = table_of([0.1, 0.3], [0.5, 0.1])
    with pytest.raises(ValueError, match=r"shapes \(2, 1, 20\), \(\(1,\), \(2,\)\); accepted: \(2"):
        dataclasses.replace(table, flops=table.flops[:1])
    with pytest.raises(ValueError, match=r"ages is \(3,\)|ages is \(0,\); accepted: rising"):
        dataclasses.replace(table, ages=(0,))
    with pytest.raises(ValueError, match="levels has full; accepted: what is cheaper"):
        dataclasses.replace(table, levels=(HALF, FULL))
    with pytest.raises(ValueError, match="is not finite, or negative"):
        dataclasses.replace(table, errors=-table.errors)


# --- weights ---


def test_weights_by_hand():
    """Four steps that each add -1, times 4 to 1, steps 0, 1 and 3 computed, prediction s of norm
    s + 1, over a final norm of 1. Gains 4, 3, 2, 1.

    Step 2 is served by the line through 1 and 0: 2 p1 - p0. So p0 is added -1 at its own step and
    +1 in the next window, which opens at 1; p1 is added -1 - 2 = -3; p3 -1.
    An error never turns (memory infinite): p0 leaves (4 * -1 + 3 * 1)^2 = 1, p1 (3 * -3)^2 = 81,
    p3 1; times energies 1, 4, 16. With memory 1 the two of p0 add up as
    16 + 9 - 2 * 12 / e.
    """
    schedule = Schedule(-torch.ones(4).double(), torch.tensor([4.0, 3, 2, 1]).double())
    gram = torch.diag(torch.tensor([1.0, 4, 9, 16, 1], dtype=torch.float64))[None]
    gain = torch.tensor([4.0, 3, 2, 1], dtype=torch.float64)
    field = Field(schedule, gram, gain, math.inf)
    assert weights((0, 1, 3), field).tolist() == pytest.approx([1, 81 * 4, 16])
    turned = weights((0, 1, 3), dataclasses.replace(field, memory=1.0))
    assert turned[0] == pytest.approx(25 - 24 / math.e)


def test_guided_energy_mixes_the_parts():
    """Parts of one step with inner products 4, 1, 9, mixed by 1 and -3: 4 - 2 * 3 + 81."""
    schedule = Schedule(-torch.ones(1).double(), torch.ones(1).double(), (1.0, -3.0))
    gram = torch.tensor([[[4.0, 1, 0], [1, 9, 0], [0, 0, 1]]], dtype=torch.float64)
    field = Field(schedule, gram, torch.ones(1).double(), 1.0)
    assert guided_energy(field).tolist() == pytest.approx([79.0])


# --- the choice ---


def test_the_choice_by_hand():
    """Steps 2 and 3 of four may be cheaper. With 3.5 full steps one of them is half: the one that
    counts less. With 3 both are. Errors 0.1: squares of 0.01, times 5 and 2."""
    table = table_of([0.1, 9.0], [0.5, 0.4])
    weight = torch.tensor([9.0, 9, 5, 2], dtype=torch.float64)
    found = choose((0, 1, 2, 3), weight, table, 3.5)
    assert found is not None
    assert (found.levels, found.cost) == ({3: HALF}, 3.5)
    assert found.added == pytest.approx(0.02)
    both = choose((0, 1, 2, 3), weight, table, 3.0)
    assert both is not None and both.levels == {2: HALF, 3: HALF}
    assert both.added == pytest.approx(0.07)
    free = choose((0, 1, 2, 3), weight, table, 4.0)
    assert free is not None and (free.levels, free.added) == ({}, 0.0)
    assert choose((0, 1, 2, 3), weight, table, 2.7) is None
    slow = choose((0, 1, 2, 3), weight, table, 3.8, "a device")  # its seconds: a step, and 0.8
    assert slow is not None and slow.levels == {3: TENTH}


@pytest.mark.parametrize("budget", [3.2, 4.0, 4.6, 5.3])
def test_the_choice_is_the_best_of_all(budget):
    """Against every assignment: ages count from the last full step."""
    steps = (0, 1, 3, 4, 7, 9)
    table = table_of([0.2, 0.5], [0.5, 0.25], ages=(1, 2), growth=0.7)
    weight = torch.tensor([3.0, 1, 2, 0.3, 1, 0.6], dtype=torch.float64)
    ways = []
    for picks in itertools.product((-1, 0, 1), repeat=4):
        cost, added, last = 2.0, 0.0, 1
        for place, pick in enumerate(picks, 2):
            if pick < 0:
                cost, last = cost + 1, steps[place]
            else:
                age = steps[place] - last
                error = float(table.at(steps[place], [age])[pick, 0])
                cost, added = (
                    cost + float(table.flops[pick]),
                    added + float(weight[place]) * error**2,
                )
        if cost <= budget + 1e-9:
            ways.append(added)
    found = choose(steps, weight, table, budget)
    assert found is not None
    assert found.added == pytest.approx(min(ways))
    assert found.cost <= budget + 1e-9
    assert 0 < bound(steps, weight, table, budget) <= found.added + 1e-12


# --- profiles ---


def test_a_profile_keeps_its_levels(tmp_path: Path):
    profile = profiles.profile_of(RUNGS, levels=table_of([0.1, 0.3], [0.5, 0.1], ages=(1, 4)))
    profile.save(tmp_path / "p.safetensors")
    found = Profile.load(tmp_path / "p.safetensors").levels
    assert found is not None and profile.levels is not None
    for name in ("levels", "ages", "device", "clips"):
        assert getattr(found, name) == getattr(profile.levels, name)
    assert torch.equal(found.errors, profile.levels.errors)
    assert torch.equal(found.seconds, profile.levels.seconds)


def test_levels_of_another_version_are_left_out_and_the_rest_is_read(tmp_path: Path):
    path = tmp_path / "p.safetensors"
    profiles.profile_of(RUNGS, levels=table_of([0.1, 0.3], [0.5, 0.1])).save(path)
    with safe_open(str(path), "pt") as file:
        head = json.loads(file.metadata()["profile"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert head["version"] == 1  # readers that know of no levels take it
    head["levels"]["version"] = 99
    save_file(tensors, str(path), metadata={"profile": json.dumps(head)})
    found = Profile.load(path)
    assert found.levels is None
    assert len(found.rungs) == 3


# --- whether it pays ---


def test_levels_without_error_pay_and_are_planned_at_the_cost_of_the_speed():
    """At a tenth and no error ten steps cost as little as seven, and keep their 40 dB."""
    profile = profiles.profile_of(RUNGS, levels=table_of([0.0, 0.0], [0.5, 0.1]))
    offers = cheaper.paying(profile)
    assert sorted(offers) == [5, 7]
    assert offers[7].rung is profile.rungs[0]
    assert offers[7].psnr_db == pytest.approx(40.0)
    decision = autopilot.decide(profile, speedup=20 / 7, offers=offers)
    assert decision.plan.computed == profile.rungs[0].computed
    assert set(decision.plan.levels) < set(decision.plan.computed)
    promised = decision.prediction
    assert promised is not None
    assert promised.computed <= 7 and promised.speedup >= 20 / 7
    assert promised.psnr_db == pytest.approx(40.0)
    assert "steps are computed for less" in decision.notes[-1]
    assert decision.known(0.0, turned=False) == promised
    assert decision.steering().levels == decision.plan.levels


def test_a_quality_takes_the_fastest_plan_with_levels_that_keeps_it():
    """30 dB: seven full steps keep it; ten with levels at the cost of five do too."""
    profile = profiles.profile_of(RUNGS, levels=table_of([0.0, 0.0], [0.5, 0.1]))
    plain = autopilot.decide(profile, quality=30.0)
    decision = autopilot.decide(profile, quality=30.0, offers=cheaper.paying(profile))
    assert plain.prediction is not None and decision.prediction is not None
    assert (plain.prediction.computed, plain.plan.levels) == (7, {})
    assert decision.prediction.computed <= 5
    assert decision.prediction.reach is not None and decision.prediction.reach >= 0.95


def test_levels_with_large_errors_do_not_pay_and_change_nothing():
    profile = profiles.profile_of(RUNGS, levels=table_of([0.5, 0.9], [0.5, 0.1]))
    assert cheaper.paying(profile) == {}
    found = cheaper.verdicts(profile)
    assert [one.budget for one in found] == [7, 5]
    assert all(one.gain_db < 0 for one in found)
    decision = autopilot.decide(profile, speedup=20 / 7, offers=cheaper.paying(profile))
    assert decision == for_speedup(profile, 20 / 7)


def test_what_a_level_must_save_by_hand():
    """Ten steps leave 10^-3 (30 dB of latents), seven 10^-2.6: a step is worth a third of the
    difference. A level that adds just that must save a whole step."""
    profile = profiles.profile_of(RUNGS)
    gained = (10**-2.6 - 10**-3.0) / 3
    assert cheaper.worth(profile, profile.rungs[1]) == pytest.approx(gained)
    weight = weights(RUNGS[1].computed, profile.field)[2:].min()
    error = math.sqrt(gained / float(weight))
    margins = cheaper.margins(profile, profile.rungs[1], table_of([error, 0.5 * error], [0.5, 0.1]))
    assert margins is not None
    assert [one.needed for one in margins] == pytest.approx([1.0, 0.25])
    assert [one.break_even for one in margins] == pytest.approx([0.0, 0.75])
    assert cheaper.margins(profile, profile.rungs[0], table_of([1.0, 1.0], [0.5, 0.1])) is None
