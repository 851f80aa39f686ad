import mmap
import sys
import time

import pytest
import torch

from dit_accel.core.interceptor import ForwardCall
from dit_accel.core.measure import LoopTimer, Stopwatch


def test_stopwatch_measures_at_least_what_was_slept():
    with Stopwatch("cpu") as watch:
        time.sleep(0.02)
    assert watch.seconds >= 0.02


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets the mark be reset")
def test_peak_memory_sees_an_allocation_and_is_reset():
    with Stopwatch("cpu") as large:
        block = mmap.mmap(-1, 64 << 20)  # malloc may take it from memory that is there already
        block.write(b"x" * len(block))
        block.close()
    with Stopwatch("cpu") as small:
        pass
    assert large.peak_memory_bytes and small.peak_memory_bytes
    assert large.peak_memory_bytes - small.peak_memory_bytes > 32 << 20


class Recorder:
    """A listener that records its calls."""

    def __init__(self) -> None:
        self.done: list[int] = []

    def loop_begins(self) -> None:
        self.done = [0]

    def steps_done(self, done: int) -> None:
        self.done.append(done)


def test_a_loop_is_timed_from_the_first_forward_to_the_end_of_the_last_step() -> None:
    model, recorder = torch.nn.Linear(2, 2), Recorder()
    timer = LoopTimer([model], steps=3, listeners=(recorder,), each_step=True)
    with timer:
        time.sleep(0.05)  # what comes before the loop
        for step in range(3):
            model(torch.zeros(1, 2))
            time.sleep(0.02)
            timer.step_ended(None, step, None, {"latents": step})
        time.sleep(0.05)  # what comes after it
    assert recorder.done == [0, 1, 2, 3] and timer.latents == 2
    assert len(timer.step_seconds) == 3 and min(timer.step_seconds) >= 0.02
    assert timer.seconds == pytest.approx(sum(timer.step_seconds))
    assert "_compiled_call_impl" not in vars(model)


def test_a_loop_is_timed_as_a_session_sees_it() -> None:
    model = torch.nn.Linear(2, 2)
    timer = LoopTimer([model])
    for _ in range(2):  # the second run starts afresh
        timer.run_begins(2)
        assert timer.seconds == 0.0 and timer.peak_memory_bytes is None
        timer.forward_ends("transformer")
        first = timer.seconds
        time.sleep(0.02)
        timer.forward_ends("transformer")  # the other branch
        assert timer.seconds >= first + 0.02 and timer.peak_memory_bytes


def test_the_seconds_of_a_run_that_does_not_end_go_up_to_its_last_forward() -> None:
    timer = LoopTimer([torch.nn.Linear(2, 2)])
    call = ForwardCall("transformer", (), {})
    for _ in range(2):
        timer.run_begins(12)
        assert timer.seconds == 0.0
        timer.around(call, lambda _: time.sleep(0.02))
        time.sleep(0.05)  # the interrupt comes, and somebody reads the report later
        assert 0.02 <= timer.seconds < 0.06


def test_seconds_by_denoiser_add_up_to_the_loop():
    first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    timer = LoopTimer([first, second], steps=3)
    with timer:
        for step, model in enumerate((first, first, second)):
            model(torch.zeros(1, 2))
            time.sleep(0.02)
            timer.step_ended(None, step, 0, {"latents": torch.zeros(1)})
    a, b = timer.seconds_by_model
    assert a + b == pytest.approx(timer.seconds)
    assert a > 0.035 and 0.015 < b < a
