"""Rows of optimised schedules: OSS on a known case, and every row carried out."""

from __future__ import annotations

import pytest
import torch
from calibrations import measured_once
from tiny import tiny_clips

from dit_accel.evaluation.methods import METHODS, MethodContext, runs, schedules
from dit_accel.planning.nodes import Nodes
from dit_accel.planning.paths import Recorded

STEPS = 6
CLIPS = tiny_clips(STEPS, 2)


@pytest.fixture(scope="module")
def context() -> MethodContext:
    return MethodContext(CLIPS[0], measured_once(), calibration_clips=CLIPS, batch=2)


def test_worked_example_of_oss():
    """The model says -1 above t = 0.6, and -3 from there on; times are 1, 0.8, ..., 0.

    With two calls the student that leaves step 0 at the bend, step 2, ends exactly at the
    teacher's: 0 + 0.4 x 1 + 0.6 x 3 = 2.2. One that leaves at step 1 ends at 0.2 + 0.8 = 1.0.
    """
    times = torch.tensor([1, 0.8, 0.6, 0.4, 0.2, 0], dtype=torch.float64)
    nodes = Nodes("flow", times, 1000 * times[:-1])

    def predict(states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.where(labels > 601, -1.0, -3.0).float()[:, None].expand_as(states)

    v = predict(torch.zeros(5, 1), nodes.labels)
    states = torch.cat([torch.zeros(1, 1), (times.diff()[:, None].float() * v).cumsum(0)])
    found, calls = schedules.student_paths(Recorded(nodes, states, v), predict, 3)
    assert found[1] == [0]
    assert found[2] == [0, 2]
    assert found[3][0] == 0 and 2 in found[3]
    assert calls == 1 + 4 + 3  # nodes 0; then 1 to 4; then 2 to 4


@pytest.mark.parametrize("row", schedules.SCHEDULE_METHODS, ids=lambda row: row.name)
def test_every_row_computes_k_steps_and_states_its_runs(pipe, context, row):
    with row.apply(pipe, 3, context) as handle:
        found = runs.final_latents(pipe, CLIPS, 2, handle.overrides)
        if handle.report is not None:
            assert handle.report().steps_computed == 3
        else:
            assert len(pipe.scheduler.timesteps) == 3
    assert found.isfinite().all()
    expected = {"oss": 2 + 2 * (1 + 5 + 4 + 3 + 2) / STEPS}
    assert handle.calibration_runs == pytest.approx(expected.get(row.name.split("/")[0], 2.0))


def test_medians_that_meet_are_set_apart():
    assert schedules._increasing([0, 2, 2, 5], 6) == [0, 2, 3, 5]
    assert schedules._increasing([0, 5, 5], 6) == [0, 4, 5]


def test_a_schedule_without_calibration_clips_is_refused(pipe):
    bare = MethodContext(CLIPS[0], lambda name, measure: measure(lambda: None))
    refused = pytest.raises(ValueError, match="calibration_clips is empty")
    with refused, METHODS["gits/ab"].apply(pipe, 3, bare):
        pass
