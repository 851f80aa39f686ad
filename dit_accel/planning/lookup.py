"""Where the profile of a pipeline lies, and whether it is of this pipeline.

A model may bring its profile in its own folder; else it lies in the user's cache, under a name made
of the weights and of what the scheduler does.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch

from dit_accel.core.families import family_of, transformers_of
from dit_accel.planning.profile import Profile, ProfileError, ProfileKey
from dit_accel.planning.sampler import planned_coefficients

FILE = "dit-accel-profile.safetensors"


def cache_folder() -> Path:
    """Where profiles of models lie that bring none: `$DIT_ACCEL_CACHE`, or ~/.cache/dit-accel."""
    given = os.environ.get("DIT_ACCEL_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "dit-accel"


def cached_path(identity: ProfileKey) -> Path:
    """The file in the cache for a pipeline's profile."""
    return cache_folder() / "profiles" / f"{identity.weights}-{identity.sampler}.safetensors"


def find_profile(pipe: Any) -> Path | None:
    """The profile of a pipeline, or of a model's folder: in its folder, else in the user's cache.

    Args:
        pipe: a pipeline, or the folder of a model.
    """
    folder = pipe
    if not isinstance(pipe, (str, os.PathLike)):
        folder = getattr(pipe.config, "_name_or_path", None) or ""
    path = Path(folder) / FILE
    if str(folder) and path.is_file():
        return path
    if isinstance(pipe, (str, os.PathLike)):
        return None
    cached = cached_path(identify(pipe))
    return cached if cached.is_file() else None


def profile_for(
    pipe: Any, given: Profile | str | os.PathLike[str] | None = None, *, force: bool = False
) -> tuple[Profile | None, tuple[str, ...]]:
    """The profile that a pipeline is planned by, found, loaded and checked.

    Args:
        given: a profile, or its file; None: it is looked for.
        force: whether one of another pipeline is used all the same.

    Returns:
        the profile, None where there is none; and what the report must say of it.

    Raises:
        ProfileError: it is of another pipeline, and is not forced; or as `Profile.load`.
        FileNotFoundError: the file is not there.
    """
    source = given if given is not None else find_profile(pipe)
    if source is None:
        return None, ()
    profile = source if isinstance(source, Profile) else Profile.load(source)
    mine = profile.key  # its guidance is compared when a run begins
    here = identify(pipe, steps=mine.steps, parts=mine.parts, guidance=mine.guidance)
    differences = "; ".join(mine.refusals(here))
    if not differences:
        return profile, ()
    if not force:
        raise ProfileError(
            f"the profile is of another pipeline: {differences}. Calibrate this one, or force it"
        )
    return profile, (f"The profile is of another pipeline, and was forced: {differences}.",)


_SAMPLED = 40  # every so many tensors of the weights are looked at, the first values of each
_STEPS = 10  # of the short run


def identify(
    pipe: Any, *, steps: int = 0, guidance: float = 0.0, height: int = 0, width: int = 0,
    frames: int = 0, dtype: str = "", parts: int = 1,
) -> ProfileKey:  # fmt: skip
    """What a profile of this pipeline, and of such clips, is of."""
    family = family_of(pipe)
    modules = transformers_of(pipe, family)
    digest = hashlib.sha256()
    for name, module in modules.items():
        state = sorted(module.state_dict().items())
        digest.update(f"{name} {[(key, tuple(weight.shape)) for key, weight in state]}".encode())
        for _, weight in state[::_SAMPLED]:
            some = weight.flatten()[:16].to(torch.bfloat16).double().cpu().tolist()
            digest.update(str([f"{value:.2g}" for value in some]).encode())
    sampler = hashlib.sha256(_behaviour(pipe.scheduler).encode())
    return ProfileKey(
        pipeline=family.pipelines[0],
        transformer=type(next(iter(modules.values()))).__name__,
        scheduler=type(pipe.scheduler).__name__,
        weights=digest.hexdigest()[:16],
        sampler=sampler.hexdigest()[:16],
        parts=parts, steps=steps, guidance=guidance, height=height, width=width, frames=frames,
        dtype=dtype,
    )  # fmt: skip


def _behaviour(scheduler: Any) -> str:
    """What a scheduler does in a short run; of one that must be told more, some of its settings."""
    try:
        short = planned_coefficients(scheduler, _STEPS, (1.0,))
    except ValueError:
        names = ("shift", "use_dynamic_shifting", "num_train_timesteps", "prediction_type")
        return str([(name, scheduler.config.get(name)) for name in names])
    times, shares = short.timesteps.tolist(), short.coefficients.tolist()
    return str([f"{value:.3g}" for value in (*times, *shares)])
