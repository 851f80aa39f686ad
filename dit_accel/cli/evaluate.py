"""`dit-accel evaluate`: many prompts by many methods, scored against their uncached twins."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from dit_accel.cli import options
from dit_accel.cli.errors import BadInput, RunFailed, reported, say
from dit_accel.cli.request import Request, size_of

if TYPE_CHECKING:
    from dit_accel.evaluate.jobs import Job, Plan, Shard
    from dit_accel.evaluate.store import Store
    from dit_accel.loading import Model

DEFAULT_METHODS = "uncached,edcw:*,fewer-steps:*"
DEFAULT_METRICS = "psnr_db,ssim,mae,tdiff,flicker,tof,latent_rel_l2,latent_cosine"
NOISE_FLOOR = "rerun,rerun/attention,rerun/dtype"
_WORK, _TABLE = "How the work is shared", "What is compared"


@dataclass(frozen=True)
class Asked:
    """The options that `generate` does not have."""

    prompts: Path
    out: Path
    methods: str
    metrics: str
    seeds: str
    noise_floor: bool
    profile: Path | None
    static: bool
    cache_memory: str | None
    limit: int | None
    shard: str | None
    backend: str
    workers: int
    keep_clips: bool
    retry_failed: bool
    rescore: bool


def evaluate(
    prompts: Annotated[
        Path,
        typer.Argument(
            metavar="PROMPTS", help="A .jsonl or .txt file, or VBench's .json.", show_default=False
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="The folder of the evaluation; an old one is gone on with.", show_default=False
        ),
    ],
    model: options.Model = None,
    methods: Annotated[
        str,
        typer.Option(
            help="Names of methods with their numbers: NAME:0.1,0.2; NAME:* is a whole sweep.",
            rich_help_panel=_TABLE,
        ),
    ] = DEFAULT_METHODS,
    metrics: Annotated[
        str, typer.Option(help="Names of metrics.", rich_help_panel=_TABLE)
    ] = DEFAULT_METRICS,
    noise_floor: Annotated[
        bool,
        typer.Option(
            "--noise-floor",
            help="Also run the uncached model again: as it is, and in other arithmetic.",
            rich_help_panel=_TABLE,
        ),
    ] = False,
    seeds: Annotated[
        str, typer.Option(help="Seeds, with commas between.", rich_help_panel=_TABLE)
    ] = "0",
    profile: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What `calibrate` measured: for the methods quality and speedup.",
            show_default="in the model's folder, or in the cache",
            rich_help_panel=_TABLE,
        ),
    ] = None,
    static: Annotated[
        bool,
        typer.Option(
            "--static",
            help="With quality and speedup: every run does the same, without a guard.",
            rich_help_panel=_TABLE,
        ),
    ] = False,
    cache_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="With quality and speedup: what kept values may hold on the device, e.g. 512MiB.",
            show_default="no bound",
            rich_help_panel=_TABLE,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            help="Take the first so many prompts.",
            show_default="all",
            rich_help_panel=_TABLE,
            min=1,
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="i/n",
            help="Do one of n parts, from 0.",
            show_default="from torchrun's or SLURM's variables, else all",
            rich_help_panel=_WORK,
        ),
    ] = None,
    backend: Annotated[
        str,
        typer.Option(
            metavar="local|ray", help="This process, or a Ray cluster.", rich_help_panel=_WORK
        ),
    ] = "local",
    workers: Annotated[
        int, typer.Option(help="Actors on the Ray cluster.", rich_help_panel=_WORK, min=1)
    ] = 1,
    keep_clips: Annotated[
        bool,
        typer.Option(help="Keep every clip; uncached ones are always kept.", rich_help_panel=_WORK),
    ] = True,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed", help="Make again what failed before.", rich_help_panel=_WORK
        ),
    ] = False,
    rescore: Annotated[
        bool,
        typer.Option("--rescore", help="Score every kept clip again.", rich_help_panel=_WORK),
    ] = False,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    height: options.Height = None,
    width: options.Width = None,
    frames: options.Frames = None,
    fps: options.Fps = None,
    negative: options.Negative = None,
    as_json: options.Json = False,
    dtype: options.Dtype = None,
    device: options.Device = None,
    verbose: options.Verbose = False,
) -> None:
    """Score methods against the uncached model, prompt by prompt.

    Stop it whenever you like: the same command goes on where it was.
    """
    asked = Asked(
        prompts, out, methods, metrics, seeds, noise_floor, profile, static, cache_memory, limit,
        shard, backend, workers, keep_clips, retry_failed, rescore,
    )  # fmt: skip
    request = Request(
        prompt="(from the file)",
        threshold=0.0,
        site="model",
        model=model,
        steps=steps,
        guidance=guidance,
        height=height,
        width=width,
        frames=frames,
        fps=fps,
        negative=negative,
        dtype=dtype,
        device=device,
    )
    with reported(verbose=verbose):
        _evaluate(asked, request, as_json=as_json, verbose=verbose)


def _evaluate(asked: Asked, request: Request, *, as_json: bool, verbose: bool) -> None:
    request.check()
    if asked.backend not in ("local", "ray"):
        raise BadInput(f"--backend is {asked.backend!r}: must be local or ray")
    if asked.cache_memory is not None:
        size_of("--cache-memory", asked.cache_memory)
    from dit_accel.evaluate.worker import rescore
    from dit_accel.loading import choose_device, choose_dtype, find, quiet_libraries

    with _as_command_errors(), quiet_libraries(verbose=verbose):
        shard = _shard(asked.shard)
        device = _own_device(choose_device(request.device))
        model = find(request.model)
        plan = _plan(asked, request, model, device, choose_dtype(request.dtype, device))
        profile = _profile(asked, plan, model)
        store, plan = _open(asked, plan, profile)
        groups = shard.of(plan.groups())
        if asked.retry_failed:
            _forget_failed(store, groups)
        _work(store, plan, model, device, groups, asked, quiet=as_json)
        scored = rescore(store, plan, groups, asked.rescore)
        if scored and not as_json:
            say(f"{scored} clips scored again", style="yellow")
        _tell(store, plan, as_json=as_json)


def _plan(asked: Asked, request: Request, model: Model, device: str, dtype: str) -> Plan:
    from dit_accel.cli.record import versions
    from dit_accel.cli.settings import resolve
    from dit_accel.evaluate import jobs
    from dit_accel.methods import METHODS, parse_list

    settings = resolve(request, model, device=device, dtype=dtype)
    floor = f",{NOISE_FLOOR}" if asked.noise_floor else ""
    methods = parse_list(asked.methods + floor, settings.steps)
    for name in dict.fromkeys(setting.method for setting in methods):
        lacking = METHODS[name].lacking()
        if lacking:
            raise BadInput(f"--methods has {name}: {lacking}")
    _check_planned(asked, [setting.method for setting in methods])
    memory = asked.cache_memory
    return jobs.Plan(
        model=jobs.Model(model.name, settings.pipeline, jobs.fingerprint(model.folder)),
        clip=settings.clip,
        dtype=dtype,
        device=device.partition(":")[0],
        prompts=_read_prompts(asked),
        seeds=_seeds(asked.seeds),
        methods=methods,
        metrics=_metrics(asked.metrics),
        versions={name: versions()[name] for name in jobs.CORE},
        keep_clips=asked.keep_clips,
        static=asked.static,
        cache_memory=None if memory is None else size_of("--cache-memory", memory),
    )


def _check_planned(asked: Asked, methods: list[str]) -> None:
    """Refuse what none of the methods would heed."""
    from dit_accel.methods import METHODS

    if any(METHODS[name].profiled for name in methods):
        return
    planned = [row.name for row in METHODS.values() if row.profiled]
    given = {"--static": asked.static, "--cache-memory": asked.cache_memory}
    for option, value in given.items():
        if value:
            raise BadInput(
                f"{option} is given: applies to the methods {' and '.join(planned)} only, and "
                "--methods has neither"
            )


def _profile(asked: Asked, plan: Plan, model: Model) -> Path | None:
    """The profile that a method needs, made sure of; None where none needs one."""
    from dit_accel.cli.aim import read_profile
    from dit_accel.cli.plan import find_profile

    if not plan.planned:
        return None
    path = asked.profile or find_profile(model)
    if path is None:
        raise BadInput(
            f"--methods has {plan.planned[0]}, and no profile of {model.name} was found in its "
            "folder or the cache: `dit-accel calibrate` measures one, or pass --profile"
        )
    read_profile(path)
    return path


def _read_prompts(asked: Asked) -> tuple[Any, ...]:
    from dit_accel.evaluate.prompts import read_prompts

    try:
        return read_prompts(asked.prompts)[: asked.limit]
    except OSError as error:
        raise BadInput(f"PROMPTS is {str(asked.prompts)!r}: {error.strerror}") from error


def _metrics(text: str) -> tuple[str, ...]:
    from dit_accel.metrics import METRICS

    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in names or (text,):
        if name not in METRICS:
            raise BadInput(f"--metrics has {name!r}: accepted are {', '.join(METRICS)}")
    return names


def _seeds(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) < 2**63 for part in parts):
        raise BadInput(f"--seeds is {text!r}: must be whole numbers from 0, with commas between")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _shard(text: str | None) -> Shard:
    from dit_accel.evaluate.jobs import parse_shard, shard_of_environment

    return parse_shard(text) if text is not None else shard_of_environment()


def _own_device(device: str) -> str:
    """Under a launcher, this process's GPU of its machine."""
    import os

    local = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID"))
    return f"cuda:{int(local)}" if device == "cuda" and local else device


