"""`dit-accel plan`: shows the plan for a quality or a speedup, and its predicted quality.

In: a profile or a substitute, and a target. Out: text, JSON or a picture.
Knows profiles and schedulers; runs no model. Ours.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_accel.cli import plan_memory
from dit_accel.cli.common import options
from dit_accel.cli.common.errors import BadInput, RunFailed, as_option, flag, refused
from dit_accel.cli.common.files import check_file, print_json
from dit_accel.cli.common.options import bytes_of, option
from dit_accel.cli.common.text import (
    bytes_text,
    plain_console,
    print_aligned,
    print_table,
    shades_of,
    strip,
)
from dit_accel.cli.common.verb import verb
from dit_accel.cli.run.request import check_clip
from dit_accel.core.files import reason_of

if TYPE_CHECKING:
    from rich.console import Console

    from dit_accel.cli.common.text import Row
    from dit_accel.models.folder import LoadableModel
    from dit_accel.planning.choice import PlanChoice, QualityEstimate
    from dit_accel.planning.profile import Profile

UNKNOWN_SIZE = "what it changes is not known, because no profile has the size of the clips"
PLOTS = (".png", ".svg")


@dataclass(frozen=True, kw_only=True)
class PlanOptions(options.VersionOptions):
    """The options of `plan`."""

    quality: float | None = option(
        None, options.TARGET_HELP, metavar="DB", shown="without a target: all candidate plans"
    )
    speedup: float | None = option(None, options.RATIO_HELP, metavar="X")
    profile: Path | None = options.profile()
    steps: int | None = option(None, "Denoising steps.", shown="as calibrated")
    guidance: float | None = options.guidance("as calibrated", None)
    cache_memory: str | None = option(None, options.MEMORY_HELP, metavar="SIZE", shown="no limit")
    no_learn: bool = option(False, "Plan without what was learnt from runs.")
    dtype: str | None = options.dtype("Plan with what was learnt in this dtype.")
    plot: Path | None = option(None, f"Draw the plan ({' or '.join(PLOTS)}).", metavar="FILE")
    overwrite: bool = options.overwrite()
    as_json: bool = options.as_json()
    verbose: bool = options.verbose()


@dataclass(frozen=True)
class ChosenPlan:
    """A plan, its run, and its memory if the model is known.

    Args:
        size: bytes of one cached tensor.
        limited: the memory of all cached tensors under `--cache-memory`.
    """

    choice: PlanChoice
    steps: int
    guidance: float
    size: int | None = None
    limited: plan_memory.MemoryUse | None = None


@verb(PlanOptions)
def plan(given: PlanOptions) -> None:
    """Show the plan for a quality or a speedup, without running the model.

    The next run will use this plan. It comes from the profile, or from a prior and learnt clips.
    Without a target, the profile's candidate plans are listed, with their scores.
    """
    check_clip(given)
    bytes_of(given.cache_memory)
    if given.plot is not None:
        _check_plot(given.plot, overwrite=given.overwrite)
    planned = given.quality is not None or given.speedup is not None
    if planned:
        from dit_accel.config.keywords import config_of

        with refused():  # errors of the target
            config_of(quality=given.quality, speedup=given.speedup)
    _check_used(given, planned=planned)
    path, profile, model = _profile_and_model(given)
    chosen = _chosen(given, profile, model) if planned else None
    if given.plot is not None:
        _draw(given.plot, profile, chosen, given.quality)
    if given.as_json:
        print_json(_content(given, path, profile, chosen))
        return
    console = plain_console()
    _show(console, given, path, profile, chosen)
    if given.plot is not None:
        console.print(f"plot            {given.plot}", soft_wrap=True)


def _check_used(given: PlanOptions, *, planned: bool) -> None:
    """Refuse options that would have no effect."""
    for name in ("steps", "guidance", "cache_memory", "no_learn", "dtype") if not planned else ():
        if getattr(given, name) not in (None, False):
            raise BadInput(f"{flag(name)} is given; accepted: with --quality or --speedup")
    if given.profile is None or given.model is not None:
        return
    for name in ("cache_memory", "no_learn", "dtype", "revision", "variant"):
        if getattr(given, name) not in (None, False):
            alone = f"{flag(name)} is given with --profile alone"
            raise BadInput(f"{alone}; accepted: with --model too")


def _check_plot(path: Path, *, overwrite: bool) -> None:
    check_file("--plot", path, suffixes=PLOTS, overwrite=overwrite)
    if importlib.util.find_spec("matplotlib") is None:
        needed = "matplotlib is not installed: pip install 'dit-accel[report]'"
        raise BadInput(f"--plot is {str(path)!r}: {needed}")


def _profile_and_model(given: PlanOptions) -> tuple[Path | None, Profile, LoadableModel | None]:
    """The path, the profile and the model. The path is None if the prior replaces a profile. The
    model is None if the profile was given without one, because then no model is needed. For a plan,
    the profile is the one that a run would use, with what was learnt."""
    from dit_accel.cli.run.known import CALIBRATE, find_known
    from dit_accel.cli.run.target import read_profile
    from dit_accel.models.loading import (
        Version,
        choose_device,
        choose_dtype,
        quiet_libraries,
        resolve_model,
    )
    from dit_accel.models.setup import Setup

    if given.profile is not None and given.model is None:
        return given.profile, read_profile(given.profile), None
    with quiet_libraries(verbose=given.verbose):
        model = resolve_model(given.model, version=Version(given.revision, given.variant))
        planned = given.quality is not None or given.speedup is not None
        learn = planned and not given.no_learn
        dtype = choose_dtype(given.dtype, choose_device(None))
        path, learning = find_known(
            model, Setup(), device="cpu", dtype=dtype, learn=learn, given=given.profile
        )
    if path is not None:
        profile = read_profile(path)
        return path, learning.with_measured(profile) if learning else profile, model
    prior = _by_prior(given, model) if planned else None
    if prior is not None:
        return None, learning.profile_before_run(prior) if learning else prior, model
    raise BadInput(
        f"--model is {model.name!r}: no profile of it was found in its folder or the cache; "
        f"{CALIBRATE}, or pass --profile"
    )


def _by_prior(given: PlanOptions, model: LoadableModel) -> Profile | None:
    """The profile that is used for a model that was not measured; None: there is none."""
    from dit_accel.cli.run import known, settings

    defaults = settings.call_parameters(model) | settings.folder_defaults(model)
    steps = settings.given_or_default(given.steps, defaults.get("num_inference_steps"), "steps")
    guidance = settings.given_or_default(given.guidance, defaults.get("guidance_scale"), "guidance")
    return known.prior_of(model, steps, guidance)


def _chosen(given: PlanOptions, profile: Profile, model: LoadableModel | None) -> ChosenPlan:
    from dit_accel.cli.run.known import scheduler_of
    from dit_accel.cli.run.target import target_option
    from dit_accel.planning import selection

    key = profile.key
    steps = key.steps if given.steps is None else given.steps
    guidance = key.guidance if given.guidance is None else given.guidance
    same = steps == profile.sampler.num_steps
    try:
        coefficients = selection.coefficients_before_run(
            profile,
            None if same or model is None else scheduler_of(model),
            steps,
            guidance,
            separate=_of_family(profile, "branches") == "separate",
            sigmas=bool(_of_family(profile, "sigmas")),
        )
        if coefficients is not None:
            target = selection.Target(given.quality, given.speedup)
            choice = selection.choose(
                profile, coefficients, target, noise=_keeps_noise(profile, model)
            )
    except ValueError as error:
        hint = "" if same or model is not None else "; pass --model"
        option = target_option(given.quality, given.speedup)
        raise BadInput(f"{option}: {as_option(str(error))}{hint}") from error
    if coefficients is None:
        raise BadInput(
            f"--steps is {steps}: the timesteps of {key.scheduler} are known only when a run "
            f"begins; accepted: {key.steps}, as calibrated"
        )
    # a profile without clips, such as the prior's: the size of a tensor is unknown
    if not key.width:
        return ChosenPlan(choice, steps, guidance)
    size = plan_memory.latent_bytes(model, profile) if model is not None else None
    limit, width = bytes_of(given.cache_memory), plan_memory.value_bytes(profile)
    limited = plan_memory.memory_use(choice, limit, size, width) if size is not None else None
    return ChosenPlan(choice, steps, guidance, size, limited)


def _keeps_noise(profile: Profile, model: LoadableModel | None) -> bool:
    """Whether a plan may weigh the noise, for `choose`; without a model: as calibrated."""
    from dit_accel.caching.chooser import gets_noise_alone
    from dit_accel.cli.run.settings import transformer_config
    from dit_accel.models.families import FAMILIES

    family = FAMILIES.get(profile.key.transformer)
    if family is None or model is None:
        return True
    return gets_noise_alone(family, transformer_config(model))


def _of_family(profile: Profile, name: str) -> Any:
    """A field of the profile's family; None for a model without a row."""
    from dit_accel.models.families import FAMILIES

    return getattr(FAMILIES.get(profile.key.transformer), name, None)


