"""Every scheduler of diffusers that can be made, with settings that make another sampler of it."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SETTINGS: dict[str, list[dict[str, Any]]] = {  # what makes another sampler of a class
    "FlowMatchEulerDiscreteScheduler": [{"stochastic_sampling": True}],
    "DPMSolverMultistepScheduler": [{"algorithm_type": "sde-dpmsolver++"}],
    "DDIMScheduler": [{"thresholding": True}, {"clip_sample": False}],
    "DDIMParallelScheduler": [{"clip_sample": False}],
    "CogVideoXDDIMScheduler": [{"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}],
    "UniPCMultistepScheduler": [FLOW | {"solver_order": 3, "final_sigmas_type": "zero"}],
}
NAMES = sorted(
    name
    for name in dir(diffusers)
    if name.endswith("Scheduler") and not name.startswith(("Flax", "Consistency", "VQ"))
)


def schedulers_of(name: str) -> list[Any]:
    """The schedulers of a class that can be made: by its defaults, by flow, and by `SETTINGS`."""
    kind = getattr(diffusers, name)
    if type(kind).__name__ == "DummyObject" or not hasattr(kind, "set_timesteps"):
        return []
    known, made = inspect.signature(kind).parameters, []
    flow = [FLOW] if "use_flow_sigmas" in known else []
    for settings in ({}, *flow, *SETTINGS.get(name, ())):
        given = {key: value for key, value in settings.items() if key in known}
        try:
            made.append(kind(**given))
        except (TypeError, ValueError, ImportError, NotImplementedError):
            continue
    return made
