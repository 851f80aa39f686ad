"""`dit-accel bench`: the speed of methods on transformers of real size, with random weights.

In: names of checkpoints and methods. Out: a table for each checkpoint, or one JSON object.
Knows sizes and options; `evaluation/speed.py` measures. Nothing is downloaded. Ours.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dit_accel.cli.common import options
from dit_accel.cli.common.errors import BadInput, RunFailed, refused
from dit_accel.cli.common.files import print_json
from dit_accel.cli.common.options import MachineOptions, SizeOptions, option
from dit_accel.cli.common.text import plain_console, print_table
from dit_accel.cli.common.verb import verb
from dit_accel.cli.run.request import check_clip
from dit_accel.models.checkpoints import DENOISERS, Denoiser, Shape

if TYPE_CHECKING:
    from rich.table import Table

    from dit_accel.evaluation.speed import BenchmarkCase, SpeedResult

BENCH_METHODS = "uncached,edcw:0.8,diffusers/first-block:0.5,fewer-steps"
FEWEST_STEPS = 4
SMALL_STEPS = 12


@dataclass(frozen=True, kw_only=True)
class BenchOptions(SizeOptions, MachineOptions):
    """The options of `bench`."""

    model: str = option(
        next(iter(DENOISERS)), f"Any of {', '.join(DENOISERS)}; or all.", metavar="NAME,…|all"
    )
    methods: str = option(BENCH_METHODS, options.METHODS_HELP)
    small: bool | None = option(
        None, "Use fewer, narrower blocks and a small clip; or the real size.", "--small/--full",
        shown="full on CUDA, else small",
    )  # fmt: skip
    steps: int | None = option(
        None, "Denoising steps.", metavar="N", min=FEWEST_STEPS,
        shown=f"the authors', {SMALL_STEPS} with --small",
    )  # fmt: skip
    rounds: int = option(3, "Runs of each method.", metavar="N", min=1)
    guidance: float | None = options.guidance()
    as_json: bool = options.as_json()


@verb(BenchOptions)
def bench(given: BenchOptions) -> None:
    """Measure the speed of methods on models of real size, with random weights.

    Nothing is downloaded.
    """
    rows = _rows(given.model)
    check_clip(given)
    from dit_accel.evaluation import methods as table
    from dit_accel.evaluation.runner import machine
    from dit_accel.models.loading import choose_device, choose_dtype
    from dit_accel.models.setup import check_backend

    device = choose_device(given.device)
    dtype = choose_dtype(given.dtype, device)
    if given.attention_backend is not None:
        check_backend(given.attention_backend, device)
    cases = [_case(row, given, device, dtype) for row in rows]
    with refused("--methods: "):
        settings = table.parse_list(_with_half(given.methods, cases[0].steps), cases[0].steps)
    for setting in settings:
        if missing := table.METHODS[setting.method].lacking():
            raise BadInput(f"--methods: {setting.label}: {missing}")
    results = [_measure(case, settings, given) for case in cases]
    if given.as_json:
        print_json({"machine": machine(device), "results": results})


def _rows(names: str) -> list[Denoiser]:
    if names.strip() == "all":
        return list(DENOISERS.values())
    by_name = {**DENOISERS, **{row.checkpoint: row for row in DENOISERS.values()}}
    wanted = options.listed(names)
    unknown = [name for name in wanted if name not in by_name]
    if unknown or not wanted:
        raise BadInput(
            f"--model is {', '.join(unknown) or names!r}; accepted: {', '.join(DENOISERS)}, or all"
        )
    return [by_name[name] for name in wanted]


def _case(row: Denoiser, given: BenchOptions, device: str, dtype: str) -> BenchmarkCase:
    from dit_accel.cli.run.settings import setup_of
    from dit_accel.evaluation.speed import BenchmarkCase

    small = not device.startswith("cuda") if given.small is None else given.small
    steps = given.steps or (SMALL_STEPS if small else row.steps)
    shape = _shape(row, row.small_shape if small else row.shape, given)
    guidance = row.guidance if given.guidance is None else given.guidance
    return BenchmarkCase(
        row, small, shape, steps, guidance, device, dtype, given.rounds, setup_of(given)
    )


def _measure(case: BenchmarkCase, settings: Any, given: BenchOptions) -> dict[str, Any]:
    """Run the methods on one model and print their table; for JSON only return the record."""
    from rich.text import Text

    from dit_accel.evaluation import speed
    from dit_accel.models.loading import quiet_libraries

    console = plain_console(stderr=True)
    console.quiet = given.as_json
    with quiet_libraries(verbose=given.verbose), console.status("") as status:
        try:
            found = speed.measure(case, settings, lambda text: status.update(Text(text)))
        except speed.DoesNotFitError as error:
            raise RunFailed(f"{error}; pass --small, or another --model") from error
    if not given.as_json:
        print_table(_table(case, found))
    return _record(case, found)


def _with_half(methods: str, steps: int) -> str:
    """`fewer-steps` without a number means half the steps, because its own default may be too
    many."""
    half = f"fewer-steps:{steps // 2}"
    parts = (part.strip() for part in methods.split(","))
    return ",".join(half if part == "fewer-steps" else part for part in parts)


def _shape(row: Denoiser, usual: Shape, given: BenchOptions) -> Shape:
    from dit_accel.cli.run.settings import SizeStrides, check_sizes

    height, width = given.height or usual.height, given.width or usual.width
    frames, side = given.frames or usual.frames, row.strides.spatial
    check_sizes(SizeStrides(side, row.strides.temporal, side), height, width, frames)
    return Shape(height, width, frames)


def _table(case: BenchmarkCase, found: list[SpeedResult]) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    size = "reduced" if case.small else "full size"
    title = (
        f"{case.denoiser.name}, {size}, {case.shape}, {case.steps} steps, "
        f"guidance {case.guidance:g}, {case.dtype}, {case.device}"
    )
    table = Table(title=title, title_justify="left", box=SIMPLE)
    table.add_column("method", no_wrap=True)
    for name in (
        "steps\ncomputed", "FLOPs\n", "s/step\ncomputed", "s/step\ncached", "overhead\nms/step",
        "overhead\n", "speedup\n", "peak\nGiB",
    ):  # fmt: skip
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


def _record(case: BenchmarkCase, found: list[SpeedResult]) -> dict[str, Any]:
    names = ("small", "steps", "guidance", "dtype", "rounds")
    setup = case.setup.to_dict()
    return {
        "model": case.denoiser.name,
        "checkpoint": case.denoiser.checkpoint,
        **dataclasses.asdict(case.shape),
        **{name: getattr(case, name) for name in names},
        **({"setup": setup} if setup else {}),
        "methods": [dataclasses.asdict(row) for row in found],
    }
