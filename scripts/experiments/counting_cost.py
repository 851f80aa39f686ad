"""Measures the cost of counting FLOPs, and of noticing changed weights, on a CPU.

In: nothing; the models have random weights, those of true size one row for each matrix. Out: two
tables: ways to count the FLOPs of a forward, and milliseconds of `parts_of` and of a report's
counting at true size.
Does not know: GPUs. Source: ours; research/LOG.md has the tables.

    OMP_NUM_THREADS=1 python scripts/experiments/counting_cost.py
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch._dynamo.testing import CompileCounter
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import flop_counter
import small_denoisers
import tiny

from dit_accel.core.families import family_of
from dit_accel.core.flops import FlopMeter, Rows, forward_costs, rows_of
from dit_accel.evaluation import speed
from dit_accel.models.checkpoints import DENOISERS
from dit_accel.planning.parts import parts_of

MODES: dict[str, Callable[[], Any]] = {
    "dispatch mode": lambda: FlopCounterMode(display=False),
    "function mode": FlopMeter,
}


def best(function: Callable[[], Any], rounds: int = 7) -> float:
    """Milliseconds of the fastest round."""
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        found.append(time.perf_counter() - start)
    return 1000 * min(found)


def ways_to_count() -> None:
    case = small_denoisers.trial("wan2.1-1.3b")
    pipe = speed.build(case)
    module, calls = pipe.transformer, flop_counter.forward_arguments(pipe.transformer)
    small_denoisers.latents(pipe, case)
    args, kwargs = calls[0]

    def within(mode: Callable[[], Any]) -> None:
        with mode():
            module(*args, **kwargs)

    family = family_of(pipe)
    print("| way | ms | with compiled blocks |\n|---|---|---|")
    print(f"| nothing is counted | {best(lambda: module(*args, **kwargs)):.1f} | one graph |")
    sizes = best(lambda: forward_costs(module, family, rows_of(module, args, kwargs)))
    for name, mode in MODES.items():
        milliseconds = best(lambda mode=mode: within(mode))
        print(f"| {name} | {milliseconds:.1f} | {compiled(case, mode, args, kwargs)} |")
    print(f"| sizes alone | {sizes:.2f} | one graph |\n")


def compiled(case: Any, mode: Callable[[], Any], args: Any, kwargs: Any) -> str:
    """What happens to compiled blocks if one forward is counted."""
    torch._dynamo.reset()
    counter, module = CompileCounter(), speed.build(case).transformer
    module.compile_repeated_blocks(backend=counter, fullgraph=True)
    try:
        module(*args, **kwargs)
        with mode():
            module(*args, **kwargs)
        module(*args, **kwargs)
    except RuntimeError as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return f"{counter.frame_count} graphs"


def true_size() -> None:
    print("| model | parts, ms | FLOPs, ms |\n|---|---|---|")
    for name in ("wan2.1-1.3b", "wan2.1-14b", "ltx-video", "hunyuan-video"):
        row = DENOISERS[name]
        with torch.device("meta"):
            module = getattr(diffusers, row.transformer)(**row.config)
        for owner in module.modules():
            for key, weight in owner._parameters.items():
                if weight is not None:
                    line = torch.randn(1, *weight.shape[1:], dtype=torch.bfloat16)
                    owner._parameters[key] = torch.nn.Parameter(line.expand(weight.shape), False)
        pipe = tiny.tiny_wan()
        pipe.transformer = module
        rows, family = Rows(1, 1, 32760, 512, 0), family_of(pipe)
        parts = best(lambda pipe=pipe: parts_of(pipe))
        flops = best(lambda one=module, kind=family, seen=rows: forward_costs(one, kind, seen))
        print(f"| {name} | {parts:.1f} | {flops:.1f} |")


if __name__ == "__main__":
    with torch.no_grad():
        ways_to_count()
        true_size()
