"""Finds the data about a model before a run: its profile, what was learnt from runs, and the prior.

In: a model's folder. Out: the file of its profile and its `Learning`, or a substitute for a
profile. The cache's files are named after weights, so the model is loaded if there is any file that
could be its own. Knows where these files are; makes no plan. Ours.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from dit_accel.cli.common.errors import RunFailed, refused, say
from dit_accel.cli.common.text import spinner

if TYPE_CHECKING:
    from dit_accel.caching.learning import Learning
    from dit_accel.models.folder import LoadableModel
    from dit_accel.models.setup import Setup
    from dit_accel.planning.profile import Profile

CALIBRATE = "`dit-accel calibrate` makes one"
MOST_TIMESTEPS = 1_000_000  # a scheduler makes tables of this length


def find_known(
    model: LoadableModel, setup: Setup, *, device: str, dtype: str, learn: bool,
    given: Path | None = None,
) -> tuple[Path | None, Learning | None]:  # fmt: skip
    """The profile in a model's folder, else in the cache; and what was learnt about the pipeline.

    Args:
        setup, device, dtype: how the pipeline is loaded; what was learnt belongs to one dtype.
        learn: whether to look for what was learnt.
        given: a profile to use instead of searching for one.
    """
    from dit_accel.caching.learning import learning_of
    from dit_accel.models import setup as setups
    from dit_accel.planning import learned_file, lookup
    from dit_accel.planning.learned import is_off

    path = given or lookup.find_profile(model.folder)
    cache = lookup.cache_folder()
    learn = learn and not is_off() and any((cache / "learned").glob(f"*{learned_file.SUFFIX}"))
    if not learn and (path or not any((cache / "profiles").glob("*.safetensors"))):
        return path, None
    plain = dataclasses.replace(setup, offload="none", compile=False, attention_backend=None)
    with spinner(f"loading {model.name} to find what is known of it"):
        pipe = setups.load(model, plain, device=device, dtype=dtype)
    learning = learning_of(pipe) if learn else None
    if learning is not None and learning.problem is not None:
        say(f"what was learnt is not used: {learning.problem}", kind="note")
    return path or lookup.find_profile(pipe), learning


def prior_of(
    model: LoadableModel, steps: int, guidance: float, scheduler: str | None = None,
    guidance_2: float | None = None,
) -> Profile | None:  # fmt: skip
    """The profile that is used for a model that was not measured; None: there is none.

    Args:
        scheduler: the class that replaces the folder's scheduler.
        guidance_2: guidance of the second of two experts; None: as for the first.
    """
    from dit_accel.models import samplers
    from dit_accel.models.families import FAMILIES
    from dit_accel.planning import selection

    transformer = str((model.index.get("transformer") or ("", ""))[1])
    family = FAMILIES.get(transformer)
    if family is None:
        return None
    holder = SimpleNamespace(scheduler=scheduler_of(model))
    if scheduler is not None:
        samplers.replace(holder, scheduler)
    with refused(f"--model is {model.name!r}: "):
        profile = selection.prior_before_run(
            holder.scheduler, steps, guidance, separate=family.branches == "separate",
            sigmas=family.sigmas,
            boundary=_boundary(model, holder.scheduler), guidance_2=guidance_2,
        )  # fmt: skip
    if profile is None:
        return None
    key = dataclasses.replace(profile.key, transformer=transformer)
    return dataclasses.replace(profile, key=key)


def _boundary(model: LoadableModel, scheduler: Any) -> float | None:
    """The timestep below which the second of two experts runs; None: there is only one."""
    share = model.index.get("boundary_ratio")
    if not isinstance(share, (int, float)) or len(model.denoisers) < 2:
        return None
    return float(share * scheduler.config.num_train_timesteps)


def scheduler_of(model: LoadableModel) -> Any:
    """The scheduler of a model's folder, without the model."""
    import diffusers

    from dit_accel.models.json_file import read_object, whole_number

    entry = model.index.get("scheduler")
    name = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
    kind: Any = getattr(diffusers, str(name), None)
    is_scheduler = isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)
    if not is_scheduler:
        problem = f"{name!r:.80}, which diffusers does not have"
        raise RunFailed(f"the scheduler of {model.name} is {problem}")
    source = model.folder / "scheduler" / "scheduler_config.json"
    try:
        timesteps = whole_number(source, read_object(source), "num_train_timesteps", 1)
        if timesteps > MOST_TIMESTEPS:
            raise ValueError(
                f"num_train_timesteps is {timesteps}; accepted: at most {MOST_TIMESTEPS}"
            )
        loader: Any = kind
        return loader.from_pretrained(str(source.parent))
    except Exception as error:  # for a damaged configuration, diffusers may raise any error
        raise RunFailed(f"the scheduler of {model.name} cannot be loaded: {error}") from error