def _open(asked: Asked, plan: Plan, profile: Path | None) -> tuple[Store, Plan]:
    import dataclasses
    import hashlib

    from dit_accel.evaluate.store import Store

    store = Store(asked.out)
    try:
        if profile is None:
            return store, store.open(plan)
        name = hashlib.sha256(profile.read_bytes()).hexdigest()[:20]
        plan = store.open(dataclasses.replace(plan, profile=name))
        store.keep_profile(name, profile)
        return store, plan
    except OSError as error:
        raise BadInput(f"--out is {str(asked.out)!r}: {error.strerror}") from error


def _forget_failed(store: Store, groups: list[tuple[Job, ...]]) -> None:
    from dit_accel.evaluate.runner import FAILED

    for job in (job for group in groups for job in group):
        result = store.result(job.id)
        if result is not None and result["status"] == FAILED:
            store.forget(job.id)


def _work(
    store: Store,
    plan: Plan,
    model: Model,
    device: str,
    groups: list[tuple[Job, ...]],
    asked: Asked,
    *,
    quiet: bool,
) -> None:
    from dit_accel.evaluate import worker

    jobs = [job for group in groups for job in group]
    done = sum(store.done(job.id) for job in jobs)
    if done and not quiet:
        say(f"{done} of {len(jobs)} clips are there already", style="yellow")
    with _bar(len(jobs), done, quiet=quiet) as advance:
        if asked.backend == "ray":
            _check_ray()
            open_groups = [g for g in groups if not all(store.done(job.id) for job in g)]
            worker.work_with_ray(
                store, plan, str(model.folder), open_groups, asked.workers,
                told=lambda count: advance(count, ""),
            )  # fmt: skip
        else:
            worker.work(
                store, plan, str(model.folder), device, groups,
                told=lambda job, result: advance(1, job.method.label),
            )  # fmt: skip


