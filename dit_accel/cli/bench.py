"""`dit-accel bench`: speed of denoisers at real size, with random weights."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from dit_accel.cli.common import options
from dit_accel.cli.common.errors import BadInput, RunFailed, reported
from dit_accel.cli.run.request import DTYPE_NAMES
from dit_accel.models.checkpoints import DENOISERS, Denoiser, Shape

if TYPE_CHECKING:
    from dit_accel.evaluation.speed import BenchmarkCase, SpeedResult

BENCH_METHODS = "uncached,edcw:0.8,diffusers/first-block:0.5,fewer-steps"
FEWEST_STEPS = 4
SMALL_STEPS = 12
PIPED_WIDTH = 120


def bench(
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME,…|all", help=f"Of {', '.join(DENOISERS)}; with commas between, or all."
        ),
    ] = next(iter(DENOISERS)),
    methods: Annotated[
        str,
        typer.Option(
            help="Names of methods with their numbers: NAME:0.1,0.2; NAME:* is a whole sweep."
        ),
    ] = BENCH_METHODS,
    small: Annotated[
        bool | None,
        typer.Option(
            "--small/--full",
            help="Fewer and narrower blocks on a small clip, or the true size.",
            show_default="full on CUDA, else small",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Denoising steps.",
            show_default=f"the authors', {SMALL_STEPS} with --small",
            min=FEWEST_STEPS,
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(help="How often each method runs.", min=1)] = 3,
    guidance: options.Guidance = None,
    height: options.Height = None,
    width: options.Width = None,
    frames: options.Frames = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    verbose: options.Verbose = False,
) -> None:
    """Measure the speed of methods on denoisers of real size, without their weights.

    Nothing is downloaded. The last line on stdout is JSON.
    """
    with reported(verbose=verbose):
        rows = _rows(model)
        if dtype is not None and dtype not in DTYPE_NAMES:
            raise BadInput(f"--dtype is {dtype!r}: must be one of {', '.join(DTYPE_NAMES)}")
        _bench(rows, methods, small, steps, rounds, guidance, (height, width, frames),
               dtype, device, verbose=verbose)  # fmt: skip


def _rows(names: str) -> list[Denoiser]:
    if names.strip() == "all":
        return list(DENOISERS.values())
    by_name = {**DENOISERS, **{row.checkpoint: row for row in DENOISERS.values()}}
    asked = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in asked if name not in by_name]
    if unknown or not asked:
        raise BadInput(
            f"--model is {', '.join(unknown) or names!r}: must be of {', '.join(DENOISERS)}, or all"
        )
    return [by_name[name] for name in asked]


def _bench(
    rows: list[Denoiser],
    methods: str,
    small: bool | None,
    steps: int | None,
    rounds: int,
    guidance: float | None,
    size: tuple[int | None, int | None, int | None],
    dtype: str | None,
    device: str | None,
    *,
    verbose: bool,
) -> None:
    from dit_accel.evaluation import methods as table
    from dit_accel.evaluation import speed
    from dit_accel.evaluation.runner import machine
    from dit_accel.models.loading import choose_device, choose_dtype, quiet_libraries

    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    reduced = not device.startswith("cuda") if small is None else small
    trials = []
    for row in rows:
        count = steps or (SMALL_STEPS if reduced else row.steps)
        shape = _shape(row, row.small_shape if reduced else row.shape, size)
        chosen = row.guidance if guidance is None else guidance
        trials.append(
            speed.BenchmarkCase(row, reduced, shape, count, chosen, device, dtype, rounds)
        )
    counted = _with_half(methods, trials[0].steps)
    try:
        settings = table.parse_list(counted, trials[0].steps)
    except ValueError as error:
        raise BadInput(f"--methods: {error}") from error
    for setting in settings:
        if missing := table.METHODS[setting.method].lacking():
            raise BadInput(f"--methods: {setting.label}: {missing}")
    results = []
    for trial in trials:
        console = Console(stderr=True)
        with quiet_libraries(verbose=verbose), console.status("") as status:
            try:
                found = speed.measure(trial, settings, lambda text: status.update(text))
            except speed.DoesNotFitError as error:
                raise RunFailed(f"{error}; pass --small, or another --model") from error
        width = None if sys.stdout.isatty() else PIPED_WIDTH
        Console(highlight=False, width=width).print(_table(trial, found))
        results.append(_record(trial, found))
    sys.stdout.write(json.dumps({"machine": machine(device), "results": results}) + "\n")


def _with_half(methods: str, steps: int) -> str:
    """`fewer-steps` without a number is half of them: the row's own default may be too many."""
    half = f"fewer-steps:{steps // 2}"
    parts = (part.strip() for part in methods.split(","))
    return ",".join(half if part == "fewer-steps" else part for part in parts)


