"""`dit-accel evaluate`: many prompts by many methods, scored against their uncached twins."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

from dit_accel.cli.common import options
from dit_accel.cli.common.errors import BadInput, RunFailed, reported, say
from dit_accel.cli.evaluate_request import (
    EvaluateOptions,
    opened,
    own_device,
    profile_of,
    shard_of,
    spec_of,
)
from dit_accel.cli.run.request import Request, size_of

if TYPE_CHECKING:
    from dit_accel.evaluation.jobs import EvaluationSpec, Job
    from dit_accel.evaluation.store import Store
    from dit_accel.models.loading import LoadableModel

EVALUATE_METHODS = "uncached,edcw:*,fewer-steps:*"
DEFAULT_METRICS = "psnr_db,ssim,mae,tdiff,flicker,tof,latent_rel_l2,latent_cosine"
_WORK, _TABLE = "How the work is shared", "What is compared"


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
    ] = EVALUATE_METHODS,
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
    asked = EvaluateOptions(
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


def _evaluate(asked: EvaluateOptions, request: Request, *, as_json: bool, verbose: bool) -> None:
    request.check()
    if asked.backend not in ("local", "ray"):
        raise BadInput(f"--backend is {asked.backend!r}: must be local or ray")
    if asked.cache_memory is not None:
        size_of("--cache-memory", asked.cache_memory)
    from dit_accel.evaluation.worker import rescore
    from dit_accel.models.loading import choose_device, choose_dtype, quiet_libraries, resolve_model

    with _as_command_errors(), quiet_libraries(verbose=verbose):
        shard = shard_of(asked.shard)
        device = own_device(choose_device(request.device))
        model = resolve_model(request.model)
        plan = spec_of(asked, request, model, device, choose_dtype(request.dtype, device))
        profile = profile_of(asked, plan, model)
        store, plan = opened(asked, plan, profile)
        groups = shard.of(plan.groups())
        if asked.retry_failed:
            _forget_failed(store, groups)
        _work(store, plan, model, device, groups, asked, quiet=as_json)
        scored = rescore(store, plan, groups, asked.rescore)
        if scored and not as_json:
            say(f"{scored} clips scored again", style="yellow")
        _tell(store, plan, as_json=as_json)


def _forget_failed(store: Store, groups: list[tuple[Job, ...]]) -> None:
    from dit_accel.evaluation.results import FAILED

    for job in (job for group in groups for job in group):
        result = store.result(job.id)
        if result is not None and result["status"] == FAILED:
            store.forget(job.id)


def _work(
    store: Store,
    plan: EvaluationSpec,
    model: LoadableModel,
    device: str,
    groups: list[tuple[Job, ...]],
    asked: EvaluateOptions,
    *,
    quiet: bool,
) -> None:
    from dit_accel.evaluation import worker

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
                on_group=lambda count: advance(count, ""),
            )  # fmt: skip
        else:
            worker.work(
                store, plan, str(model.folder), device, groups,
                on_result=lambda job, result: advance(1, job.method.label),
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


def _tell(store: Store, plan: EvaluationSpec, *, as_json: bool) -> None:
    from dit_accel.cli.common.files import as_json as encode
    from dit_accel.cli.common.tables import markdown_table, summary_table
    from dit_accel.evaluation.summary import summarise

    summary = summarise(store.results(plan))
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
    from dit_accel.evaluation.runner import ChildFailed
    from dit_accel.evaluation.store import StoreError

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
