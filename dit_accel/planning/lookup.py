"""Finds the profile of a pipeline, loads it, and checks that it is of this pipeline.

In: a pipeline, or a profile that was given. Out: the profile, and notes on what was forced. A model
may have its profile in its own folder; otherwise it is in the user's cache, under hashes of the
weights and of what the scheduler does.
Knows files, the weights and the scheduler of a pipeline; makes no plan.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch

from dit_accel.core.compiling import uncompiled, uncompiled_path
from dit_accel.core.families import family_of, transformers_of
from dit_accel.core.private_names import weights_of
from dit_accel.planning.profile import Profile
from dit_accel.planning.profile_file import ProfileError
from dit_accel.planning.profile_key import ProfileKey
from dit_accel.planning.sampler import planned_coefficients

PROFILE_FILE = "dit-accel-profile.safetensors"
_HASHED_EVERY = 40  # tensors: the first 16 values of each are hashed
_HASHED_STEPS = 10  # of the short run that a scheduler is known by


def cache_folder() -> Path:
    """Of profiles of models that have none: `$DIT_ACCEL_CACHE`, or ~/.cache/dit-accel."""
    given = os.environ.get("DIT_ACCEL_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "dit-accel"


def cached_path(key: ProfileKey) -> Path:
    """The file in the cache for a profile."""
    return cache_folder() / "profiles" / f"{key.weights}-{key.sampler}.safetensors"


def find_profile(pipe: Any) -> Path | None:
    """The profile in a model's folder, else the one in the user's cache.

    Args:
        pipe: a pipeline; or the folder of a model, then the cache is not searched.
    """
    is_folder = isinstance(pipe, (str, os.PathLike))
    folder = pipe if is_folder else getattr(pipe.config, "_name_or_path", None) or ""
    path = Path(folder) / PROFILE_FILE
    if str(folder) and path.is_file():
        return path
    if is_folder:
        return None
    cached = cached_path(profile_key(pipe))
    return cached if cached.is_file() else None


def profile_for(
    pipe: Any, given: Profile | str | os.PathLike[str] | None = None, *, force: bool = False
) -> tuple[Profile | None, tuple[str, ...]]:
    """The profile that a pipeline is planned by: found, loaded and checked.

    Args:
        given: a profile, or its file; None: it is looked for.
        force: whether a profile of another pipeline is used all the same.

    Returns:
        The profile, None where there is none; and notes for the report.

    Raises:
        ProfileError: it is of another pipeline and not forced; or as `Profile.load`.
        FileNotFoundError: the file is not there.
    """
    source = given if given is not None else find_profile(pipe)
    if source is None:
        return None, ()
    profile = source if isinstance(source, Profile) else Profile.load(source)
    own = profile.key  # its guidance is compared when a run begins
    here = profile_key(pipe, steps=own.steps, parts=own.parts, guidance=own.guidance)
    differences = "; ".join(own.refusals(here))
    if not differences:
        return profile, ()
    if not force:
        raise ProfileError(
            f"the profile is of another pipeline: {differences}. Calibrate this one, or force it"
        )
    return profile, (f"The profile is of another pipeline, and was forced: {differences}.",)


def profile_key(pipe: Any, **clips: Any) -> ProfileKey:
    """The key of a profile of this pipeline; `clips`: fields of the key that say what it makes."""
    family = family_of(pipe)
    modules = transformers_of(pipe, family)
    weights = hashlib.sha256()
    for name, module in modules.items():
        module = uncompiled(module)
        known = dict(weights_of(module))
        loaded = module.state_dict().items()
        state = [(uncompiled_path(key), known.get(key, weight)) for key, weight in loaded]
        state.sort(key=lambda item: item[0])
        weights.update(f"{name} {[(key, tuple(weight.shape)) for key, weight in state]}".encode())
        for _, weight in state[::_HASHED_EVERY]:
            # rounded, so that a model in bfloat16 and in float32 has one hash
            some = weight.flatten()[:16].to(torch.bfloat16).double().cpu().tolist()
            weights.update(str([f"{value:.2g}" for value in some]).encode())
    sampler = hashlib.sha256(_behaviour(pipe.scheduler).encode())
    return ProfileKey(
        pipeline=family.pipelines[0],
        transformer=type(uncompiled(next(iter(modules.values())))).__name__,
        scheduler=type(pipe.scheduler).__name__,
        weights=weights.hexdigest()[:16],
        sampler=sampler.hexdigest()[:16],
        **clips,
    )


def _behaviour(scheduler: Any) -> str:
    """What a scheduler does in a short run; if that needs the clip's size, some of its settings."""
    try:
        short = planned_coefficients(scheduler, _HASHED_STEPS, (1.0,))
    except ValueError:
        names = ("shift", "use_dynamic_shifting", "num_train_timesteps", "prediction_type")
        return str([(name, scheduler.config.get(name)) for name in names])
    values = (*short.timesteps.tolist(), *short.coefficients.tolist())
    return str([f"{value:.3g}" for value in values])
