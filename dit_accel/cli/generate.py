"""`dit-accel generate`: one clip from one prompt, accelerated, and if asked its uncached twin."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dit_accel.cli.common import files as writing
from dit_accel.cli.common import options
from dit_accel.cli.common.errors import reported, say
from dit_accel.cli.common.files import Files
from dit_accel.cli.common.progress import StepBar
from dit_accel.cli.run import shots
from dit_accel.cli.run.request import LayoutOptions, Request, slug
from dit_accel.cli.run.summary import foretold, show

if TYPE_CHECKING:
    from dit_accel.cli.run.settings import Settings
    from dit_accel.cli.run.target import RunTarget
    from dit_accel.core.generation import Generation
    from dit_accel.layout import Layout
    from dit_accel.models.loading import LoadableModel


def generate(
    prompt: options.Prompt = "",
    layout: options.Layout = None,
    isolation: options.Isolation = None,
    reposition: options.Reposition = None,
    alpha: options.Alpha = None,
    background: options.Background = None,
    model: options.Model = None,
    quality: options.Quality = None,
    speedup: options.Speedup = None,
    threshold: options.Threshold = None,
    profile: options.Profile = None,
    force: options.Force = False,
    no_guard: options.NoGuard = False,
    static: options.Static = False,
    cache_memory: options.CacheMemory = None,
    site: options.Site = "model",
    accel: options.Accel = None,
    seed: options.Seed = 0,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    height: options.Height = None,
    width: options.Width = None,
    frames: options.Frames = None,
    fps: options.Fps = None,
    negative: options.Negative = None,
    compare: options.Compare = False,
    output: options.Output = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    dtype: options.Dtype = None,
    device: options.Device = None,
    verbose: options.Verbose = False,
) -> None:
    """Make a clip from a prompt, or one a shot of a layout, accelerated to a quality, a speed or a
    threshold.

    Beside the video it writes a sidecar JSON: versions, every setting, what was promised, and the
    report.
    """
    request = Request(
        prompt=prompt,
        model=model,
        quality=quality,
        speedup=speedup,
        threshold=threshold,
        profile=profile,
        force=force,
        guard=not no_guard,
        static=static,
        cache_memory=cache_memory,
        site=site,
        accel=accel,
        seed=seed,
        steps=steps,
        guidance=guidance,
        height=height,
        width=width,
        frames=frames,
        fps=fps,
        negative=negative,
        compare=compare,
        output=output,
        overwrite=overwrite,
        dtype=dtype,
        device=device,
        scenery=LayoutOptions(layout, isolation, reposition, alpha, background),
    )
    with reported(verbose=verbose):
        _generate(request, as_json=as_json, verbose=verbose)


def _generate(request: Request, *, as_json: bool, verbose: bool) -> None:
    request.check()
    layout = request.scenery.read()
    name = slug(request.prompt if layout is None else Path(request.scenery.layout or "").stem)
    output = request.output or Path(f"{name}.mp4")
    if layout is None:
        files = writing.name_files(output, compare=request.compare)
    else:
        files = shots.files_of(output, layout, compare=request.compare)
    writing.check_files(files, overwrite=request.overwrite)
    with _status("starting", quiet=as_json):
        from dit_accel.cli.run.settings import read_strides, resolve
        from dit_accel.cli.run.target import check_steps, read_profile
        from dit_accel.models.loading import quiet_libraries

        muted = quiet_libraries(verbose=verbose)
    with muted:
        model, device, dtype = _find(request)
        settings = resolve(request, model, device=device, dtype=dtype, layout=layout)
        check_steps(settings)
        if layout is not None:
            shots.check_fits(layout, settings, read_strides(model))
        if request.profile is not None:
            read_profile(request.profile)
        aim, take, uncached = _run(model, settings, windowed=request.windowed, quiet=as_json)
        with _status("writing", quiet=as_json):
            content = _write(files, model, aim, take, uncached, layout)
    _tell(files, aim.settings, take, content, as_json=as_json)


def _find(request: Request) -> tuple[LoadableModel, str, str]:
    """The model's folder, the device and the dtype."""
    from dit_accel.models.loading import choose_device, choose_dtype, resolve_model

    device = choose_device(request.device)
    return resolve_model(request.model), device, choose_dtype(request.dtype, device)


def _run(
    model: LoadableModel, settings: Settings, *, windowed: bool, quiet: bool
) -> tuple[RunTarget, Generation, Generation | None]:
    """The accelerated clip, after its uncached twin where one was asked for."""
    from dit_accel.cli.run import prompt_check, run
    from dit_accel.cli.run.target import resolve_target
    from dit_accel.models import loading

    with _status(f"loading {model.name}", quiet=quiet):
        pipe = loading.load(model, device=settings.device, dtype=settings.dtype)
    aim = resolve_target(pipe, settings, windowed=windowed)
    settings = aim.settings
    run.check_accepted(pipe, settings)
    for remark in (*aim.remarks, *prompt_check.remarks(pipe, settings)):
        say(remark, style="yellow")
    if aim.choice is not None and not quiet:
        say(foretold(settings, aim.choice), style="cyan")
    uncached = None
    if settings.compare:
        with _status("warming up", quiet=quiet):
            run.warm_up(pipe, settings)
        with StepBar("uncached", settings.steps, quiet=quiet) as bar:
            uncached = run.take_uncached(pipe, settings, bar)
    with StepBar("accelerated", settings.steps, quiet=quiet) as bar:
        return aim, run.take_accelerated(pipe, settings, bar, aim.text), uncached


def _write(
    files: Files,
    model: LoadableModel,
    aim: RunTarget,
    take: Generation,
    uncached: Generation | None,
    layout: Layout | None,
) -> dict[str, Any]:
    """Write every file or none; returns what the sidecar holds."""
    from dit_accel.cli.run.sidecar import record

    settings = aim.settings
    twins = take, uncached
    if layout is not None:
        twins = shots.as_one(take), shots.as_one(uncached) if uncached else None
        clips = shots.clips_of(files, layout, take, uncached)
    else:
        clips = writing.clips_of(files, take.frames, uncached.frames if uncached else None)
    content = record(files, model, aim, *twins)
    with writing.all_or_none(files) as folder:
        writing.write_clips(folder, clips, settings.fps)
        writing.write_json(folder, files.sidecar, content)
    return content


def _tell(
    files: Files, settings: Settings, take: Generation, content: dict[str, Any], *, as_json: bool
) -> None:
    if as_json:
        sys.stdout.write(writing.as_json(content) + "\n")
    else:
        show(files, settings, take, content["comparison"], content["promise"])


def _status(text: str, *, quiet: bool) -> contextlib.AbstractContextManager[object]:
    """A line that turns while the body runs; nothing of it is left."""
    if quiet:
        return contextlib.nullcontext()
    return Console(stderr=True).status(f"{text} ...")