def _shape(row: Denoiser, usual: Shape, size: tuple[int | None, int | None, int | None]) -> Shape:
    height, width, frames = (
        given or default
        for given, default in zip(size, (usual.height, usual.width, usual.frames), strict=True)
    )
    for option, value in (("--height", height), ("--width", width)):
        if value < 1 or value % row.strides.spatial:
            raise BadInput(
                f"{option} is {value}: must be a multiple of {row.strides.spatial} for {row.name}"
            )
    if frames < 1 or (frames - 1) % row.strides.temporal:
        accepted = f"1 more than a multiple of {row.strides.temporal}"
        raise BadInput(f"--frames is {frames}: must be {accepted} for {row.name}")
    return Shape(height, width, frames)


def _table(trial: BenchmarkCase, found: list[SpeedResult]) -> Table:
    size = "reduced" if trial.small else "full size"
    title = (
        f"{trial.denoiser.name}, {size}, {trial.shape}, {trial.steps} steps, "
        f"guidance {trial.guidance:g}, {trial.dtype}, {trial.device}"
    )
    table = Table(title=title, title_justify="left", box=SIMPLE)
    table.add_column("method", no_wrap=True)
    for name in (
        "steps\ncomputed",
        "FLOPs\nkept",
        "s/step\ncomputed",
        "s/step\nreused",
        "overhead\nms/step",
        "overhead\n",
        "speedup\n",
        "peak\nGiB",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for row in found:
        table.add_row(row.method, *_cells(row))
    notes = [f"{row.method}: {text}" for row in found for text in (*row.remarks, row.error) if text]
    if notes:
        table.caption = "\n".join(notes)
        table.caption_justify = "left"
    return table


def _cells(row: SpeedResult) -> tuple[str, ...]:
    if row.error is not None:
        return ("failed",)
    return (
        f"{row.steps_computed}/{row.steps}",
        _shown(row.flops_kept, "{:.0%}"),
        _shown(row.seconds_per_computed_step, "{:.3g}"),
        _shown(row.seconds_per_reused_step, "{:.3g}"),
        _shown(row.overhead_seconds_per_step, "{:+.1f}", 1000),
        _shown(row.overhead, "{:+.1%}"),
        _shown(row.speedup, "{:.2f}×"),
        _shown(row.peak_memory_bytes, "{:.2f}", 1 / 2**30),
    )


def _shown(value: float | None, pattern: str, scale: float = 1) -> str:
    return "–" if value is None else pattern.format(value * scale)


def _record(trial: BenchmarkCase, found: list[SpeedResult]) -> dict[str, Any]:
    return {
        "model": trial.denoiser.name,
        "checkpoint": trial.denoiser.checkpoint,
        "small": trial.small,
        "height": trial.shape.height,
        "width": trial.shape.width,
        "frames": trial.shape.frames,
        "steps": trial.steps,
        "guidance": trial.guidance,
        "dtype": trial.dtype,
        "rounds": trial.rounds,
        "methods": [row.to_dict() for row in found],
    }