def _content(
    given: PlanOptions, path: Path | None, profile: Profile, chosen: ChosenPlan | None
) -> dict[str, Any]:
    from dit_accel.cli.common.tables import candidate_rows

    known = path is not None
    content: dict[str, Any] = {
        "profile": str(path) if known else None,
        "identity": profile.key.to_json() if known else None,
    }
    if chosen is None:
        return content | {"candidates": candidate_rows(profile)}
    choice, limited = chosen.choice, chosen.limited
    predicted, tensors = choice.prediction, plan_memory.peak_cached_values(chosen.choice)
    return content | {
        "quality": given.quality,
        "speedup": given.speedup,
        "steps": chosen.steps,
        "guidance": chosen.guidance,
        "computed": list(choice.plan.computed),
        "predicted": dataclasses.asdict(predicted),
        "cached_tensors": tensors,
        "cached_bytes": None if chosen.size is None else tensors * chosen.size,
        "cache_memory": bytes_of(given.cache_memory),
        "min_bits": choice.min_bits,
        "packed_bits": limited.bits if limited is not None else None,
        "packed_bytes": limited.packed if limited is not None else None,
        "offloaded_bytes": limited.offloaded if limited is not None else None,
        "notes": list(choice.notes),
    }


def _show(
    console: Console,
    given: PlanOptions,
    path: Path | None,
    profile: Profile,
    chosen: ChosenPlan | None,
) -> None:
    from dit_accel.cli.common.tables import candidate_table

    if chosen is not None:
        print_aligned(console, _rows(given, path, profile, chosen, shades_of(console)))
        return
    if not profile.candidates:
        problem = "it has no candidate plans; pass --quality or --speedup"
        raise BadInput(f"--profile is {str(path)!r}: {problem}")
    print_table(candidate_table(profile))
    console.print(f"profile  {path}", soft_wrap=True)


