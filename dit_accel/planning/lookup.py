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


def load_profile(given: Profile | str | os.PathLike[str]) -> Profile:
    """A profile, or the file of one.

    Raises:
        ProfileError, FileNotFoundError: as `Profile.load`.
    """
    return given if isinstance(given, Profile) else Profile.load(given)


def checked(profile: Profile, pipe: Any, *, force: bool) -> tuple[str, ...]:
    """What the report must say of a profile that is not quite of this pipeline.

    Raises:
        ProfileError: it is of another one, and is not forced.
    """
    mine = profile.key  # its guidance is compared when a run begins
    here = identify(pipe, steps=mine.steps, parts=mine.parts, guidance=mine.guidance)
    differences = profile.key.refusals(here)
    if differences and not force:
        raise ProfileError(
            f"the profile is of another pipeline: {'; '.join(differences)}. "
            "Calibrate this one, or force it"
        )
    if differences:
        return (f"The profile is of another pipeline, and was forced: {'; '.join(differences)}.",)
    return ()


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
