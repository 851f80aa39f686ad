"""Compares a clip on two GPUs with that of one GPU, and its wall time with the ideal.

    torchrun --nproc-per-node 2 scripts/experiments/table_two_gpus.py --output runs/two-gpus.json
    torchrun --nproc-per-node 2 scripts/experiments/table_two_gpus.py --small  # a CPU, with gloo

In: the number of steps, and a size. Out: JSON with a row for each setting: seconds of the whole
call, the ideal, the computed steps, and the relative error to the same setting on one GPU. The
model is Wan2.1-1.3B at 480x832x81 in bfloat16 with random weights, embeddings come in and latents
go out, so a call is its denoising loop. Runs for one GPU are made on both GPUs at once, and the
first GPU's run counts. `ideal` is the time of the uncached call on the same number of GPUs, times
the share of computed steps. It knows our `accelerate`, and diffusers' context parallelism. Source:
ours.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

os.environ["HF_HUB_OFFLINE"] = "1"  # no library may download anything

import torch
import torch.distributed as dist
from process_groups import end

from dit_accel import accelerate
from dit_accel.core.generation import call_arguments
from dit_accel.evaluation import speed
from dit_accel.models.checkpoints import DENOISERS, Shape

WAIT = datetime.timedelta(minutes=5)
MODEL = "wan2.1-1.3b"
TINY: dict[str, int] = {"num_attention_heads": 2, "num_layers": 3}
SITES = ("model", "block", "attention")


@dataclasses.dataclass
class Setting:
    """The measurements of one setting on one or two GPUs."""

    name: str
    gpus: int
    seconds: list[float] = dataclasses.field(default_factory=list)
    clip: torch.Tensor | None = None
    computed_share: float = 1.0
    computed: list[int] = dataclasses.field(default_factory=list)
    reported_seconds: float | None = None
    notes: tuple[str, ...] = ()


class Bench:
    """A pipeline on this rank, and the arguments of its call."""

    def __init__(self, *, small: bool, steps: int, rounds: int, threshold: float) -> None:
        row = DENOISERS[MODEL]
        if small:
            row = dataclasses.replace(row, small=row.small | TINY)
        cuda = not small
        self.rank, self.rounds, self.threshold = dist.get_rank(), rounds, threshold
        self.device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if cuda else "cpu"
        self.case = speed.BenchmarkCase(
            denoiser=row, small=small, shape=Shape(64, 64, 9) if small else row.shape, steps=steps,
            guidance=row.guidance, device=self.device, dtype="bfloat16" if cuda else "float32",
        )  # fmt: skip
        self.rows: list[Setting] = []

    def build(self) -> Any:
        """A pipeline whose weights are the same on every rank."""
        return speed.build(self.case)

    def call(self, pipe: Any, steps: int | None = None) -> tuple[torch.Tensor, float]:
        """Latents of a clip, and the seconds of the call."""
        dtype = getattr(torch, self.case.dtype)
        given = speed.embeddings(self.case.prompt, self.case.guidance, self.device, dtype)
        arguments = call_arguments(pipe, self.case.clip) | given | {"output_type": "latent"}
        if steps is not None:
            arguments["num_inference_steps"] = steps
        dist.barrier()
        self._wait()
        began = time.perf_counter()
        clip = pipe(**arguments).frames
        self._wait()
        return clip, time.perf_counter() - began

    def _wait(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)

    def measure(self, name: str, gpus: int, pipe: Any, handle: Any = None) -> None:
        """Time some calls of the pipeline in its present state. The first one is a warm-up."""
        row = Setting(name, gpus)
        self.call(pipe, None if handle is not None else 2)
        for _ in range(self.rounds):
            row.clip, seconds = self.call(pipe)
            row.seconds.append(seconds)
        if handle is not None:
            report = handle.report()
            row.computed_share = report.flops_spent / report.flops_full
            row.computed = [*report.sites[0].computed]
            row.reported_seconds, row.notes = report.seconds, report.notes
        self.rows.append(row)
        if self.rank == 0:
            print(f"{name} on {gpus}: {statistics.median(row.seconds):.3f} s", file=sys.stderr)

    def run(self) -> None:
        """All settings: on one GPU, with divided tokens, and with a branch on each GPU."""
        pipe = self.build()
        self.measure("uncached", 1, pipe)
        with accelerate(pipe, speedup=2.5) as plan:
            self.call(pipe)  # this call is recorded; every later call is planned from it
            self.measure("plan", 1, pipe, plan)
        self._windows(1, pipe)
        self._divide(pipe)
        self.measure("uncached", 2, pipe)
        with accelerate(pipe, speedup=2.5) as plan:
            self.call(pipe)
            self.measure("plan", 2, pipe, plan)
        self._windows(2, pipe)
        pipe.transformer = None
        self._branches(self.build())

    def _branches(self, pipe: Any) -> None:
        with accelerate(pipe, branch_parallel=True) as handle:
            self.measure("uncached, a branch each", 2, pipe, handle)
        with accelerate(pipe, speedup=2.5, branch_parallel=True) as handle:
            self.call(pipe)
            self.measure("plan, a branch each", 2, pipe, handle)

    def _windows(self, gpus: int, pipe: Any) -> None:
        for site in SITES if self.threshold else ():
            with accelerate(pipe, threshold=self.threshold, site=site) as handle:
                self.measure(f"windows at {site}", gpus, pipe, handle)

    def _divide(self, pipe: Any) -> None:
        """Divide by the attention heads (Ulysses). Without accelerators, diffusers would divide by
        zero."""
        from diffusers import ContextParallelConfig

        none = mock.patch.object(torch.accelerator, "device_count", return_value=1)
        with none if self.device == "cpu" else contextlib.nullcontext():
            pipe.transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))


def table(rows: list[Setting]) -> list[dict[str, Any]]:
    """The rows for JSON. Errors are relative to the same setting on one GPU."""
    single = {row.name: row for row in rows if row.gpus == 1}
    found = []
    for row in rows:
        uncached = statistics.median(
            next(r for r in rows if r.name.startswith("uncached") and _like(r, row)).seconds
        )
        wall, same = statistics.median(row.seconds), single[row.name.split(",")[0]]
        ideal = uncached * row.computed_share
        found.append(
            {
                "setting": row.name, "gpus": row.gpus, "wall_seconds": wall,
                "all_seconds": row.seconds, "loop_seconds": row.reported_seconds,
                "computed_share": row.computed_share, "computed": row.computed,
                "ideal_seconds": ideal, "ideal_over_wall": ideal / wall,
                "speedup_to_one_gpu_uncached": statistics.median(single["uncached"].seconds) / wall,
                "relative_error_to_one_gpu": _error(row.clip, same.clip),
                "relative_error_to_uncached": _error(row.clip, single["uncached"].clip),
                "finite": bool(row.clip is not None and row.clip.isfinite().all()),
                "notes": row.notes,
            }
        )  # fmt: skip
    return found


def _like(one: Setting, other: Setting) -> bool:
    """Whether two settings divide a clip in the same way."""
    return one.gpus == other.gpus and ("," in one.name) == ("," in other.name)


def _error(clip: torch.Tensor | None, reference: torch.Tensor | None) -> float | None:
    if clip is None or reference is None:
        return None
    return float((clip - reference).double().norm() / reference.double().norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threshold", type=float, default=0.0, help="0: no windows are measured")
    parser.add_argument("--small", action="store_true", help="a tiny model, on a CPU with gloo")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    if given.small:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", timeout=WAIT)
    else:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=WAIT, device_id=device)
    bench = Bench(
        small=given.small, steps=given.steps, rounds=given.rounds, threshold=given.threshold
    )
    bench.run()
    if bench.rank == 0:
        import diffusers

        name = bench.device if given.small else torch.cuda.get_device_name()
        result = {
            "device": name, "torch": torch.__version__, "diffusers": diffusers.__version__,
            "model": MODEL, "size": str(bench.case.shape), "steps": given.steps,
            "rows": table(bench.rows),
        }  # fmt: skip
        text = json.dumps(result, indent=1)
        print(text)
        if given.output is not None:
            given.output.parent.mkdir(parents=True, exist_ok=True)
            given.output.write_text(text + "\n")
    end()


if __name__ == "__main__":
    main()
