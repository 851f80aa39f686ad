"""An uncached reference teaches whole: it is recorded, unchanged, and learnt from once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import torch
from learned_runs import STEPS, basis, only, run

from dit_accel import accelerate
from dit_accel.caching.reference import recorded
from dit_accel.calibration.record import record


def test_worked_example(learns) -> None:
    """The reference is the stock clip. Its whole Gram matrix is learnt when the accelerated run is
    over, in place of that run's rows, and is that of a calibration clip."""
    pipe = tiny.tiny_wan()
    stock = run(pipe)
    with recorded(pipe) as reference:
        assert np.array_equal(run(pipe), stock)
    with accelerate(pipe, speedup=2.0) as handle:
        assert handle.learn_from(reference)
        planned = run(pipe)
        report = handle.report()
        # It was planned without the reference, and by it neither.
        assert any(
            note.startswith("Planned from a prior of 4 other models;") for note in report.notes
        )
        assert report.steps_computed == STEPS // 2 and not np.array_equal(planned, stock)
        (whole,) = only(learns).observations
        assert whole.clips == only(learns).runs == 1
        run(pipe, 1)  # has no reference, and teaches nothing
        assert basis(handle.report()) == "a prior of 4 other models and 1 clip"
    assert only(learns).runs == 1
    (calibrated,) = record(pipe, tiny.tiny_clips(STEPS, 1))
    torch.testing.assert_close(whole.products, calibrated.gram, rtol=1e-4, atol=1e-6)


def test_the_accelerated_clip_is_the_same_with_a_reference(learns) -> None:
    found = []
    for with_reference in (True, False):
        pipe = tiny.tiny_wan(1)
        if with_reference:
            with recorded(pipe) as reference:
                run(pipe)
        with accelerate(pipe, speedup=2.0, learn=with_reference) as handle:
            assert not with_reference or handle.learn_from(reference)
            found.append((run(pipe), handle.report().host_syncs))
    assert np.array_equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]


def test_where_the_accelerated_run_is_recorded_too_the_clip_is_counted_once(
    learns, without_prior
) -> None:
    pipe = tiny.tiny_wan()
    with recorded(pipe) as reference:
        run(pipe)
    with accelerate(pipe, speedup=2.0) as handle:
        handle.learn_from(reference)
        run(pipe)
        assert handle.report().steps_computed == STEPS
    assert only(learns).runs == 1


def test_a_reference_of_another_clip_is_stored_as_its_own_run(learns) -> None:
    pipe = tiny.tiny_wan()
    with recorded(pipe) as reference:
        run(pipe, num_inference_steps=STEPS + 2)
    with accelerate(pipe, speedup=2.0) as handle:
        assert handle.learn_from(reference)
        run(pipe)
    (stored,) = only(learns).observations
    assert stored.kind.sampler.num_steps == STEPS + 2


def test_a_reference_that_was_interrupted_is_noted(learns) -> None:
    pipe = tiny.tiny_wan()

    def stop(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        if step == 4:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt), recorded(pipe) as reference:
        run(pipe, callback_on_step_end=stop)
    with accelerate(pipe, speedup=2.0) as handle:
        assert not handle.learn_from(reference)
        run(pipe)
        assert (
            "Nothing was learnt: the uncached reference stopped after 5 of 10 steps."
            in handle.report().notes
        )
    assert not (learns / "learned").exists()


@pytest.mark.parametrize("steps", [4, STEPS])
def test_what_cannot_be_planned_is_made_all_the_same(learns, monkeypatch, steps) -> None:
    """Too few steps; a sampler that is refused."""
    pipe = tiny.tiny_wan()
    stock = run(pipe, num_inference_steps=steps)

    def refuse(*_: Any) -> None:
        raise ValueError("the sampler draws noise")

    if steps == STEPS:
        monkeypatch.setattr("dit_accel.planning.prior.SchedulerCache.response", refuse)
    with recorded(pipe) as reference:
        assert np.array_equal(run(pipe, num_inference_steps=steps), stock)
    why = "4 steps are too few for a plan" if steps == 4 else "the sampler draws noise"
    assert reference.run.problem == f"was not recorded: {why}" and reference.run.profile is None


def test_without_learning_nothing_is_learnt(learns) -> None:
    pipe = tiny.tiny_wan()
    with recorded(pipe) as reference:
        run(pipe)
    for settings in ({"learn": False}, {"static": True}):
        with accelerate(pipe, speedup=2.0, **settings) as handle:
            assert not handle.learn_from(reference)
    with accelerate(pipe, threshold=0.1) as handle:
        assert not handle.learn_from(reference)
    assert not (learns / "learned").exists()


def test_a_reference_of_other_weights_is_refused(learns) -> None:
    pipe = tiny.tiny_wan()
    with recorded(pipe) as reference:
        run(pipe)
    with torch.no_grad():
        pipe.transformer.proj_out.weight.mul_(1.001)
    with (
        accelerate(pipe, speedup=2.0) as handle,
        pytest.raises(ValueError, match="weights changed since it was recorded; accepted"),
    ):
        handle.learn_from(reference)


def test_as_a_listener_it_counts_its_own_seconds_and_takes_the_products_behind_the_clock() -> None:
    pipe = tiny.tiny_wan()
    open_at_last_forward = []
    with recorded(pipe) as reference:
        reference.loop_begins()

        def ended(pipe: Any, step: int, _: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            rows = reference._recording.record._rows
            open_at_last_forward.append(len(rows))
            reference.steps_done(step + 1)
            return tensors

        run(pipe, callback_on_step_end=ended)
        assert not reference._recording.record._rows
    assert open_at_last_forward[-1] == 2 * STEPS + 1
    assert reference.seconds > 0 < reference.seconds_after
    assert reference.run.profile is not None
