"""Where the profile of a pipeline lies, and whether it is of this pipeline.

A model may bring its profile in its own folder; else it lies in the user's cache, under a name made
of the weights and of what the scheduler does.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dit_accel.identity import identify
from dit_accel.profile import Identity, Profile, ProfileError

FILE = "dit-accel-profile.safetensors"


def cache_folder() -> Path:
    """Where profiles of models lie that bring none: `$DIT_ACCEL_CACHE`, or ~/.cache/dit-accel."""
    given = os.environ.get("DIT_ACCEL_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "dit-accel"


def cached_path(identity: Identity) -> Path:
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
    mine = profile.identity  # its guidance is compared when a run begins
    here = identify(pipe, steps=mine.steps, parts=mine.parts, guidance=mine.guidance)
    differences = profile.identity.refusals(here)
    if differences and not force:
        raise ProfileError(
            f"the profile is of another pipeline: {'; '.join(differences)}. "
            "Calibrate this one, or force it"
        )
    if differences:
        return (f"The profile is of another pipeline, and was forced: {'; '.join(differences)}.",)
    return ()