def _rows(
    given: PlanOptions, path: Path | None, profile: Profile, chosen: ChosenPlan, shades: str
) -> list[Row]:
    from rich.text import Text

    choice, predicted = chosen.choice, chosen.choice.prediction
    target = f"{given.quality:g} dB" if given.quality is not None else f"{given.speedup:g}x"
    computed = set(choice.plan.computed)
    shares = [float(step in computed) for step in range(choice.plan.num_steps)]
    rows: list[Row] = [
        *_source(path, profile),
        ("", ""),
        ("target", f"{target} at {chosen.steps} steps, guidance {chosen.guidance:g}"),
        ("plan", Text(strip(shares, shades), style="cyan")),
        ("", Text(f"{shades[-1]} computed, {shades[0]} extrapolated", style="dim")),
    ]
    steps = f"{predicted.computed} of {chosen.steps} steps computed"
    rows.append(("speedup", f"{predicted.speedup:.2f}x, {steps}"))
    rows.append(("PSNR", Text(_psnr(predicted), style="bold")))
    if given.quality is not None and predicted.reach is not None:
        sure = "guaranteed" if path is not None else "expected"
        rows.append((sure, f"{target} for {predicted.reach:.0%} of clips"))
    rows.append(("cached values", _memory(chosen)))
    if chosen.limited is not None and given.cache_memory is not None:
        rows.append(("", chosen.limited.describe()))
    elif given.cache_memory is not None:
        rows.append(("", f"--cache-memory {given.cache_memory}: {UNKNOWN_SIZE}"))
    return [*rows, *(("", Text(note, style="yellow")) for note in choice.said)]


def _source(path: Path | None, profile: Profile) -> list[Row]:
    if path is None:
        return [("profile", "none for this model")]
    key = profile.key
    size = f"{key.width}x{key.height}, {key.frames} frames, {key.steps} steps"
    clips = f"{size}, guidance {key.guidance:g}, {key.dtype}"
    prompts = f"{profile.metadata.get('clips', '?')} prompts"
    return [("profile", str(path)), ("of", f"{key.pipeline}, {clips}, {prompts}")]


def _memory(chosen: ChosenPlan) -> str:
    tensors = plan_memory.peak_cached_values(chosen.choice)
    size = f", {bytes_text(tensors * chosen.size)}" if chosen.size else ""
    return f"{tensors} tensors of the size of the latents{size}"


def _psnr(predicted: QualityEstimate) -> str:
    if predicted.psnr_db == float("inf"):
        return "exact"
    interval = f"90 % of clips from {predicted.low_db:.1f} to {predicted.high_db:.1f}"
    return f"{predicted.psnr_db:.1f} dB predicted, {interval}"


def _draw(path: Path, profile: Profile, chosen: ChosenPlan | None, quality: float | None) -> None:
    from dit_accel.cli.plan_plot import draw

    try:
        draw(path, profile, chosen.choice if chosen is not None else None, quality)
    except OSError as error:
        raise RunFailed(f"{path} cannot be written: {reason_of(error)}") from error
