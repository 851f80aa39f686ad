"""Solvers at fewer steps: their nodes, their steps, and the rows that carry them out."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import small_denoisers
import torch
from calibrations import measured_once
from tiny import tiny_clips

from dit_accel.core.generation import ClipSpec, batch_arguments
from dit_accel.evaluation import speed
from dit_accel.evaluation.methods import METHODS, MethodContext, parse_list, runs, samplers
from dit_accel.evaluation.methods.samplers import DiffusersSolver, sampled
from dit_accel.planning.nodes import Nodes
from dit_accel.planning.stock_nodes import kind_of, shift_nodes, spread, stock_nodes

STEPS = 6
CLIPS = tiny_clips(STEPS, 2)
FLOW = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
DDIM = diffusers.CogVideoXDDIMScheduler(
    prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing",
    snr_shift_scale=1.0, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
)  # fmt: skip


def context(clips: tuple[ClipSpec, ...] = (), **others: Any) -> MethodContext:
    return MethodContext(CLIPS[0], measured_once(), calibration_clips=clips, batch=2, **others)


@pytest.mark.parametrize("kind", ["flow", "v"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("UniPCMultistepScheduler", {"solver_order": 2}),
        ("UniPCMultistepScheduler", {"solver_order": 3, "solver_type": "bh1"}),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}),
        ("DEISMultistepScheduler", {"solver_order": 3}),
    ],
)
def test_a_solver_on_diffusers_own_nodes_steps_as_diffusers_does(kind, name, options):
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    settings = flow if kind == "flow" else {"prediction_type": "v_prediction"}
    theirs = getattr(diffusers, name)(**settings, **options)
    theirs.set_timesteps(9)
    theirs.set_begin_index(0)
    theirs.sigmas[-1] = last = 1e-4  # where every formula is finite
    sigmas = theirs.sigmas.double()
    times = sigmas if kind == "flow" else sigmas.atan()
    nodes = Nodes(kind, times, theirs.timesteps.double())
    ours = DiffusersSolver(SimpleNamespace(config=theirs.config), nodes, name, last=last, **options)
    generator = torch.Generator().manual_seed(0)
    a = b = torch.randn(1, 2, 1, 3, 3, generator=generator)
    for step in range(9):
        prediction = torch.randn(a.shape, generator=generator)
        a = theirs.step(prediction, theirs.timesteps[step], a, return_dict=False)[0]
        b = ours.step(step, prediction, b)
    assert a.isfinite().all() and a == pytest.approx(b, abs=2e-5)


@pytest.mark.parametrize("scheduler", [FLOW, DDIM])
@pytest.mark.parametrize("name", list(samplers.SOLVERS))
def test_solvers_near_the_exact_clip_where_the_model_knows_it(scheduler, name):
    """A model that always predicts the same clip x0 from the latents: every solver ends near x0,
    the nearer the more steps."""
    stock = stock_nodes(scheduler, 40)
    x0 = torch.linspace(-1, 1, 8).view(1, 2, 1, 2, 2)

    def run(count: int) -> float:
        nodes = spread(stock, count, scheduler)
        stepper = samplers.SOLVERS[name][1](scheduler, nodes)
        x = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
        for step in range(count):
            alpha, sigma = float(nodes.alphas[step]), float(nodes.sigmas[step])
            noise = (x - alpha * x0) / sigma
            v = noise - x0 if nodes.kind == "flow" else alpha * noise - sigma * x0
            x = stepper.step(step, v, x)
        return float((x - x0).norm() / x0.norm())

    assert run(20) < 0.02 and run(20) <= run(4) + 1e-3


def test_a_flow_shift_on_top_of_the_stock_one_is_their_product():
    both = stock_nodes(diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0), 8, [0.0] * 8)
    stock = stock_nodes(FLOW, 8, [0.0] * 8)
    assert shift_nodes(both, 3.0, FLOW).times == pytest.approx(stock.times, abs=1e-6)
    assert shift_nodes(stock, 1.0, FLOW) is stock
    moved = shift_nodes(stock_nodes(DDIM, 10), 0.5, DDIM)
    assert moved.labels.tolist() == moved.labels.round().tolist()
    assert (moved.labels < stock_nodes(DDIM, 10).labels)[1:].all()


def test_nodes_are_spread_over_the_uncached_schedule():
    stock = stock_nodes(FLOW, 8)
    assert spread(stock, 4, FLOW).times == pytest.approx(stock.times[::2])
    assert spread(stock, 8, FLOW).times == pytest.approx(stock.times)
    assert len(spread(stock_nodes(DDIM, 50), 17, DDIM)) == 17


def test_unknown_schedules_are_refused_by_name():
    with pytest.raises(ValueError, match="DDIMScheduler has a noise schedule that is not known"):
        kind_of(diffusers.DDIMScheduler(prediction_type="epsilon"))


def test_euler_on_the_stock_nodes_is_the_stock_pipeline(pipe):
    stock = runs.final_latents(pipe, CLIPS, 2)
    before = pipe.scheduler
    with sampled(pipe, lambda nodes: nodes, samplers.adams_bashforth_solver(1)):
        ours = runs.final_latents(pipe, CLIPS, 2)
    assert ours == pytest.approx(stock, abs=1e-5)
    assert pipe.scheduler is before
    assert torch.equal(runs.final_latents(pipe, CLIPS, 2), stock)
    assert pipe.config["scheduler"][1] == "FlowMatchEulerDiscreteScheduler"


def test_a_row_sweeps_the_shift_and_states_its_calibration(pipe):
    with METHODS["ab-2"].apply(pipe, 3, context(CLIPS)) as handle:
        found = runs.final_latents(pipe, CLIPS, 2, handle.overrides)
        assert len(pipe.scheduler.timesteps) == 3
    # each of two clips: once uncached, and seven shifts at half its steps
    assert handle.calibration_runs == 2 * (1 + 7 * 0.5)
    assert "the best of 7" in handle.remarks[0]
    wanted = runs.final_latents(pipe, CLIPS, 2)
    with METHODS["ab-2"].apply(pipe, 3, context()) as plain:
        stock_shift = runs.final_latents(pipe, CLIPS, 2, plain.overrides)
    assert plain.calibration_runs == 0
    assert runs.fidelity(found, wanted) >= runs.fidelity(stock_shift, wanted)


def test_as_many_steps_as_the_clip_has_are_refused(pipe):
    refused = pytest.raises(ValueError, match="unipc-2 is 6; accepted: 1 to 5")
    with refused, METHODS["unipc-2"].apply(pipe, STEPS, context()):
        pass
    assert [s.number for s in parse_list("ab-2:*", steps=20)] == [17, 13, 10, 8]


@pytest.mark.parametrize("name", ["hunyuan-video", "cogvideox-2b", "ltx-video"])
def test_solvers_run_on_every_family(name):
    case = small_denoisers.trial(name)
    pipe = speed.build(case)
    given = speed.embeddings(case.prompt, case.guidance, "cpu", torch.float32)
    own = dataclasses.replace(context(), clip=dataclasses.replace(case.clip, steps=STEPS))
    for method in ("unipc-3", "dpmpp-2m", "deis-3", "ab-3"):
        with METHODS[method].apply(pipe, 3, own) as handle:
            arguments = batch_arguments(pipe, [case.clip]) | given | {"output_type": "latent"}
            assert pipe(**arguments | handle.overrides).frames.isfinite().all()
