"""`dit-accel generate`: makes accelerated clips from a prompt, a file of prompts, or a layout.

In: the options. Out: the clip, its JSON sidecar, and with `--compare` the uncached reference.
Knows the order of the work; each part of it is in `cli/run/`. Ours.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_accel.cli.common import files as writing
from dit_accel.cli.common.errors import say
from dit_accel.cli.common.files import Files
from dit_accel.cli.common.text import counted, spinner
from dit_accel.cli.common.verb import verb
from dit_accel.cli.run import shots
from dit_accel.cli.run.request import Request, slug

if TYPE_CHECKING:
    from dit_accel.cli.run.settings import Settings
    from dit_accel.cli.run.target import RunTarget
    from dit_accel.core.generation import Generation
    from dit_accel.layout import Layout
    from dit_accel.models.folder import LoadableModel

FEW = "{steps}: below {least}, reuse gains nothing; the summary shows where the time goes"


@verb(Request)
def generate(request: Request) -> None:
    """Generate a video, accelerated to a quality, a speedup or a threshold.

    A JSON file beside the video has all settings, versions and the report of the run.
    """
    request.check()
    if request.prompt_file is not None:
        _many(request, request.prompt_file)
        return
    layout = request.read_layout()
    name = slug(request.prompt if request.layout is None else request.layout.stem)
    output = request.output or Path(f"{name}.mp4")
    if layout is None:
        files = writing.name_files(output, compare=request.compare)
    else:
        files = shots.files_of(output, layout, compare=request.compare)
    writing.check_files(files, overwrite=request.overwrite)
    with _muted(request):
        model, settings = _resolve(request, layout)
        needed = _say_memory(request, model, settings)
        if request.dry_run:
            return
        pipe = _load(request, model, settings)
        target, result, uncached = _run(request, pipe, settings)
        with _status("writing", quiet=request.as_json):
            content = _write(files, model, target, result, uncached, layout, memory=needed)
    if request.as_json:
        writing.print_json(content)
    else:
        from dit_accel.cli.run.summary import show

        show(files, target.settings, result, content)


def _many(request: Request, source: Path) -> None:
    """Make the clips of a prompt file that do not exist yet."""
    from dit_accel.cli.run import batch, summary

    prompts = writing.read_prompts("--prompt-file", source, None)
    request = dataclasses.replace(request, prompt=prompts[0].prompt)
    with _muted(request):
        model, settings = _resolve(request, None)
        clips = batch.clips_of(prompts, request.output_dir or Path(source.stem), model, settings)
        todo = batch.open_ones(clips, overwrite=request.overwrite)
        if (len(todo) < len(clips) or request.dry_run) and not request.as_json:
            there = f"{len(clips) - len(todo)} of {len(clips)} clips are there already"
            say(there, kind="note")
        if request.dry_run or todo:
            needed = _say_memory(request, model, settings)
        if request.dry_run:
            return
        batch.make_folder(clips)
        pipe = _load(request, model, settings) if todo else None
        left, stages = len(todo), defaultdict[str, float](float)
        try:
            for clip in todo:
                label = f"clip {len(clips) - left + 1} of {len(clips)}"
                target, result, uncached = _run(request, pipe, clip.settings, label)
                content = _write(clip.files, model, target, result, uncached, None,
                                 memory=needed, asked=clip.key)  # fmt: skip
                left -= 1
                for stage, seconds in content["costs"]["stage_seconds"].items():
                    stages[stage] += seconds
                if not request.as_json:
                    summary.show_clip(clip.files, content)
        finally:
            if left:
                done = f"{len(clips) - left} of {len(clips)} clips are done"
                say(f"{done}; run it again to continue", kind="note")
    if todo and not request.as_json:
        summary.show_stages(stages)
    if request.as_json:
        made = {str(clip.files.video): json.loads(clip.files.sidecar.read_bytes())
                for clip in clips}  # fmt: skip
        writing.print_json({"clips": made})


def _muted(request: Request) -> contextlib.AbstractContextManager[object]:
    with _status("starting", quiet=request.as_json):
        from dit_accel.models.loading import quiet_libraries

        return quiet_libraries(verbose=request.verbose)


def _resolve(request: Request, layout: Layout | None) -> tuple[LoadableModel, Settings]:
    """The model's folder and every setting. Settings that can be refused without weights are
    refused."""
    from dit_accel.cli.run.settings import check_site, locate, read_strides, resolve
    from dit_accel.cli.run.target import check_planned_steps, read_profile, target_option
    from dit_accel.config import PlannedConfig, ThresholdConfig
    from dit_accel.planning.selection import MIN_PLANNED_STEPS

    accel = request.accel_config()
    model, device, dtype = locate(request)
    check_site(accel, model)
    settings = resolve(
        request, model, device=device, dtype=dtype, prompt=request.prompt, seed=request.seed,
        layout=layout,
    )  # fmt: skip
    settings = dataclasses.replace(settings, accel=accel, compare=request.compare)
    if settings.loop_steps < MIN_PLANNED_STEPS and not request.wants_acceleration:
        accel = ThresholdConfig(0, layout=accel.layout, scene=accel.scene)
        settings = dataclasses.replace(settings, accel=accel)
    if request.wants_acceleration and isinstance(accel, PlannedConfig):
        target = target_option(settings.quality, settings.speedup)
        check_planned_steps(settings, target)
    if layout is not None:
        shots.check_family(model)
        shots.check_fits(layout, settings, read_strides(model))
    if request.profile is not None:
        read_profile(request.profile)
    if settings.loop_steps < MIN_PLANNED_STEPS and not request.as_json:
        steps = counted(settings.loop_steps, "step")
        say(FEW.format(steps=steps, least=MIN_PLANNED_STEPS), kind="note")
    return model, settings


def _say_memory(request: Request, model: LoadableModel, settings: Settings) -> dict[str, Any]:
    """Print how much memory the run needs, and return it for the record."""
    from dit_accel.cli.run import memory
    from dit_accel.models.setup import OFFLOADS

    found = memory.forecast(model, settings)
    content = memory.record(found, settings)
    lacking = memory.shortage(found, model, settings)
    if request.dry_run and request.as_json:
        writing.print_json({"settings": settings.to_dict(), "memory": content,
                            "offload": {way: found.stages(way) for way in OFFLOADS}})  # fmt: skip
    elif request.dry_run:
        from dit_accel.cli.run.summary import show_plan

        show_plan(settings, memory.rows(found, settings))
    elif not request.as_json:
        say(memory.announcement(found, settings), kind="memory")
    if lacking and not request.as_json:
        say(lacking, kind="note")
    return content


def _load(request: Request, model: LoadableModel, settings: Settings) -> Any:
    from dit_accel.models import setup

    with _status(f"loading {model.name}", quiet=request.as_json):
        return setup.load(model, settings.setup, device=settings.device, dtype=settings.dtype)


def _run(
    request: Request, pipe: Any, settings: Settings, label: str = "accelerated"
) -> tuple[RunTarget, Generation, Generation | None]:
    """Make the accelerated clip, after its uncached reference if one is wanted."""
    from dit_accel.cli.common.progress import StepBar
    from dit_accel.cli.run import prompt_check, run
    from dit_accel.cli.run.summary import announcement
    from dit_accel.cli.run.target import resolve_target
    from dit_accel.core.generation import warm_up

    quiet = request.as_json
    target = resolve_target(pipe, settings, strict=request.wants_acceleration)
    settings = target.settings
    run.check_accepted(pipe, settings)
    for remark in (*target.remarks, *prompt_check.remarks(pipe, settings)):
        say(remark, kind="note")
    if target.choice is not None and not quiet:
        say(announcement(settings, target.choice), kind="plan")
    uncached = reference = None
    if settings.compare:
        with _status("warming up", quiet=quiet):
            warm_up(pipe, settings.clip)
        with StepBar("uncached", settings.loop_steps, quiet=quiet) as bar:
            uncached, reference = run.run_uncached(pipe, settings, bar)
    with StepBar(label, settings.loop_steps, quiet=quiet) as bar:
        result = run.run_accelerated(pipe, settings, bar, target.text, reference)
    if uncached is not None:
        run.learn(pipe, settings, result, uncached)
    return target, result, uncached


def _write(
    files: Files,
    model: LoadableModel,
    target: RunTarget,
    result: Generation,
    uncached: Generation | None,
    layout: Layout | None,
    **more: Any,
) -> dict[str, Any]:
    """Write every file or none. Returns the content of the sidecar."""
    from dit_accel.cli.run.sidecar import record

    compared = result, uncached
    if layout is not None:
        compared = shots.as_one(result), shots.as_one(uncached) if uncached else None
        clips = shots.clips_of(files, layout, result, uncached)
    else:
        clips = writing.clips_of(files, result.frames, uncached.frames if uncached else None)
    content = record(files, model, target, *compared)
    content |= more
    with writing.all_or_none([*files.present().values()]) as folder:
        began = time.perf_counter()
        writing.write_clips(folder, clips, target.settings.fps)
        content["costs"]["stage_seconds"]["write"] = time.perf_counter() - began
        content["bytes"] = {path.name: (folder / path.name).stat().st_size for path in clips}
        writing.write_json(folder, files.sidecar, content)
    return content


def _status(text: str, *, quiet: bool) -> contextlib.AbstractContextManager[object]:
    """Show a spinner while the body runs; it leaves no line behind."""
    if quiet:
        return contextlib.nullcontext()
    return spinner(text)
