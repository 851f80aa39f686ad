"""`dit-accel calibrate`: measure a model, so that a quality or a speed can be promised for it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from dit_accel.cli.common import options
from dit_accel.cli.common.errors import BadInput, RunFailed, reported, say
from dit_accel.cli.common.progress import Pace, pace_bar
from dit_accel.cli.run.request import Request

if TYPE_CHECKING:
    from dit_accel.cli.run.settings import Settings
    from dit_accel.core.generation import ClipSpec
    from dit_accel.evaluation.prompts import EvaluationPrompt
    from dit_accel.models.loading import LoadableModel
    from dit_accel.planning.profile import Profile

FIRST_SEED = 1000  # far from the seeds that clips are usually made and compared with
PROBED = 3
ENOUGH = 12  # prompts
STAMP = "calibration.json"
CALIBRATE_INTERRUPTED = "what is done is kept, and the same command goes on where it was"


@dataclass(frozen=True)
class CalibrateOptions:
    """The options that `generate` does not have."""

    prompts: Path | None
    limit: int | None
    out: Path | None
    work: Path | None
    speedups: str | None
    probes: int
    batch: int
    overwrite: bool


def calibrate(
    model: options.Model = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="A .jsonl, .txt or VBench .json file: a dozen prompts or more.",
            show_default="those of the miniature",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(help="Take the first so many prompts.", show_default="all", min=1),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The profile: ends in .safetensors.",
            show_default="in the user's cache, where it is found",
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            help="Folder for what is done so far; removed at the end.", show_default="OUT.work"
        ),
    ] = None,
    speedups: Annotated[
        str | None,
        typer.Option(
            help="The plans that are carried out, with commas between.", show_default="2 to 8.33"
        ),
    ] = None,
    probes: Annotated[int, typer.Option(help="Steps that are probed.", min=2)] = 8,
    batch: Annotated[
        int, typer.Option(help="Clips made by one call of the pipeline; needs its memory.", min=1)
    ] = 1,
    seed: Annotated[
        int, typer.Option(help="Of the first clip; each next one's is 1 more.")
    ] = FIRST_SEED,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    height: options.Height = None,
    width: options.Width = None,
    frames: options.Frames = None,
    negative: options.Negative = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    dtype: options.Dtype = None,
    device: options.Device = None,
    verbose: options.Verbose = False,
) -> None:
    """Measure a model, so that `--quality` and `--speedup` can be promised for it.

    Stop it whenever you like: the same command goes on where it was.
    """
    asked = CalibrateOptions(prompts, limit, out, work, speedups, probes, batch, overwrite)
    request = Request(
        prompt="(from the file)",
        model=model,
        seed=seed,
        steps=steps,
        guidance=guidance,
        height=height,
        width=width,
        frames=frames,
        negative=negative,
        dtype=dtype,
        device=device,
    )
    with reported(verbose=verbose, interrupted=CALIBRATE_INTERRUPTED):
        _calibrate(asked, request, as_json=as_json, verbose=verbose)


def _calibrate(asked: CalibrateOptions, request: Request, *, as_json: bool, verbose: bool) -> None:
    request.check()
    speedups = _speedups(asked.speedups)
    if asked.out is not None:
        _check_out(asked.out, overwrite=asked.overwrite)
    from dit_accel.cli.run.settings import resolve
    from dit_accel.models.loading import (
        choose_device,
        choose_dtype,
        load,
        quiet_libraries,
        resolve_model,
    )

    with quiet_libraries(verbose=verbose):
        device = choose_device(request.device)
        model = resolve_model(request.model)
        settings = resolve(request, model, device=device, dtype=choose_dtype(request.dtype, device))
        clips = _clips(_prompts(asked, model), settings)
        _check_numbers(settings, speedups)
        if len(clips) < ENOUGH and not as_json:
            text = f"{len(clips)} prompts: promises are rough with fewer than {ENOUGH}"
            say(text, style="yellow")
        pipe = load(model, device=settings.device, dtype=settings.dtype)
        out = asked.out or _in_cache(pipe, overwrite=asked.overwrite)
        work = asked.work or out.with_name(out.name + ".work")
        _open(work, model, settings)
        profile = _measure(pipe, clips, settings, asked, speedups, work, quiet=as_json)
    profile = dataclasses.replace(profile, metadata=profile.metadata | {"model": model.name})
    try:
        profile.save(out)
    except OSError as error:
        raise RunFailed(f"--out is {str(out)!r}: {error.strerror or error}") from error
    shutil.rmtree(work, ignore_errors=True)
    _tell(out, profile, as_json=as_json)


def _speedups(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        found = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        found = ()
    if not found or not all(1 < value < float("inf") for value in found):
        raise BadInput(f"--speedups is {text!r}: must be numbers above 1, with commas between")
    return tuple(dict.fromkeys(found))


def _check_numbers(settings: Settings, speedups: tuple[float, ...] | None) -> None:
    from dit_accel.planning.selection import MIN_PLANNED_STEPS

    if settings.steps < MIN_PLANNED_STEPS:
        raise BadInput(
            f"--steps is {settings.steps}: plans need at least {MIN_PLANNED_STEPS}, for with "
            "fewer each step is too far from the next to serve it"
        )
    wrong = [value for value in speedups or () if value > settings.steps / 2]
    if wrong:
        raise BadInput(
            f"--speedups has {wrong[0]:g}: must be at most {settings.steps / 2:g} at "
            f"{settings.steps} steps"
        )


def _check_out(path: Path, *, overwrite: bool) -> None:
    """Refuse before the work what could not be written after it."""
    from dit_accel.planning.profile import SUFFIX

    shown, folder = f"--out is {str(path)!r}", path.absolute().parent
    if path.suffix != SUFFIX:
        raise BadInput(f"{shown}: must end in {SUFFIX}")
    if path.is_dir():
        raise BadInput(f"{shown}: it is a folder")
    if path.exists() and not overwrite:
        raise BadInput(f"{shown}, which exists; pass --overwrite, or another --out")
    if not folder.is_dir():
        raise BadInput(f"{shown}: there is no such folder")
    if not os.access(folder, os.W_OK):
        raise BadInput(f"{shown}: its folder cannot be written")


def _in_cache(pipe: Any, *, overwrite: bool) -> Path:
    """Where `generate` looks for the profile of a model that brings none."""
    from dit_accel.planning.lookup import cached_path, identify

    path = cached_path(identify(pipe))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{path.parent} cannot be made: {error.strerror}; pass --out") from error
    _check_out(path, overwrite=overwrite)
    return path


def _prompts(asked: CalibrateOptions, model: LoadableModel) -> tuple[EvaluationPrompt, ...]:
    from dit_accel.evaluation.prompts import read_prompts
    from dit_accel.models import miniature

    path = asked.prompts
    if path is None and model.folder.resolve() == miniature.path().resolve():
        path = miniature.prompts(miniature.CALIBRATION)
    if path is None:
        raise BadInput(
            f"--prompts is not given: name a file of {ENOUGH} prompts or more, such as you will "
            "make clips of"
        )
    try:
        return read_prompts(path)[: asked.limit]
    except OSError as error:
        raise BadInput(f"--prompts is {str(path)!r}: {error.strerror}") from error
    except ValueError as error:
        raise BadInput(f"--prompts: {error}") from error


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
    """Begin, or go on with, a work folder; never one that holds something else."""
    from dit_accel.evaluation.jobs import fingerprint

    shown, stamp = f"--work is {str(work)!r}", work / STAMP
    mine = {
        "weights": fingerprint(model.folder),
        "dtype": settings.dtype,
        "device": settings.device.partition(":")[0],
    }
    try:
        if stamp.is_file():
            theirs = json.loads(stamp.read_text(encoding="utf-8"))
            if theirs != mine:
                differing = ", ".join(key for key in mine if theirs.get(key) != mine[key])
                raise BadInput(f"{shown}, begun with other {differing}: delete it, or name another")
            return
        if work.exists() and (not work.is_dir() or any(work.iterdir())):
            raise BadInput(f"{shown}, which holds something else: name another folder")
        work.mkdir(parents=True, exist_ok=True)
        stamp.write_text(json.dumps(mine) + "\n", encoding="utf-8")
    except (OSError, ValueError) as error:
        raise BadInput(f"{shown}: {error}; delete it, or name another") from error


def _measure(
    pipe: Any,
    clips: list[ClipSpec],
    settings: Settings,
    asked: CalibrateOptions,
    speedups: tuple[float, ...] | None,
    work: Path,
    *,
    quiet: bool,
) -> Profile:
    from dit_accel.calibration import calibrate as measuring
    from dit_accel.planning.sampler import NotLinearError

    usual = tuple(s for s in measuring.SPEEDUPS if s <= settings.steps / 2)
    speedups = speedups if speedups is not None else usual
    probed = min(PROBED, len(clips))
    passes = measuring.fit_passes(len(clips), asked.batch)
    candidates = passes * _rungs(settings.steps, speedups)
    probes = probed * len(measuring.probe_steps(settings.steps, asked.probes))
    pace = Pace(len(clips), settings.steps, probes, candidates, asked.batch)
    try:
        with pace_bar(pace, quiet=quiet) as told:
            return measuring.calibrate(
                pipe,
                clips,
                speedups=speedups,
                probes=asked.probes,
                probed=probed,
                batch=asked.batch,
                dtype=settings.dtype,
                work=work,
                told=told,
            )
    except NotLinearError as error:
        raise RunFailed(str(error)) from error
    except ValueError as error:
        if "work is" not in str(error):
            raise
        raise BadInput(
            f"--work is {str(work)!r}, begun with other prompts or clips: delete it, or name "
            "another"
        ) from error


def _rungs(steps: int, speedups: tuple[float, ...]) -> list[int]:
    """Computed steps of the plans that are carried out on every clip in a pass."""
    counts = sorted({round(steps / speedup) for speedup in speedups})
    return [count for count in counts if 2 <= count < steps]


def _tell(out: Path, profile: Profile, *, as_json: bool) -> None:
    from dit_accel.cli.common.files import as_json as encode
    from dit_accel.cli.common.tables import ladder_table, rows

    if as_json:
        content = {
            "profile": str(out),
            "identity": profile.key.as_filed(),
            "memory_steps": profile.error_memory,
            "ladder": rows(profile),
            "made": profile.metadata,
        }
        sys.stdout.write(encode(content) + "\n")
        return
    console = Console(highlight=False)
    if profile.candidates:
        console.print(ladder_table(profile))
    console.print(f"profile  {out}", soft_wrap=True)
