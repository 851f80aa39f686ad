"""Decides the target of a run and, from the data about the pipeline, its plan, before the run.

In: a loaded pipeline and settings. Out: a `RunTarget` with the config that runs and the chosen
plan.
Knows where profiles are; `planning/selection.py` makes the choice itself. If no target was typed,
the target is 36 dB; if nothing is known about such runs, it is the default threshold. Ours.
"""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_accel.caching.windows import DEFAULT_THRESHOLD
from dit_accel.cli.common.errors import BadInput, refused, unreadable
from dit_accel.cli.run.known import CALIBRATE
from dit_accel.cli.run.settings import Settings
from dit_accel.config import PlannedConfig, QualityConfig, ThresholdConfig

if TYPE_CHECKING:
    from dit_accel.planning.choice import PlanChoice
    from dit_accel.planning.profile import Profile
    from dit_accel.planning.text import Text


@dataclass(frozen=True)
class RunTarget:
    """The target of a run.

    Args:
        settings: the settings, with the config that is carried out.
        choice: the plan; None if windows decide.
        remarks: notes for the user.
        text: the encoded prompt, if the choice needed it.
    """

    settings: Settings
    choice: PlanChoice | None = None
    remarks: tuple[str, ...] = ()
    text: Text | None = field(default=None, compare=False, repr=False)


def read_profile(path: str | Path) -> Profile:
    """The profile in a file. A file that cannot be read is refused."""
    from dit_accel.planning.profile import Profile
    from dit_accel.planning.profile_file import ProfileError

    with unreadable(f"--profile is {str(path)!r}: ", (ProfileError, OSError)):
        return Profile.load(path)


def check_planned_steps(settings: Settings, what: str) -> None:
    """Refuse a run that is too short for a plan or for its speedup, before anything is loaded."""
    from dit_accel.planning.selection import MIN_PLANNED_STEPS
    from dit_accel.planning.transfer import check_speedup

    steps = settings.loop_steps
    if steps < MIN_PLANNED_STEPS:
        given = f"--steps is {steps}"
        if settings.strength is not None:
            share = f"{steps} of {settings.steps} steps run"
            given = f"--strength is {settings.strength:g}, so that {share}"
        raise BadInput(
            f"{given}; accepted with {what}: {MIN_PLANNED_STEPS} or more, because fewer are too "
            "far apart to extrapolate. --threshold works with any number"
        )
    if settings.speedup is not None:
        with refused():
            check_speedup(settings.speedup, steps)


def resolve_target(pipe: Any, settings: Settings, *, strict: bool) -> RunTarget:
    """Decide the target of a run.

    Args:
        pipe: the loaded pipeline.
        settings: as they were typed.
        strict: whether an option of the acceleration was typed; else a threshold may be used
            instead.

    Raises:
        BadInput: there is no profile, or it does not suit the pipeline or the run.
    """
    from dit_accel.planning import lookup

    if not isinstance(settings.accel, PlannedConfig):
        return RunTarget(settings)
    path = settings.accel.profile or lookup.find_profile(pipe)
    try:
        if path is not None:
            return _by_profile(pipe, settings, settings.accel, str(path))
        return _by_prior(pipe, settings, settings.accel, may_record=strict)
    except BadInput as error:
        if strict:
            raise
        notes = (f"used --threshold {DEFAULT_THRESHOLD:g} instead: {error}",)
    accel = ThresholdConfig(layout=settings.accel.layout, scene=settings.accel.scene)
    return RunTarget(dataclasses.replace(settings, accel=accel), remarks=notes)


def _by_prior(
    pipe: Any, settings: Settings, accel: PlannedConfig, *, may_record: bool
) -> RunTarget:
    """The target of a model that was not measured, from the prior of other models.

    Args:
        may_record: whether a run that the prior does not cover may be computed in full, for later
            ones. If there is data to plan it from already, the run itself finds it.
    """
    from dit_accel.caching.chooser import keeps_noise
    from dit_accel.core.families import family_of
    from dit_accel.planning import selection

    option, family = target_option(settings.quality, settings.speedup), family_of(pipe)
    choice = None
    with refused(f"{option}: "):
        prior = _prior(pipe, settings)
        if prior is not None:
            run, target = prior.sampler, selection.Target(settings.quality, settings.speedup)
            profile = _learnt(pipe, accel, prior)
            choice = selection.choose(
                profile, run, target, static=accel.static, noise=keeps_noise(pipe, family)
            )
    if choice is None and not (may_record and accel.learns):
        raise BadInput(
            f"{option} needs a profile of this model, but none was found in its folder or the "
            f"cache, and the prior does not cover such runs; {CALIBRATE}, or pass --profile or "
            "--threshold"
        )
    accel = dataclasses.replace(accel, choice=choice)  # the printed plan is the one that runs
    return RunTarget(dataclasses.replace(settings, accel=accel), choice)


