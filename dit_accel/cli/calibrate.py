"""`dit-accel calibrate`: measure a model, so that a quality can be guaranteed for it.

In: a model and a dozen prompts. Out: a profile file.
Knows the options, the work folder and the progress; `calibration/` measures. Ours.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dit_accel.cli.common import options
from dit_accel.cli.common.errors import (
    RESUMABLE,
    BadInput,
    RunFailed,
    Terminated,
    as_option,
    refused,
    say,
)
from dit_accel.cli.common.files import check_file, print_json, read_prompts
from dit_accel.cli.common.options import CLIP, ClipOptions, listed, option
from dit_accel.cli.common.text import counted, print_table
from dit_accel.cli.common.verb import verb
from dit_accel.cli.run.request import check_clip, check_within
from dit_accel.core.document import read_document
from dit_accel.core.files import placed, reason_of
from dit_accel.core.generation import LARGEST_SEED

if TYPE_CHECKING:
    from dit_accel.calibration.calibrate import CalibrationRun
    from dit_accel.calibration.minutes import Estimate
    from dit_accel.cli.run.settings import Settings
    from dit_accel.core.generation import ClipSpec
    from dit_accel.evaluation.prompts import EvaluationPrompt
    from dit_accel.models.folder import LoadableModel
    from dit_accel.planning.profile import Profile

FIRST_SEED = 1000  # far from the seeds that are usual for clips and comparisons
PROBED = 3
ENOUGH = 12  # prompts that are enough
STAMP = "calibration.json"


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions(ClipOptions):
    """The options of `calibrate`."""

    prompts: Path | None = options.prompts(
        None, " with 12 prompts or more; not needed for the miniature"
    )
    prompts_option: Path | None = option(None, "PROMPTS.", "--prompts", hidden=True)  # its old name
    minutes: float = option(
        10.0, "Time limit in minutes; 0: no limit, all prompts and plans.", metavar="M", min=0
    )
    limit: int | None = options.limit()
    output: Path | None = options.output(
        None, "The profile (.safetensors).", shown="where `generate` looks"
    )
    work: Path | None = option(
        None, "Unfinished work; deleted at the end.", metavar="FOLDER", shown="OUTPUT.work"
    )
    speedups: str | None = option(
        None, "Speedups of candidate plans, e.g. 2,3.33,5.", shown="2 to 7.14"
    )
    probes: int | None = option(
        None,
        "Steps at which uncached runs measure how errors grow.",
        metavar="N",
        min=2,
        shown="none; 8 with --minutes 0",
    )
    batch: int = option(1, "Clips in one call of the pipeline.", metavar="N", min=1)
    seed: int = option(FIRST_SEED, "Seed of the first clip; each further clip adds 1.", panel=CLIP)
    overwrite: bool = options.overwrite()
    as_json: bool = options.as_json()


@verb(CalibrateOptions, interrupted=RESUMABLE)
def calibrate(given: CalibrateOptions) -> None:
    """Measure a model once, so that --quality is guaranteed and plans are better.

    It takes at most --minutes, whatever --limit, --speedups and --probes say.
    You may interrupt it at any time: the same command continues.
    """
    check_clip(given)
    check_within("--seed", given.seed, 0, LARGEST_SEED)
    if given.batch > 1 and any((given.image, given.last_image, given.video)):
        raise BadInput(f"--batch is {given.batch}; accepted: 1 with a picture or a video")
    speedups = _speedups(given.speedups)
    if given.output is not None:
        _check_out(given.output, given)
    from dit_accel.cli.run import prompt_check
    from dit_accel.cli.run.settings import locate, resolve
    from dit_accel.cli.run.target import planned_from
    from dit_accel.models.loading import quiet_libraries
    from dit_accel.models.setup import load

    with quiet_libraries(verbose=given.verbose):
        model, device, dtype = locate(given)
        settings = resolve(given, model, device=device, dtype=dtype, seed=given.seed)
        longest = settings.max_sequence_length
        prompts, remarks = prompt_check.distinct(model, _prompts(given, model), longest)
        for remark in remarks if not given.as_json else ():
            say(remark, kind="note")
        clips = _clips(prompts, settings)
        _check_numbers(settings, speedups)
        if len(clips) < ENOUGH and not given.as_json:
            given_ones = counted(len(clips), "prompt")
            say(f"{given_ones}: predictions are rough with fewer than {ENOUGH}", kind="note")
        pipe = load(model, settings.setup, device=device, dtype=dtype)
        before = planned_from(pipe, settings)
        out = given.output or _in_cache(pipe, given)
        work = _work(given, out)
        _open(work, model, settings)
        profile = _measure(pipe, clips, settings, given, speedups, out)
    _save(profile, out, model.name)
    shutil.rmtree(work, ignore_errors=True)
    _show(out, profile, before, as_json=given.as_json)


def _work(given: CalibrateOptions, out: Path) -> Path:
    return given.work or out.with_name(out.name + ".work")


def _save(profile: Profile, out: Path, model: str) -> None:
    profile = dataclasses.replace(profile, metadata=profile.metadata | {"model": model})
    try:
        profile.save(out)
    except OSError as error:
        raise RunFailed(f"--output is {str(out)!r}: {reason_of(error)}") from error


def _speedups(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        found = tuple(float(part) for part in listed(text))
    except ValueError:
        found = ()
    if not found or not all(1 < value < float("inf") for value in found):
        raise BadInput(f"--speedups is {text!r}; accepted: numbers above 1, with commas between")
    return tuple(dict.fromkeys(found))


def _check_numbers(settings: Settings, speedups: tuple[float, ...] | None) -> None:
    from dit_accel.cli.run.target import check_planned_steps

    check_planned_steps(settings, "calibrate")
    most = settings.steps / 2
    for value in speedups or ():
        if value > most:
            raise BadInput(
                f"--speedups has {value:g}; accepted: at most {most:g} at {settings.steps} steps"
            )


def _check_out(path: Path, given: CalibrateOptions) -> None:
    from dit_accel.planning.profile import SUFFIX

    # an interrupted calibration saves a profile of the work so far
    goes_on = (_work(given, path) / STAMP).is_file()
    check_file("--output", path, suffixes=(SUFFIX,), overwrite=given.overwrite or goes_on)


def _in_cache(pipe: Any, given: CalibrateOptions) -> Path:
    """The path where `generate` looks for the profile of a model without one in its folder."""
    from dit_accel.planning.lookup import cached_path, profile_key

    path = cached_path(profile_key(pipe))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"{path.parent} cannot be made: {reason_of(error)}; pass --output"
        ) from error
    _check_out(path, given)
    return path


def _prompts(given: CalibrateOptions, model: LoadableModel) -> tuple[EvaluationPrompt, ...]:
    from dit_accel.models import miniature

    if given.prompts and given.prompts_option:
        raise BadInput("PROMPTS and --prompts are given; accepted: one of them")
    path = given.prompts or given.prompts_option
    if path is None and model.folder.resolve() == miniature.path().resolve():
        path = miniature.prompts(miniature.CALIBRATION)
    if path is None:
        raise BadInput(
            f"PROMPTS is not given: pass a file of {ENOUGH} prompts or more, like those that you "
            "will use"
        )
    return read_prompts("PROMPTS", path, given.limit)


def _clips(prompts: tuple[EvaluationPrompt, ...], settings: Settings) -> list[ClipSpec]:
    return [
        dataclasses.replace(
            settings.clip,
            prompt=prompt.prompt,
            negative=settings.negative if prompt.negative is None else prompt.negative,
            seed=settings.seed + index,
        )
        for index, prompt in enumerate(prompts)
    ]


def _open(work: Path, model: LoadableModel, settings: Settings) -> None:
    """Begin or continue a work folder. Refuse one that has other content."""
    from dit_accel.evaluation.jobs import fingerprint

    shown, stamp = f"--work is {str(work)!r}", work / STAMP
    mine = {
        "weights": fingerprint(model.folder),
        "dtype": settings.dtype,
        **settings.setup.to_dict(),
        "device": settings.device.partition(":")[0],
    }
    with refused(f"{shown}: ", (OSError, ValueError)):
        if stamp.is_file():
            theirs = read_document(stamp).fields()
            found = {name: field.value for name, field in theirs.items()}
            names = dict.fromkeys((*mine, *found))
            differing = ", ".join(k for k in names if found.get(k) != mine.get(k))
            if differing:
                begun = f"which was begun with other {differing}"
                raise BadInput(f"{shown}, {begun}; delete it, or pass another folder")
            return
        if work.exists() and (not work.is_dir() or any(work.iterdir())):
            raise BadInput(f"{shown}, which has other files in it; pass another folder")
        work.mkdir(parents=True, exist_ok=True)
        with placed(stamp) as scratch:
            scratch.write_text(json.dumps(mine) + "\n", encoding="utf-8")


def _measure(
    pipe: Any, clips: list[ClipSpec], settings: Settings, given: CalibrateOptions,
    speedups: tuple[float, ...] | None, out: Path,
) -> Profile:  # fmt: skip
    from dit_accel.calibration import calibrate as measuring
    from dit_accel.calibration.minutes import FEW_SPEEDUPS, TooFewMinutesError
    from dit_accel.planning.sampler import NotLinearError

    usual = FEW_SPEEDUPS if given.minutes else measuring.SPEEDUPS
    with refused():  # the work folder belongs to another calibration
        calibration = measuring.CalibrationRun(
            pipe, clips, speedups=speedups or tuple(s for s in usual if s <= settings.steps / 2),
            probes=given.probes, probed=min(PROBED, len(clips)), batch=given.batch,
            dtype=settings.dtype, work=_work(given, out), minutes=given.minutes or None,
        )  # fmt: skip
    try:
        with _progress(calibration, given):
            profile = calibration.run()
    except (KeyboardInterrupt, Terminated):
        _keep(calibration.so_far(), out, settings.model)
        raise
    except TooFewMinutesError as error:
        raise BadInput(as_option(str(error))) from error
    except NotLinearError as error:
        raise RunFailed(str(error)) from error
    if not given.as_json:
        say(f"{calibration.ended}; cost {calibration.cost:.1f} uncached runs", kind="plan")
    return profile


def _keep(profile: Profile | None, out: Path, model: str) -> None:
    """Save what an interrupted calibration has, and say whether it can be used."""
    if profile is None:
        say("there is no profile yet", kind="note")
        return
    _save(profile, out, model)
    number = len(profile.candidates[0].psnr_db) if profile.candidates else 0
    of = counted(number, "clip") if number else "only inner products"
    say(f"{out} can be used: it is the profile of the work done so far, {of}", kind="note")


@contextlib.contextmanager
def _progress(calibration: CalibrationRun, given: CalibrateOptions) -> Iterator[None]:
    """Shows the progress of the calibration: the share of its minutes, or of its work."""
    from dit_accel.calibration.calibrate import probe_steps
    from dit_accel.cli.common.progress import Pace, minutes_bar, pace_bar

    steps = calibration.clips[0].steps
    if calibration.budget is not None:
        bar = minutes_bar(calibration.budget.minutes, calibration.budget, quiet=given.as_json)
        if not given.as_json:
            calibration.on_estimate = partial(_say_estimate, plans=len(calibration.counts))
    else:
        probes = [steps - step for step in probe_steps(steps, calibration.probes)]
        probes = calibration.probed * probes
        candidates = calibration.passes * calibration.counts
        pace = Pace(len(calibration.clips), steps, probes, candidates, given.batch)
        bar = pace_bar(pace, quiet=given.as_json)
    with bar as calibration.on_progress:
        yield


def _say_estimate(estimate: Estimate, *, plans: int) -> None:
    """Say how many runs the minutes allow on this machine."""
    fewer = estimate.clips < estimate.most_clips
    say(
        f"a step takes {estimate.step_seconds:.3g} s, and an uncached run "
        f"{estimate.run_seconds:.3g} s. "
        f"So {estimate.minutes:g} minutes are {estimate.runs:.1f} runs. "
        f"A clip with {plans} plans costs {estimate.clip_runs:.1f} runs"
        + (f", and probes cost {estimate.first_runs:.1f}" if estimate.first_runs else "")
        + f". So there will be up to {counted(estimate.most_clips, 'clip')}"
        + (f"; {estimate.clips} if errors must be probed" if fewer else ""),
        kind="plan",
    )


def _show(out: Path, profile: Profile, before: str | None, *, as_json: bool) -> None:
    """Print what was measured.

    Args:
        before: the data that runs are planned from without the new profile.
    """
    from dit_accel.cli.common.tables import candidate_rows, candidate_table

    if as_json:
        print_json(
            {
                "profile": str(out),
                "identity": profile.key.to_json(),
                "error_memory": profile.error_memory,
                "candidates": candidate_rows(profile),
                "rests_on": profile.rests_on,
                "rested_on": before,
                "metadata": profile.metadata,
            }
        )
        return
    if profile.candidates:
        print_table(candidate_table(profile))
    typer.echo(f"profile  {out}")
    without = f"; without this profile from {before}" if before else ""
    typer.echo(f"Planned from {profile.rests_on}{without}.")
