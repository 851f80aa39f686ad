"""Measures wall time of whole calls against the ideal, at the true size of models, on a GPU.

python scripts/experiments/table_wall.py wan2.1-1.3b ltx-video --steps 20 50 --output wall.jsonl
python scripts/experiments/table_wall.py --table wall.jsonl

Goes in: names of `models/checkpoints.py`. Comes out: one line of JSON for every call, and from
these the table of docs/results.md. Weights are random, so clips are noise; seconds do not depend on
that. Prompts are given as embeddings and latents come out, so a call is only its denoising loop.
`ideal` is the share of computed forwards, times the seconds of the uncached calls before and after
it. `--tiny` tests the script on a CPU. The rivals' thresholds are so high that they reuse as much
as possible: random weights do not show their real savings. It knows diffusers' classes, cache-dit's
and ours.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch

from dit_accel import accelerate
from dit_accel.core.families import family_of
from dit_accel.core.generation import call_arguments
from dit_accel.core.measure import Clock, synchronise
from dit_accel.evaluation.speed import BenchmarkCase, build, embeddings
from dit_accel.models.checkpoints import DENOISERS, Shape

SPEEDUP = 2.5
RIVALS = ("first-block", "cache-dit")
SHAPES = {"wan2.1-14b": Shape(480, 832, 81)}  # others: the authors' usual clip


@dataclass(frozen=True)
class Bench:
    """A pipeline on its device, and how it is called."""

    case: BenchmarkCase
    pipe: Any
    compiled: str
    output: Path | None
    calls: int = 3

    @property
    def device(self) -> str:
        return self.case.device

    @cached_property
    def given(self) -> dict[str, Any]:
        """Arguments of a call: embeddings go in, latents come out."""
        case = self.case
        text = embeddings(case.prompt, case.guidance, case.device, getattr(torch, case.dtype))
        return call_arguments(self.pipe, case.clip) | text | {"output_type": "latent"}

    def run(self, steps: int) -> tuple[float, list[float]]:
        """Seconds of a call, and of every step. No step waits for the device."""
        clock = StepClock(self.device)
        generator = torch.Generator(self.device).manual_seed(0)
        given = self.given | {"num_inference_steps": steps, "generator": generator}
        synchronise(torch.device(self.device))
        started = time.perf_counter()
        clock.mark()
        self.pipe(**given, callback_on_step_end=clock)
        synchronise(torch.device(self.device))
        return time.perf_counter() - started, clock.seconds()

    def record(self, **row: Any) -> dict[str, Any]:
        """Print a row, and append it to the output."""
        row = {"model": self.case.denoiser.name, "compiled": self.compiled, **row}
        line = json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()})
        print(line.partition(', "steps_ms"')[0], flush=True)
        if self.output is not None:
            with self.output.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        return row


class StepClock:
    """A pipeline's step callback that marks the end of every step on the device's own clock."""

    def __init__(self, device: str) -> None:
        self.device, self.marks = torch.device(device), list[Clock]()

    def mark(self) -> None:
        self.marks.append(Clock(self.device))

    def __call__(self, pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict:
        self.mark()
        return given

    def seconds(self) -> list[float]:
        """Seconds of every step, once the device is synchronised."""
        return [after.since(before) for before, after in itertools.pairwise(self.marks)]


def case_of(name: str, device: str, *, tiny: bool) -> BenchmarkCase:
    """A checkpoint's denoiser with random weights; `tiny`: its reduced form, and a small clip."""
    row = DENOISERS[name]
    shape = Shape(64, 64, 17) if tiny else SHAPES.get(name, row.shape)
    return BenchmarkCase(
        row, tiny, shape, row.steps, row.guidance, device, "float32" if tiny else "bfloat16"
    )


def measure(
    bench: Bench, steps: int, rows: list[str], *, once: bool, uncached: list[float]
) -> None:
    """Measure all rows for one number of steps, between two uncached calls; or after one; or
    without any, if the seconds of one are given."""
    once, uncached = once or bool(uncached), uncached or [bench.run(steps)[0]]
    found = []
    for row in rows:
        found += [one | {"row": row} for one in (OURS.get(row) or _rival(row))(bench, steps)]
    uncached += [] if once else [bench.run(steps)[0]]
    mean = statistics.mean(uncached)
    for one in found:
        ideal = mean * one.pop("share")
        one |= {"steps": steps, "uncached": mean, "ideal": ideal, "ratio": ideal / one["wall"]}
        bench.record(**one)
    spread = (max(uncached) - min(uncached)) / mean
    bench.record(steps=steps, uncached_calls=len(uncached), uncached=mean, spread=spread)


