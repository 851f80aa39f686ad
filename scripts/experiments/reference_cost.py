"""Measures the cost of recording an uncached reference: the table of the log.

    python scripts/experiments/reference_cost.py MODEL... --rounds 3

For `MODEL` and `--loader` see table_first_clip.py. Stock and recorded runs alternate, and their
clips must be equal. Seconds are the CPU time of the process: other work on the machine does not
count.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from table_first_clip import Model

from dit_accel.caching import reference as recording

PROMPT = "a red circle moving right"


def seconds_of(model: Model, run: recording.ReferenceRun | None = None) -> tuple[float, Any]:
    def ended(pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if run is not None:
            run.steps_done(step + 1)
        return tensors

    given = {"generator": torch.Generator().manual_seed(0), "output_type": "latent"}
    began = time.process_time()
    made = model.pipe(**model.call | given, prompt=PROMPT, callback_on_step_end=ended).frames
    return time.process_time() - began, made


def measure(model: Model, rounds: int) -> None:
    seconds_of(model)  # warm-up
    rows = []
    for _ in range(rounds):
        stock, clip = seconds_of(model)
        with recording.recorded(model.pipe) as run:
            run.loop_begins()
            recorded, same = seconds_of(model, run)
        if not torch.equal(clip, same):
            raise RuntimeError("the recorded clip is another one")
        rows.append((stock, recorded, run.seconds, run.seconds_after))
    stock, recorded, begin, after = (
        statistics.median(column) for column in zip(*rows, strict=True)
    )
    left = (recorded - begin - after) / stock - 1
    print(f"{model.name}: stock {stock:.3f} s, recorded {recorded / stock - 1:+.1%}; "
          f"begin {begin / stock:.2%}, products {after / stock:.2%}, left {left:+.1%}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--loader", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    recording.time.perf_counter = time.process_time  # type: ignore[attr-defined]
    for name in given.models:
        measure(Model(name, given.loader, [PROMPT]), given.rounds)


if __name__ == "__main__":
    main()
