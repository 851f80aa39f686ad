"""What a run aims at, decided before it: a quality or a speed by a profile, else a threshold.

With none of them given it is a quality of 36 dB where the model has a profile that suits the run,
else the default threshold.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_accel.caching.windows import DEFAULT_THRESHOLD
from dit_accel.cli.common.errors import BadInput
from dit_accel.cli.run.settings import Settings

if TYPE_CHECKING:
    from dit_accel.planning.prediction import PlanChoice
    from dit_accel.planning.profile import Profile
    from dit_accel.planning.text import Text

CALIBRATE = "`dit-accel calibrate` measures one"


@dataclass(frozen=True)
class RunTarget:
    """Settings with every target resolved; the decision where there is a plan; remarks in words;
    the prompt's text, where it was encoded to decide."""

    settings: Settings
    choice: PlanChoice | None = None
    remarks: tuple[str, ...] = ()
    text: Text | None = field(default=None, compare=False, repr=False)


def read_profile(path: str | Path) -> Profile:
    """The profile of a file.

    Raises:
        BadInput: naming `--profile`, and what is wrong with it.
    """
    from dit_accel.planning.profile import Profile, ProfileError

    try:
        return Profile.load(path)
    except (ProfileError, OSError) as error:
        raise BadInput(f"--profile is {str(path)!r}: {error}") from error


def check_steps(settings: Settings) -> None:
    """Refuse a plan for a run that is too short for one, before anything is loaded.

    Raises:
        BadInput: naming `--steps`.
    """
    from dit_accel.planning.selection import MIN_PLANNED_STEPS

    planned = settings.quality is not None or settings.speedup is not None
    if planned and settings.steps < MIN_PLANNED_STEPS:
        target = "--quality" if settings.quality is not None else "--speedup"
        raise BadInput(
            f"--steps is {settings.steps}: {target} needs at least {MIN_PLANNED_STEPS}, for with "
            "fewer each step is too far from the next to serve it; pass --threshold"
        )


def resolve_target(pipe: Any, settings: Settings, *, windowed: bool) -> RunTarget:
    """Decide for a run.

    Args:
        pipe: loaded.
        settings: as the user asked.
        windowed: whether windows were asked for.

    Raises:
        BadInput: there is no profile, or it does not suit the pipeline or the run.
    """
    if windowed:
        return _by_threshold(settings)
    given = settings.quality is not None or settings.speedup is not None
    path = settings.profile or _found(pipe)
    if path is None:
        if not given:
            return _by_threshold(settings)
        option = _option(settings)
        raise BadInput(
            f"{option} needs a profile of this model, and none was found in its folder or the "
            f"cache: {CALIBRATE}; or pass --profile or --threshold"
        )
    if given:
        return _by_profile(pipe, settings, path)
    from dit_accel.config import DEFAULT_QUALITY

    try:
        chosen = dataclasses.replace(settings, quality=DEFAULT_QUALITY)
        return _by_profile(pipe, chosen, path)
    except BadInput as error:
        if settings.profile is not None:
            raise
        aim = _by_threshold(settings)
        note = f"went on with --threshold {DEFAULT_THRESHOLD:g}: {error}"
        return dataclasses.replace(aim, remarks=(note,))


def _by_threshold(settings: Settings) -> RunTarget:
    threshold = DEFAULT_THRESHOLD if settings.threshold is None else settings.threshold
    return RunTarget(dataclasses.replace(settings, threshold=threshold))


def _by_profile(pipe: Any, settings: Settings, path: str) -> RunTarget:
    from dit_accel.core.families import family_of
    from dit_accel.planning import selection
    from dit_accel.planning.lookup import profile_for

    try:
        profile, _ = profile_for(pipe, path, force=settings.force)
    except (ValueError, OSError) as error:
        text = str(error).replace("or force it", "or pass --force")
        raise BadInput(f"--profile is {path!r}: {text}") from error
    assert profile is not None  # a path was given
    said = _text(pipe, settings, profile)
    separate = family_of(pipe).branches == "separate"
    try:
        coefficients = selection.coefficients_before_run(
            profile, pipe.scheduler, settings.steps, settings.guidance, separate=separate
        )
        choice = None
        if coefficients is not None:
            choice = selection.choose(
                profile, coefficients, selection.Target(settings.quality, settings.speedup),
                static=settings.static, text=said.pooled if said is not None else None,
                size=(settings.height, settings.width, settings.frames),
            )  # fmt: skip
    except ValueError as error:
        raise BadInput(f"{_option(settings)}: {error}") from error
    return RunTarget(dataclasses.replace(settings, profile=path), choice, text=said)


def _text(pipe: Any, settings: Settings, profile: Profile) -> Text | None:
    """Of the run's prompt, where the profile knows what texts tell."""
    from dit_accel.planning import text as prompt_text

    if profile.difficulty is None or settings.layout is not None:
        return None
    return prompt_text.encode(pipe, [settings.prompt], settings.max_sequence_length)


def _found(pipe: Any) -> str | None:
    from dit_accel.planning.lookup import find_profile

    path = find_profile(pipe)
    return str(path) if path is not None else None


def _option(settings: Settings) -> str:
    if settings.quality is not None:
        return f"--quality {settings.quality:g}"
    return f"--speedup {settings.speedup:g}"