def _check_ray() -> None:
    import importlib.util

    if importlib.util.find_spec("ray") is None:
        raise BadInput("--backend is 'ray', which is not installed: pip install 'dit-accel[ray]'")


@contextlib.contextmanager
def _bar(total: int, done: int, *, quiet: bool) -> Iterator[Callable[[int, str], None]]:
    columns = (TextColumn("{task.description:<27}"), BarColumn(bar_width=12), MofNCompleteColumn(),
               TimeElapsedColumn(), TextColumn("gone,"),
               TimeRemainingColumn(elapsed_when_finished=False), TextColumn("left"))  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        task = progress.add_task("loading", total=total, completed=done)
        yield lambda count, text: progress.update(task, advance=count, description=text[:27])


def _tell(store: Store, plan: Plan, *, as_json: bool) -> None:
    from dit_accel.cli.files import as_json as encode
    from dit_accel.cli.table import markdown_table, summary_table
    from dit_accel.evaluate.summary import summarise

    summary = summarise(store, plan)
    store.write_summary(summary.to_dict(), markdown_table(summary, plan.metrics))
    if as_json:
        sys.stdout.write(encode(summary.to_dict()) + "\n")
        return
    console = Console(highlight=False)
    console.print(summary_table(summary, plan.metrics))
    console.print(f"{summary.done} of {summary.jobs} clips done, in {store.folder}")


@contextlib.contextmanager
def _as_command_errors() -> Iterator[None]:
    """What the evaluation raises, in the words of a command's end."""
    from dit_accel.evaluate.runner import ChildFailed
    from dit_accel.evaluate.store import StoreError

    try:
        yield
    except ValueError as error:
        raise BadInput(str(error)) from error
    except StoreError as error:
        raise BadInput(f"--out: {error}") from error
    except ChildFailed as error:
        raise RunFailed(str(error)) from error
    except OSError as error:
        where = f"{error.filename} cannot be written: " if error.filename else ""
        raise RunFailed(f"{where}{error.strerror or error}; what is done is kept") from error
