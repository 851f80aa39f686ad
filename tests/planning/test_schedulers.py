"""Every scheduler of diffusers that the tiny pipeline takes: plans work, or a refusal by name."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest
import tiny
import torch

from dit_accel import accelerate

STEPS = 12
CALL = tiny.CALL | {"num_inference_steps": STEPS, "output_type": "latent"}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
NAMES = sorted(
    name
    for name in dir(diffusers)
    if name.endswith("Scheduler") and not name.startswith(("Flax", "Consistency", "VQ"))
)
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in NAMES),
    *((name, {"flow": True}) for name in NAMES),
    ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("DDIMScheduler", {"thresholding": True}),
]


def scheduler_of(name: str, settings: dict[str, Any]) -> Any:
    """The scheduler; a skip where it cannot be made so."""
    kind = getattr(diffusers, name)
    if type(kind).__name__ == "DummyObject" or not hasattr(kind, "set_timesteps"):
        pytest.skip("a package that it needs is missing")
    known = inspect.signature(kind).parameters
    given = FLOW if settings.get("flow") else settings
    if settings.get("flow") and "use_flow_sigmas" not in known:
        pytest.skip("no flow sigmas")
    try:
        return kind(**{key: value for key, value in given.items() if key in known})
    except (TypeError, ValueError, ImportError, NotImplementedError) as error:
        pytest.skip(f"cannot be made: {error}")


def run(pipe: Any) -> torch.Tensor:
    frames: torch.Tensor = pipe(**CALL, generator=torch.Generator().manual_seed(0)).frames
    return frames


@pytest.fixture(scope="module")
def tiny_pipe() -> Any:
    return tiny.tiny_wan()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=str)
def test_a_plan_works_or_the_scheduler_is_refused(tiny_pipe, name, settings):
    pipe = tiny_pipe
    pipe.scheduler = scheduler_of(name, settings)
    torch.manual_seed(1)  # some draw from the global generator
    try:
        stock = run(pipe)
    except Exception as error:
        pytest.skip(f"WanPipeline does not take it: {error}")
    if not stock.isfinite().all():
        pytest.skip("the stock clip is not finite")
    refused = None
    with accelerate(pipe, speedup=2.0) as handle:
        before = torch.get_rng_state()
        try:
            first = run(pipe)
        except ValueError as error:
            refused = str(error)
        else:
            assert torch.equal(first, stock), "the first run is recorded, and computed in full"
            assert run(pipe).isfinite().all()
            report = handle.report()  # some call the model more often than `num_inference_steps`
            assert report.steps_computed <= report.steps // 2 + 2
        assert torch.equal(torch.get_rng_state(), before), "nothing was drawn"
    assert refused is None or (name in refused and "accepted" in refused)
    torch.manual_seed(1)
    assert torch.equal(run(pipe), stock)
