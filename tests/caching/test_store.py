"""Values under a memory cap: their bytes, what is read back, and what a run makes of it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from plan_runs import PLAN, STEPS, TWO_PARTS, NotingPolicy, inject, run

from dit_accel import accelerate
from dit_accel.caching.engine import CacheMemory
from dit_accel.caching.guard import GuardedPolicy
from dit_accel.caching.policy import PlanPolicy
from dit_accel.caching.store import TensorStore
from dit_accel.core.quantization import BITS, Packed, packed_bytes, typical_error
from dit_accel.planning.plan import Extrapolation, Plan

SIZE = 16 * 3 * 2 * 2 * 4  # bytes of a prediction of the tiny pipeline
MIX = (1.0, -3.0)
TIMES = [float(STEPS - step) for step in range(STEPS)]


def value(seed: int, count: int = 640) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def filled(memory: int | None, fewest: int, steps: int = 4) -> TensorStore:
    store = TensorStore(memory)
    store.begin(fewest)
    store.noise["target"] = value(99)
    for step in range(steps):
        store.branch("target", "cond")[step] = value(step)
    return store


# --- values ---


def test_without_a_cap_a_branch_hands_back_the_very_tensor():
    store, given = TensorStore(), value(0)
    store.branch("target", "cond")[3] = given
    assert store["target", "cond"][3] is given
    assert store.memory == CacheMemory(2560)
    assert store.notes() == ()


def test_the_oldest_are_packed_first_and_no_further_than_is_needed():
    """Five of 2560 bytes; 1320 in 16 bits, 680 in 8. The noise is the oldest, then by step."""
    store = filled(4 * 2560, fewest=8)
    values = store["target", "cond"]
    packed = [getattr(values.raw[step], "bits", None) for step in range(4)]
    assert (store.noise.raw["target"].bits, packed) == (16, [16, 16, None, None])
    assert store.memory.cached_bytes <= 4 * 2560 and store.packed_bits == 16
    values[4] = value(4)
    assert [getattr(values.raw[step], "bits", None) for step in range(5)] == [16, 16, 16, 16, None]
    store = filled(4040, fewest=8)
    bits = [store.noise.raw["target"].bits, *(v.bits for v in store["target", "cond"].raw.values())]
    assert bits == [8, 8, 8, 8, 16]
    assert store.memory.cached_bytes == store.memory.packed_bytes == 4 * 680 + 1320


@pytest.mark.parametrize("fewest", BITS)
def test_a_cap_that_can_be_met_is_met_at_every_moment(fewest):
    """Down to all values in the fewest bits; below that the note says how much there is."""
    least = 5 * packed_bytes(640, fewest)
    for memory in (least, least + 1, 2 * least, 5 * 2560):
        store = filled(memory, fewest)
        assert store.memory.cached_bytes <= memory
        assert store.notes() == ()
        for step in range(4):
            off = float((store["target", "cond"][step] - value(step)).norm() / value(step).norm())
            assert off < 1.3 * typical_error(fewest)
    store = filled(least - 1, fewest)
    (note,) = store.notes()
    assert note.startswith(
        f"cache_memory is {least - 1} bytes, but cached values took {least} bytes, "
    )
    assert f"packed to {fewest} bits" in note
    assert note.endswith("Values are not moved to the CPU, because the model itself is there.")
    assert ("With fewer bits, the packing error" in note) is (fewest > BITS[-1])


def test_half_precision_is_not_packed_into_as_many_bits_and_says_so():
    store = TensorStore(1)
    store.begin(16)
    store.branch("target", "cond")[0] = value(0).bfloat16()
    assert isinstance(store["target", "cond"].raw[0], torch.Tensor)
    assert store.notes() and "not packed" in store.notes()[0]


@pytest.mark.parametrize("memory", [None, 4000, 1])
def test_sums_are_finite_where_all_of_a_value_is_packed_or_not(memory):
    store = filled(memory, fewest=4)
    assert store.places() == [(("target", "cond"), step) for step in range(4)]
    assert torch.stack(store.sums()).isfinite().tolist() == [True] * 5
    spoilt = value(7)
    spoilt[65] = math.nan
    store.branch("target", "cond")[2] = spoilt
    assert torch.stack(store.sums()).isfinite().tolist() == [True, True, False, True, True]


def test_clearing_frees_all_and_a_new_run_counts_anew():
    store = filled(4000, fewest=8)
    store.clear()
    store.begin(8)
    assert (store, len(store.noise), store.memory.cached_bytes, store.packed_bits) == (
        {},
        0,
        0,
        None,
    )


# --- runs ---


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.tiny_wan()


def capped(pipe: Any, plan: Any, memory: int | None, fewest: int, **call: Any) -> Any:
    """Frames, latents and the report of a run under a cap."""
    policy = PlanPolicy(plan, MIX) if isinstance(plan, Plan) else plan
    policy.min_bits = fewest
    with accelerate(pipe, plan=policy) as handle:
        handle.executor.store.limit = memory
        frames = run(pipe, **call)
        return frames, handle.report()


def test_a_run_under_a_cap_holds_no_more_and_is_as_near_as_its_bits(pipe):
    plain, whole = capped(pipe, TWO_PARTS, None, 8)
    errors = {}
    for bits in BITS:
        memory = 9 * packed_bytes(SIZE // 4, bits)
        frames, report = capped(pipe, TWO_PARTS, memory, bits)
        assert report.cached_bytes <= memory < whole.cached_bytes
        assert (report.packed_bits, report.offloaded_bytes) == (bits, 0)
        assert 0 < report.packed_bytes <= report.cached_bytes
        assert f"packed to {bits} bits" in report.summary()
        errors[bits] = np.abs(frames - plain).max()
    assert 0 < errors[16] < errors[8] < errors[4]
    assert (whole.packed_bits, whole.packed_bytes) == (None, 0)


def test_a_cap_that_nothing_exceeds_changes_no_bit(pipe):
    plain, whole = capped(pipe, TWO_PARTS, None, 8)
    frames, report = capped(pipe, TWO_PARTS, whole.cached_bytes, 8)
    assert np.array_equal(frames, plain)
    assert (report.packed_bytes, report.notes) == (0, ())


def test_all_computed_is_bit_equal_under_the_tightest_cap(pipe):
    """What is handed on is never the packed value."""
    stock = run(pipe)
    frames, report = capped(pipe, NotingPolicy(Plan(STEPS, {}), MIX), 1, 4)
    assert np.array_equal(frames, stock)
    assert report.packed_bytes > 0 and report.notes[0].startswith("cache_memory is 1 bytes")


@pytest.mark.parametrize("where", ["as it came", "once packed"])
def test_a_packed_value_that_is_not_finite_is_never_used_and_is_put_back(pipe, where):
    """A prediction with a NaN, packed as it comes; or a scale that is lost later."""
    plan = Plan(
        STEPS, {2: Extrapolation(({1: 1.0},)), 4: Extrapolation(({3: 1.0, 1: 0.5, 0: 0.5},))}
    )
    policy = NotingPolicy(plan)
    policy.min_bits = 8
    with accelerate(pipe, plan=policy) as handle:
        store = handle.executor.store
        store.limit = 1

        def poison(tensors: Any) -> dict[str, Any]:
            values = store["target", "cond"]
            assert isinstance(values.raw[1], Packed)
            if where == "once packed":
                values.raw[1].scales[0] = math.nan
            else:
                spoilt = values[1].clone()
                spoilt[0, 0, 0, 0, 0] = math.nan
                values[1] = spoilt
            return {}

        frames = run(pipe, callback_on_step_end=inject(1, poison))
        assert handle.report().sites[0].computed == (0, 1, 2, 3, 5)
    assert policy.lost == [(1, "a cached value was not finite")]
    assert np.isfinite(frames).all()


def test_a_packed_noise_that_is_not_finite_is_reported(pipe):
    policy = NotingPolicy(Plan(STEPS, {2: Extrapolation(({1: 1.0},), noise_weight=0.5)}))
    with accelerate(pipe, plan=policy) as handle:
        noise = handle.executor.store.noise
        handle.executor.store.limit = 1

        def poison(tensors: Any) -> dict[str, Any]:
            noise.raw["target"].scales[0] = math.nan
            return {}

        assert np.isfinite(run(pipe, callback_on_step_end=inject(1, poison))).all()
    assert policy.invalid == [(1, "the cached noise was not finite")]


def test_errors_are_measured_on_packed_values_all_the_same(pipe):
    found = {}
    for memory in (None, 1):
        policy = NotingPolicy(PLAN, MIX)
        policy.min_bits = 8
        with accelerate(pipe, plan=policy) as handle:
            handle.executor.store.limit = memory
            run(pipe)
        found[memory] = policy.errors[3]
    assert found[1] == pytest.approx(found[None], rel=0.1) and found[1] != found[None]


def test_the_device_is_read_no_more_often_under_a_cap(pipe):
    """Packing waits for nothing."""
    policy = GuardedPolicy(TWO_PARTS, TIMES, MIX, min_bits=8)
    with accelerate(pipe, plan=policy) as handle:
        handle.executor.store.limit = 1
        run(pipe)
        assert handle.report().host_syncs == 3  # the computed steps but the last


# --- by a profile ---


def test_the_plan_says_how_few_bits_do_and_the_run_keeps_to_it(tiny_wan, tiny_profile):
    """A plan that leaves much may be packed further than one that leaves little: 300 dB allow no
    packing at all, -300 any."""
    pipe = tiny_wan()
    call = {"num_inference_steps": 10, "height": 16, "width": 16, "num_frames": 5}
    for left, bits in ((300.0, 16), (-300.0, 4)):
        candidates = tuple(
            replace(candidate, latents_db=torch.full_like(candidate.latents_db, left))
            for candidate in tiny_profile.candidates
        )
        profile = replace(tiny_profile, candidates=candidates)
        with accelerate(pipe, profile=profile, speedup=2, cache_memory=1, guard=False) as handle:
            run(pipe, **call)
            report = handle.report()
        assert report.packed_bits == bits
        assert report.packed_bytes == report.cached_bytes > 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_an_accelerator_what_does_not_fit_packed_waits_on_the_cpu():
    pipe = tiny.tiny_wan().to("cuda")
    plain, whole = capped(pipe, TWO_PARTS, None, 8)
    memory = 3 * packed_bytes(SIZE // 4, 16)
    frames, report = capped(pipe, TWO_PARTS, memory, 16)
    assert report.cached_bytes <= memory < whole.cached_bytes
    assert report.offloaded_bytes > 0 and report.packed_bits == 16
    assert report.notes == ()
    assert np.abs(frames - plain).max() < 0.01  # on the CPU 16 bits leave 0.0001, 8 bits 0.6
