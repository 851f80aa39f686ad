"""Finds the profile of a pipeline, loads it, and checks that it belongs to this pipeline.

In: a pipeline, or a profile that was given. Out: the profile, and notes on what was forced. A
model's profile may be in the model's own folder. Otherwise it is in the user's cache; its file name
has hashes of the weights and of the scheduler's behaviour.
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
_HASHED_EVERY = 40  # of every 40 tensors, the first 16 values of one are hashed
_HASHED_STEPS = 10  # steps of the short run that identifies a scheduler


def cache_folder() -> Path:
    """The folder of profiles that are not in a model's folder.

    It is `$DIT_ACCEL_CACHE`, or ~/.cache/dit-accel.
    """
    given = os.environ.get("DIT_ACCEL_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "dit-accel"


def cached_path(key: ProfileKey) -> Path:
    """The cache file for the profile with this key."""
    return cache_folder() / "profiles" / f"{key.weights}-{key.sampler}.safetensors"


def find_profile(pipe: Any) -> Path | None:
    """The path of the profile in the model's folder, or else in the user's cache; None if neither.

    Args:
        pipe: a pipeline, or the folder of a model; for a folder the cache is not searched.
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
    """Find, load and check the profile from which a pipeline's plans are made.

    Args:
        given: a profile, or its file; None: search for it.
        force: whether to use a profile even if it is of another pipeline.

    Returns:
        The profile, or None if there is none; and notes for the report.

    Raises:
        ProfileError: the profile is of another pipeline and not forced; or as in `Profile.load`.
        FileNotFoundError: the given file does not exist.
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
            f"the profile was measured on another pipeline: {differences}. Calibrate this one, or "
            "pass force=True"
        )
    return profile, (f"The profile was forced. It is of another pipeline: {differences}.",)


def profile_key(pipe: Any, **clips: Any) -> ProfileKey:
    """The key for a profile of this pipeline.

    Args:
        clips: the fields of the key that describe the clips.
    """
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
            # The values are rounded, so that a model has one hash in bfloat16 and in float32.
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
    """The timesteps and coefficients of a scheduler in a short run, as text.

    If they depend on the clip's size, the text has some of the scheduler's settings instead.
    """
    try:
        short = planned_coefficients(scheduler, _HASHED_STEPS, (1.0,))
    except ValueError:
        names = ("shift", "use_dynamic_shifting", "num_train_timesteps", "prediction_type")
        return str([(name, scheduler.config.get(name)) for name in names])
    values = (*short.timesteps.tolist(), *short.coefficients.tolist())
    return str([f"{value:.3g}" for value in values])