def _prior(pipe: Any, settings: Settings) -> Profile | None:
    from dit_accel.core.families import family_of
    from dit_accel.core.places import boundary_of
    from dit_accel.planning import selection

    family = family_of(pipe)
    if not family.blocks or settings.loop_steps != settings.steps:
        return None
    separate = family.branches == "separate"
    return selection.prior_before_run(
        pipe.scheduler, settings.steps, settings.guidance, separate=separate, sigmas=family.sigmas,
        boundary=boundary_of(pipe), guidance_2=settings.guidance_2,
    )  # fmt: skip


def planned_from(pipe: Any, settings: Settings) -> str | None:
    """The data that a run is planned from at present, as text; None: there is no data."""
    from dit_accel.planning.lookup import profile_for

    with contextlib.suppress(ValueError, OSError):  # the profile or the sampler does not fit
        profile, _ = profile_for(pipe)
        accel, measured = QualityConfig(), profile is not None
        profile = profile or _prior(pipe, settings)
        if profile is not None:
            return _learnt(pipe, accel, profile, measured=measured).rests_on
    return None


def _learnt(
    pipe: Any, accel: PlannedConfig, profile: Profile, *, measured: bool = False
) -> Profile:
    """The profile, or its substitute, with what was learnt from earlier runs of this pipeline.

    Args:
        measured: whether it is a profile of this pipeline, not the prior's.
    """
    from dit_accel.caching.learning import learning_of

    learning = learning_of(pipe) if accel.learns else None
    if learning is None:
        return profile
    return learning.with_measured(profile) if measured else learning.profile_before_run(profile)


def target_option(quality: float | None, speedup: float | None) -> str:
    """The target as an option and its value."""
    return f"--quality {quality:g}" if quality is not None else f"--speedup {speedup:g}"


def _by_profile(pipe: Any, settings: Settings, accel: PlannedConfig, path: str) -> RunTarget:
    from dit_accel.caching.chooser import keeps_noise
    from dit_accel.core.families import family_of
    from dit_accel.planning import selection
    from dit_accel.planning.lookup import profile_for

    with refused(f"--profile is {path!r}: ", (ValueError, OSError)):
        profile, _ = profile_for(pipe, path, force=accel.force)
    assert profile is not None  # a path was given
    profile = _learnt(pipe, accel, profile, measured=True)
    text = _text(pipe, settings, profile)
    choice = None
    with refused(f"{target_option(settings.quality, settings.speedup)}: "):
        coefficients = selection.coefficients_before_run(
            profile, pipe.scheduler, settings.steps, settings.guidance,
            separate=family_of(pipe).branches == "separate", sigmas=family_of(pipe).sigmas,
            guidance_2=settings.guidance if settings.guidance_2 is None else settings.guidance_2,
            begin=settings.steps - settings.loop_steps,
        )  # fmt: skip
        if coefficients is not None:
            choice = selection.choose(
                profile, coefficients, selection.Target(settings.quality, settings.speedup),
                static=accel.static, text=text.pooled if text is not None else None,
                size=(settings.height, settings.width, settings.frames),
                noise=keeps_noise(pipe, family_of(pipe)),
            )  # fmt: skip
    accel = dataclasses.replace(accel, profile=path, choice=choice)  # what is printed is what runs
    return RunTarget(dataclasses.replace(settings, accel=accel), choice, text=text)


def _text(pipe: Any, settings: Settings, profile: Profile) -> Text | None:
    """The encoded prompt of the run, if the profile predicts how hard prompts are."""
    from dit_accel.planning import text as prompt_text

    if profile.difficulty is None or settings.prompts:
        return None
    return prompt_text.encode(pipe, [settings.prompt], settings.max_sequence_length)