def scaled(bench: Bench, reference: int) -> Callable[[int], list[float]]:
    """Seconds of an uncached call with any number of steps, from the steps of a shorter one."""
    if not reference:
        return lambda steps: []
    wall, each = bench.run(reference)
    bench.record(reference_steps=reference, uncached=wall, step=statistics.mean(each))
    return lambda steps: [wall + (steps - reference) * statistics.mean(each)]


def planned(static: bool) -> Callable[[Bench, int], list[dict[str, Any]]]:
    """Make calls: the first is recorded, the second planned, and a third one repeats the plan."""

    def run(bench: Bench, steps: int) -> list[dict[str, Any]]:
        found = []
        with accelerate(bench.pipe, speedup=SPEEDUP, static=static) as handle:
            for call in range(bench.calls):
                if bench.device.startswith("cuda"):
                    torch.cuda.reset_peak_memory_stats()
                wall, each = bench.run(steps)
                started = time.perf_counter()
                report = handle.report()
                seconds = time.perf_counter() - started
                reused = [each[step] for step in range(steps) if step not in computed_of(report)]
                found.append({
                    "call": call + 1, "wall": wall, "computed": report.steps_computed,
                    "share": report.steps_computed / steps,
                    "reused_ms": 1e3 * statistics.median(reused) if reused else None,
                    "computed_ms": 1e3 * statistics.median(each[s] for s in computed_of(report)),
                    "first_step_ms": 1e3 * each[0], "cached_mib": report.cached_bytes / 2**20,
                    "peak_gib": peak_gib(bench.device), "host_syncs": report.host_syncs,
                    "report_ms": 1e3 * seconds, "notes": len(report.notes),
                    "steps_ms": [round(1e3 * one, 1) for one in each],
                })  # fmt: skip
        return found

    return run


def computed_of(report: Any) -> set[int]:
    return set(report.sites[0].computed)


def fewer_steps(bench: Bench, steps: int) -> list[dict[str, Any]]:
    """The stock schedule with as many steps as a plan computes."""
    count = round(steps / SPEEDUP)
    wall, _ = bench.run(count)
    return [{"wall": wall, "computed": count, "share": count / steps}]


def _rival(name: str) -> Callable[[Bench, int], list[dict[str, Any]]]:
    def run(bench: Bench, steps: int) -> list[dict[str, Any]]:
        with RIVAL[name](bench.pipe), blocks_computed(bench.pipe) as counts:
            bench.run(steps)
            counts.clear()
            wall, _ = bench.run(steps)
        blocks = blocks_in(bench.pipe)
        forwards = max(counts.values())
        return [{"wall": wall, "share": sum(counts.values()) / len(blocks) / forwards,
                 "peak_gib": peak_gib(bench.device)}]  # fmt: skip

    return run


OURS: dict[str, Callable[[Bench, int], list[dict[str, Any]]]] = {
    "guarded": planned(static=False), "static": planned(static=True), "fewer-steps": fewer_steps,
}  # fmt: skip


@contextmanager
def _first_block(pipe: Any) -> Iterator[None]:
    pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=10.0))
    try:
        yield
    finally:
        pipe.transformer.disable_cache()


@contextmanager
def _cache_dit(pipe: Any) -> Iterator[None]:
    import cache_dit

    separate = type(pipe).__name__ == "WanPipeline"
    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1, Bn_compute_blocks=0, residual_diff_threshold=10.0,
        max_warmup_steps=4, max_continuous_cached_steps=2, enable_separate_cfg=separate,
    )  # fmt: skip
    cache_dit.enable_cache(pipe, cache_config=config)
    try:
        yield
    finally:
        cache_dit.disable_cache(pipe)


RIVAL = {"first-block": _first_block, "cache-dit": _cache_dit}


