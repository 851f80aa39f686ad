"""Replaces a model's scheduler by another one: finds which ones fit, and makes it.

In: a class name, a checked folder, and later the loaded pipeline. Out: errors before any weights
are read, and the pipeline with the scheduler.
Knows diffusers' schedulers by their behaviour: each is made from the folder's configuration, and
its noise levels are compared. Errors name the argument `scheduler`.
Source: ours.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from dit_accel.models.families import Family
from dit_accel.models.folder import LoadableModel, ModelError
from dit_accel.models.json_file import read_object

TRIAL_STEPS = 8  # steps of a trial
_COUNT = {"num_inference_steps": TRIAL_STEPS}
GIVE_MU = ("ltx",)  # families whose pipelines pass a shift to `set_timesteps`


def check(name: str, model: LoadableModel) -> None:
    """Refuse a scheduler that this model's pipeline cannot call, or with other noise levels.

    Raises:
        ModelError: the scheduler does not fit; the message names those that do.
    """
    import diffusers

    source = model.folder / "scheduler" / "scheduler_config.json"
    config = read_object(source) if source.is_file() else {}
    entry = model.index.get("scheduler")
    own = str(entry[1]) if isinstance(entry, list) else ""
    names = [one for one in dir(diffusers) if one.endswith("Scheduler") and "Inverse" not in one]

    def suits(one: str) -> bool:
        return one == own or _suits(getattr(diffusers, one), own, config, model.family)

    if name not in names or not suits(name):
        accepted = ", ".join(filter(suits, names))
        raise ModelError(
            f"scheduler is {name!r}; accepted in place of {own}: {accepted}. Others have other "
            "noise levels, or this pipeline cannot call them"
        )


def replace(pipe: Any, name: str) -> None:
    """Give a pipeline another scheduler with the settings of its own one, including shift and kind
    of prediction."""
    import diffusers

    own = pipe.scheduler
    pipe.scheduler = _made(getattr(diffusers, name), type(own).__name__, dict(own.config))


def _suits(kind: Any, own: str, config: dict[str, Any], family: Family) -> bool:
    """Whether a scheduler works with a model's kind of prediction, at the noise levels of its
    training."""
    import diffusers

    known = inspect.signature(kind.__init__).parameters
    if _is_flow(own, config):
        able = "use_flow_sigmas" in known or kind.__name__.startswith("FlowMatchEuler")
    else:
        able = "beta_schedule" in known and "prediction_type" in known
    if not able:
        return False
    try:
        made = _made(kind, own, config)
        more = {"mu": 1.0} if family.name in GIVE_MU else {}
        levels = np.linspace(1.0, 1 / TRIAL_STEPS, TRIAL_STEPS)
        made.set_timesteps(**({"sigmas": levels} if family.sigmas else _COUNT), **more)
    except Exception:  # schedulers may raise any error
        return False
    stock: Any = getattr(diffusers, own, None)
    return _is_flow(own, config) or stock is None or _alike(made, stock.from_config(config))


def _alike(first: Any, second: Any) -> bool:
    """Whether two schedulers have the same noise level at each timestep of the training."""
    import torch

    levels = [getattr(one, "alphas_cumprod", torch.ones(0)) for one in (first, second)]
    same = levels[0].shape == levels[1].shape
    return same and torch.allclose(levels[0].double(), levels[1].double(), atol=1e-4)


def _is_flow(own: str, config: dict[str, Any]) -> bool:
    return "FlowMatch" in own or bool(config.get("use_flow_sigmas"))


def _made(kind: Any, own: str, config: dict[str, Any]) -> Any:
    known = inspect.signature(kind.__init__).parameters
    shift = config.get("flow_shift") or config.get("shift") or 1.0
    more: dict[str, Any] = {}
    if _is_flow(own, config) and "use_flow_sigmas" in known:
        more = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
    elif _is_flow(own, config):
        more = {"shift": shift}
    return kind.from_config(config, **more)
