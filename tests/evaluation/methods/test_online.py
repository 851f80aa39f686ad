"""Caches that decide during the run, and RA-CFGCache: by hand, and on pipelines."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import small_denoisers
import torch
from tiny import tiny_clips

from dit_accel.core.generation import ClipSpec, batch_arguments
from dit_accel.core.interceptor import ForwardCall
from dit_accel.evaluation import speed
from dit_accel.evaluation.methods import METHODS, MethodContext, ra_cfg, runs
from dit_accel.evaluation.methods.online import DiCache, EasyCache
from dit_accel.evaluation.probe import Probe

STEPS = 10
CLIPS = tiny_clips(STEPS, 2)


def context(clips: tuple[ClipSpec, ...] = CLIPS) -> MethodContext:
    return MethodContext(CLIPS[0], lambda name, measure: measure(lambda: None),
                         calibration_clips=clips, batch=2)  # fmt: skip


def test_worked_example_of_easycache():
    """Ten steps, inputs 10, 9, 8, ...; the denoiser returns twice its input.

    Steps 0 and 1 are computed, as the first fifth. Outputs change twice as fast as inputs: the rate
    is 2. At step 2 the input has changed by 1 and the last output was 18: the drift is 2 / 18 =
    0.11, which stays below 0.25, so the step is reused: 8 + (18 - 9) = 17. At step 3 another 0.11
    makes 0.22: 7 + 9 = 16. At step 4 the sum would be 0.33: it is computed, 12.
    """
    session: Any = SimpleNamespace(step=0, transformer="transformer", branch="cond")
    cache, computed = EasyCache(session, 0.25), []
    cache.run_begins(10)

    def forward(call: ForwardCall) -> tuple[torch.Tensor]:
        computed.append(session.step)
        return (2 * call.latents,)

    outputs = []
    for step in range(5):
        session.step = step
        cache.step_begins(step)
        call = ForwardCall("transformer", (), {"hidden_states": torch.tensor([10.0 - step])})
        outputs.append(float(cache.around(call, forward)[0]))
    assert outputs == [20, 18, 17, 16, 12]
    assert computed == [0, 1, 4]


def test_dicache_combines_two_anchors_by_the_first_blocks_residual():
    """The residual went from 10 to 20 while the first block's went from 1 to 2; now that is 2.2,
    1.2 times the way: 10 + 1.2 x 10 = 22. A share beyond 1.5 counts as 1.5."""
    anchors = [(torch.tensor([10.0]), torch.tensor([1.0])),
               (torch.tensor([20.0]), torch.tensor([2.0]))]  # fmt: skip
    for shallow, wanted in ((2.2, 22.0), (9.0, 25.0), (1.5, 20.0)):
        stored = {"anchors": anchors, "shallow": torch.tensor([shallow])}
        assert float(DiCache._residual(stored)) == pytest.approx(wanted)


@pytest.mark.parametrize("name", ["easycache", "dicache"])
def test_a_threshold_of_zero_is_the_stock_pipeline_and_a_large_one_is_not(pipe, name):
    stock = runs.final_latents(pipe, CLIPS[:1], 1)

    def run(threshold: float) -> tuple[torch.Tensor, int]:
        with Probe(pipe) as probe, METHODS[name].apply(pipe, threshold, context()):
            probe.loop_begins()
            found = runs.final_latents(pipe, CLIPS[:1], 1)
            probe.steps_done(1)
        return found, sum(map(sum, probe.computed.values()))

    (neutral, all_), (loose, some) = run(0.0), run(1e9)
    assert torch.equal(neutral, stock) and not torch.equal(loose, stock)
    blocks, first = 3, 3 if name == "dicache" else 0  # places a block; those of the probe
    assert all_ == 2 * STEPS * 3 * blocks
    assert some == 2 * (3 * 3 * blocks + 7 * first)  # steps 0, 1 and the last are computed
    assert torch.equal(runs.final_latents(pipe, CLIPS[:1], 1), stock)


@pytest.mark.parametrize("name", ["spectrum", "ra-cfg-cache"])
def test_rows_by_steps_compute_so_many(pipe, name):
    with METHODS[name].apply(pipe, 4, context()) as handle:
        assert runs.final_latents(pipe, CLIPS, 2).isfinite().all()
        assert handle.report is not None and handle.report().steps_computed == 4
    # two clips uncached, and six probes of both that compute nine of ten steps
    assert handle.calibration_runs == (0 if name == "spectrum" else pytest.approx(2 + 2 * 6 * 0.9))


def test_ra_cfg_windows_end_where_the_errors_reach_the_threshold():
    """Reuse costs 1 a step: a threshold of 2 ends a window after one reused step."""
    errors = np.triu(np.ones((6, 6)), 1)
    assert ra_cfg.windows(errors, 2.0) == [0, 2, 4]
    assert ra_cfg.windows(errors, 0.5) == [0, 1, 2, 3, 4, 5]
    steep = errors * np.array([1, 1, 1, 1, 9, 9])  # late errors cost more
    assert ra_cfg.windows_of(steep, 3)[1:] == [4, 5]
    for count in range(1, 7):
        assert len(ra_cfg.windows_of(errors, count)) == count


@pytest.mark.parametrize("name", ["hunyuan-video", "cogvideox-2b", "ltx-video"])
def test_easycache_runs_on_every_family_and_dicache_says_where_it_does_not(name):
    case = small_denoisers.trial(name)
    pipe = speed.build(case)
    given = speed.embeddings(case.prompt, case.guidance, "cpu", torch.float32)
    own = dataclasses.replace(context(), clip=dataclasses.replace(case.clip, steps=6))
    arguments = batch_arguments(pipe, [case.clip]) | given | {"output_type": "latent"}
    with METHODS["easycache"].apply(pipe, 0.2, own):
        assert pipe(**arguments).frames.isfinite().all()
    if name == "ltx-video":
        with METHODS["dicache"].apply(pipe, 0.2, own):
            assert pipe(**arguments).frames.isfinite().all()
    else:
        refused = pytest.raises(ValueError, match="accepted: families whose blocks return tokens")
        with refused, METHODS["dicache"].apply(pipe, 0.2, own):
            pass
