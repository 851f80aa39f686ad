"""What is measured during a run, on tensors of a few numbers and a session that is made up."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch

from dit_accel.caching.monitor import MAX_SPEED_RATIO, LostValues, Monitor

TIMES = (10.0, 8.0, 6.0, 4.0, 2.0)


def session(**now: Any) -> Any:
    given = {"step": 0, "role": "target", "branch": "cond", "text": None, "latents": None}
    made = SimpleNamespace(**given | now, time_of=TIMES.__getitem__)
    made.time = TIMES[made.step]
    return made


def read(watch: Monitor, step: int, sums: list[torch.Tensor]) -> Any:
    return watch.metrics(watch.measure(step, sums))


def test_a_text_is_another_by_what_it_says():
    here = session(text=torch.zeros(2))
    watch = Monitor(here)
    assert not watch.texts.changed("cond"), "there was none before"
    assert not watch.texts.changed("cond")
    here.text = torch.zeros(2)
    assert not watch.texts.changed("cond"), "another tensor that says the same"
    here.text += 1
    assert watch.texts.changed("cond"), "written to"
    here.text = torch.ones(3)
    assert watch.texts.changed("cond"), "of another length"
    assert not watch.texts.changed("uncond"), "each branch has its own"


def test_the_extrapolation_error_and_the_trust_by_hand():
    """The line through 1 at time 8 and 3 at 10 is -1 at 6, two below 1. Fresh is -0.5: missed by
    0.5, which is its own size; three quarters of the rise were right. A weight changes nothing."""
    here = session(step=2, latents=torch.zeros(1))
    watch = Monitor(here)
    line = [(1, torch.tensor([1.0])), (0, torch.tensor([3.0]))]
    watch.compare(0, 2.0, torch.tensor([-0.5]), line)
    found = read(watch, 3, [torch.tensor(7.0)])
    assert (found.computed, found.extrapolation_error, found.trust) == (True, 1.0, 0.75)
    assert found.sums == [7.0]
    watch.next_step()
    assert read(watch, 3, []).extrapolation_error is None
    assert not read(watch, 3, []).computed


@pytest.mark.parametrize(("factor", "jumped"), [(0.9, False), (1.1, True), (math.nan, True)])
def test_latents_jump_where_they_move_faster_than_a_sampler_moves_them(factor, jumped):
    here = session(latents=torch.zeros(1))
    watch = Monitor(here)
    watch.note_latents()
    here.latents = torch.ones(1)
    assert not read(watch, 1, []).jumped, "nothing is known of the step before"
    watch.note_latents()
    here.latents = here.latents + factor * MAX_SPEED_RATIO
    assert read(watch, 2, []).jumped == jumped


@pytest.mark.parametrize(("factor", "jumped"), [(0.9, False), (1.1, True)])
def test_a_prediction_that_jumps_explains_latents_that_do(factor, jumped):
    """The second prediction is ten times the first, computed or not: so may the latents' way be."""
    here = session(latents=torch.zeros(1))
    watch = Monitor(here)
    for step, size, way in ((1, 1.0, 1.0), (2, 10.0, 10.0 * factor * MAX_SPEED_RATIO)):
        watch.note_latents()
        watch.next_step()
        watch.note_prediction(0, 1.0, torch.tensor([size]))
        here.latents = here.latents + way
        found = read(watch, step, [])
    assert (found.jumped, found.computed) == (jumped, False)


FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 5.0}
SAMPLERS = {
    "euler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "unipc": diffusers.UniPCMultistepScheduler(**FLOW),
    "dpm++": diffusers.DPMSolverMultistepScheduler(**FLOW),
    "ddim": diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction"),
}
A, B = torch.randn(2, 1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(0))
CUTS = {
    "turns round": lambda step, at: A if step < at else -A,
    "is another one": lambda step, at: A if step < at else B,
    "flashes": lambda step, at: 5 * B if step == at else A,
    "grows": lambda step, at: A if step < at else 4 * B,
    "turns again and again": lambda step, at: (A, B, -A, -B)[7 * step // at % 4],
}


def jumps(scheduler, prediction, fault=None, steps=30):
    """The steps after which the latents jump, where a sampler gets these predictions."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps.tolist()
    here = SimpleNamespace(latents=torch.ones_like(A), time_of=times.__getitem__)
    watch, found = Monitor(here), []
    for step, time in enumerate(scheduler.timesteps):
        if step and read(watch, step, []).jumped:
            found.append(step - 1)
        watch.note_latents()
        watch.next_step()
        now = prediction(step)
        watch.note_prediction(0, 1.0, now)
        here.latents = scheduler.step(now, time, here.latents, return_dict=False)[0]
        if step == fault:
            here.latents = here.latents * 1.5
    return found


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_clip_with_a_cut_is_no_fault_and_latents_that_are_changed_are(sampler):
    """Samplers of several steps move the latents by differences of predictions too."""
    scheduler = SAMPLERS[sampler]
    for cut in CUTS.values():
        for at in range(2, 29, 5):
            assert jumps(scheduler, lambda step, cut=cut, at=at: cut(step, at)) == []
    for at in range(2, 29, 5):
        assert at in jumps(scheduler, lambda step: A, fault=at)


def test_a_lost_value_is_put_back_on_the_parabola_through_its_neighbours():
    """t² at times 10, 8, 6 and 4, of which one of two numbers at 8 is lost; the other, 5, is not. A
    value that was freed before its sum is known is lost too, and not restored."""
    losses = LostValues(session(latents=torch.zeros(1)))
    cached = {("target", "cond"): {s: torch.tensor([TIMES[s] ** 2, 5.0]) for s in range(4)}}
    cached["target", "cond"][1][0] = math.nan
    places = [(("target", "cond"), step) for step in range(4)]
    assert not losses.drop(cached, places, [1.0] * 4)
    assert not losses
    assert losses.drop(cached, [(("target", "cond"), 7)], [math.inf])
    assert not losses
    assert losses.drop(cached, places, [1.0, math.nan, 1.0, 1.0])
    assert losses and 1 not in cached["target", "cond"]
    losses.restore(cached["target", "cond"])
    assert cached["target", "cond"][1].tolist() == pytest.approx([64.0, 5.0])
    assert not losses
