"""Learning from runs: what is recorded, what later runs are planned by, and what costs nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import torch

from dit_accel import accelerate
from dit_accel.planning import learned
from dit_accel.planning.learned import Learned

pytestmark = pytest.mark.usefixtures("without_prior")  # so that the first run is whole
STEPS = 10


def run(pipe: Any, seed: int = 0, **more: Any) -> Any:
    call = tiny.CALL | {"num_inference_steps": STEPS} | more
    return pipe(**call, generator=torch.Generator().manual_seed(seed)).frames


def files(folder: Any) -> list[Any]:
    return sorted((folder / "learned").glob("*.safetensors"))


def only(folder: Any) -> Learned:
    (path,) = files(folder)
    return learned.load(path)


def test_worked_example(learns) -> None:
    """The first run is computed whole: its Gram matrix is the first observation. Every later one
    adds the rows of the steps that it computed, and the plan is made of both."""
    pipe = tiny.tiny_wan()
    with accelerate(pipe, speedup=2.0) as handle:
        run(pipe)
        assert handle.report().steps_computed == STEPS
        known = only(learns)  # as soon as the run is over
        assert [one.is_whole for one in known.observations] == [True] and known.runs == 1
        run(pipe, 1)
        report = handle.report()
        assert "Planned from 1 clip." in report.notes
        known = only(learns)
        _, planned = known.observations
        assert planned.computed == report.planned and len(planned.computed) == STEPS // 2
        assert planned.products.shape == (2 * 5 + 1, 2 * 5 + 1) and planned.clips == 1
        run(pipe, 2)
        assert "Planned from 2 clips." in handle.report().notes
    assert only(learns).runs == 3
    # Another process plans its first run from the three.
    other = tiny.tiny_wan()
    with accelerate(other, speedup=2.0) as handle:
        run(other, 3)
        report = handle.report()
        assert report.steps_computed == STEPS // 2 and "Planned from 3 clips." in report.notes
    assert only(learns).runs == 4


def test_observed_products_are_those_of_the_whole_run(learns) -> None:
    """At step 0 the accelerated run is still the uncached one."""
    pipe = tiny.tiny_wan()
    with accelerate(pipe, speedup=2.0):
        run(pipe)
        run(pipe)
    whole, planned = only(learns).observations
    rows = planned.rows
    at = [0, len(planned.computed), len(rows) - 1]  # both components at step 0, and the noise
    ratio = planned.products[at][:, at] / whole.products[rows[at]][:, rows[at]]
    torch.testing.assert_close(ratio, ratio[0, 0].expand(3, 3), rtol=1e-5, atol=0)
    assert abs(float(ratio[0, 0]) - 1) < 0.2  # the final latents are near


def test_off_nothing_is_written(learns) -> None:
    pipe = tiny.tiny_wan()
    with accelerate(pipe, speedup=2.0, learn=False) as handle:
        run(pipe)
        run(pipe, 1)
        assert handle.report().steps_computed == STEPS // 2
        run(pipe, 2)
    assert files(learns) == []


def test_static_runs_are_not_observed(learns) -> None:
    """The first one is recorded, as always; no other one is touched."""
    pipe = tiny.tiny_wan()
    with accelerate(pipe, speedup=2.0, static=True) as handle:
        for seed in range(3):
            run(pipe, seed)
        assert not handle.executor.policy.records and handle.report().host_syncs == 0
    assert only(learns).runs == 1


def test_the_frames_are_those_without_learning(learns) -> None:
    found = []
    for learn in (True, False):
        pipe = tiny.tiny_wan()
        with accelerate(pipe, speedup=2.0, learn=learn) as handle:
            run(pipe)
            found.append((run(pipe, 1), handle.report().host_syncs))
    assert np.array_equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]


def test_other_weights_or_another_scheduler_have_another_file(learns) -> None:
    pipe = tiny.tiny_wan()
    with accelerate(pipe, speedup=2.0) as handle:
        run(pipe)
        with torch.no_grad():
            pipe.transformer.proj_out.weight.mul_(1.001)
        run(pipe, 1)
        assert handle.report().steps_computed == STEPS
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, shift=7.0)
        run(pipe, 2)
        assert handle.report().steps_computed == STEPS
    assert len(files(learns)) == 3
    assert [learned.load(path).runs for path in files(learns)] == [1, 1, 1]


def test_other_steps_are_planned_from_what_was_learnt(learns) -> None:
    pipe = tiny.tiny_wan()
    with accelerate(pipe, speedup=2.0) as handle:
        run(pipe)
        for _ in range(2):
            run(pipe, 1, num_inference_steps=12)
            report = handle.report()
            assert report.steps_computed == 6 and "Planned from 1 clip." in report.notes
            assert "Transferred: steps is 10 in the profile, 12 here." in report.notes
    assert [one.computed[0] for one in only(learns).observations] == [0, 0]


def test_a_run_that_was_interrupted_teaches_nothing(learns) -> None:
    pipe = tiny.tiny_wan()

    def stop(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        if step == 4:
            raise KeyboardInterrupt
        return {}

    with accelerate(pipe, speedup=2.0):
        run(pipe)
        with pytest.raises(KeyboardInterrupt):
            run(pipe, 1, callback_on_step_end=stop)
        assert only(learns).runs == 1
        run(pipe, 1)
    assert only(learns).runs == 2


def test_a_damaged_file_costs_a_note_and_no_clip(learns) -> None:
    pipe = tiny.tiny_wan()
    with accelerate(pipe, speedup=2.0):
        run(pipe)
    (path,) = files(learns)
    content = bytearray(path.read_bytes())
    content[-2000] ^= 1
    path.write_bytes(content)
    with accelerate(pipe, speedup=2.0) as handle:
        run(pipe)
        assert handle.report().steps_computed == STEPS
        assert not any("alone" in note for note in handle.report().notes)  # written anew
    assert only(learns).runs == 1


def test_a_cache_that_cannot_be_written_is_noted(learns) -> None:
    (learns / "learned").write_text("a file in the folder's place")
    pipe = tiny.tiny_wan()
    with accelerate(pipe, speedup=2.0) as handle:
        run(pipe)
        run(pipe, 1)
        report = handle.report()
        assert report.steps_computed == STEPS // 2
        assert any(note.startswith("Learnt in this process alone") for note in report.notes)