def blocks_in(pipe: Any) -> list[torch.nn.Module]:
    return [block for group in family_of(pipe).blocks for block in getattr(pipe.transformer, group)]


@contextmanager
def blocks_computed(pipe: Any) -> Iterator[dict[int, int]]:
    """Counts, by block, how often its first attention really ran."""
    counts: dict[int, int] = {}
    handles = []
    for number, block in enumerate(blocks_in(pipe)):

        def count(*_: Any, number: int = number) -> None:
            counts[number] = counts.get(number, 0) + 1

        handles.append(block.attn1.register_forward_pre_hook(count))
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def peak_gib(device: str) -> float | None:
    return torch.cuda.max_memory_allocated() / 2**30 if device.startswith("cuda") else None


def compile_as(pipe: Any, way: str) -> None:
    """Compile the transformer: its repeated blocks, all in one graph, or in CUDA graphs."""
    torch._dynamo.reset()
    if way == "regional" and pipe.transformer._repeated_blocks:
        pipe.transformer.compile_repeated_blocks(fullgraph=True)
    elif way == "regional":  # CogVideoX names no blocks
        for block in blocks_in(pipe):
            block.compile(fullgraph=True)
    elif way == "whole":
        pipe.transformer.compile(fullgraph=True)
    elif way == "cuda-graphs":
        pipe.transformer.compile(fullgraph=True, mode="reduce-overhead")


def graphs() -> dict[str, int]:
    """The number of graphs, and of breaks between them."""
    counters = torch._dynamo.utils.counters
    return {
        "graphs": int(counters["stats"]["unique_graphs"]),
        "graph_breaks": sum(counters["graph_break"].values()),
    }


def table(path: Path) -> None:
    """The rows of a file, as a table for docs/results.md."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    print("| model | compiled | steps | row | wall | speed | ideal / wall | reused step | peak |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        if "wall" not in row:
            continue
        number = f", call {row['call']}" if "call" in row else ""
        reused = f"{row['reused_ms']:.1f} ms" if row.get("reused_ms") else ""
        peak = f"{row['peak_gib']:.1f} GiB" if row.get("peak_gib") else ""
        cells = (
            row["model"], row["compiled"], row["steps"], row["row"] + number,
            f"{row['wall']:.2f} s", f"{row['uncached'] / row['wall']:.2f}×",
            f"{row['ratio']:.3f}", reused, peak,
        )  # fmt: skip
        print("| " + " | ".join(map(str, cells)) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help=f"of {', '.join(DENOISERS)}")
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 50])
    parser.add_argument("--rows", nargs="+", default=["guarded", "static", "fewer-steps", *RIVALS])
    parser.add_argument("--compiled", nargs="+", default=["no"],
                        help="of no, regional, whole, cuda-graphs")  # fmt: skip
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--calls", type=int, default=3, help="of a planned row, from 2")
    parser.add_argument("--once", action="store_true", help="one uncached call, not two")
    parser.add_argument("--reference", type=int, default=0, metavar="N",
                        help="one uncached call, of N steps, that all are scaled from")  # fmt: skip
    parser.add_argument("--tiny", action="store_true", help="small models, to try the script")
    parser.add_argument("--output", type=Path, help="a file that rows are appended to")
    parser.add_argument("--table", type=Path, help="print the table of a file, and nothing else")
    args = parser.parse_args()
    if args.table is not None:
        return table(args.table)
    for name in args.models:
        for way in args.compiled:
            case = case_of(name, args.device, tiny=args.tiny)
            bench = Bench(case, build(case), way, args.output, args.calls)
            compile_as(bench.pipe, way)
            seconds = bench.run(3)[0]  # this compiles, and fills the allocator
            gpu = torch.cuda.get_device_name() if args.device == "cuda" else ""
            bench.record(first_call=seconds, torch=torch.__version__, device=gpu)
            uncached = scaled(bench, args.reference)
            for steps in args.steps:
                rows = [r for r in args.rows if way == "no" or r not in RIVALS]
                measure(bench, steps, rows, once=args.once, uncached=uncached(steps))
            if way != "no":
                bench.record(**graphs())
            del bench
            gc.collect()
            if args.device == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
