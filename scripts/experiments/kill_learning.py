"""Kills processes while they learn: every recorded run must be in the file at the end.

    nice python scripts/experiments/kill_learning.py --kills 50

Two processes at a time add observations of runs to one file, and write every added run in their own
journal. At random moments one of them is killed, and another one replaces it. At the end the file
must be whole, have every run of the journals, and at most one more for each kill: the current run.
The sums are compared too, number by number. Ours.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from dit_accel.planning import learned, learned_file
from dit_accel.planning.plan import SamplerCoefficients
from dit_accel.planning.profile_key import ProfileKey

STEPS = 50
KEY = ProfileKey("a", "b", "c", "0" * 16, "1" * 16)


def observation(seed: int) -> learned.Observations:
    """An observation of one run: random rows, with one of two guidances."""
    sampler = SamplerCoefficients(
        torch.full((STEPS,), -1 / STEPS).double(), torch.arange(STEPS, 0, -1).double(), (1.0, -3.0)
    )
    rows = torch.randn(
        sampler.num_rows, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    kind = learned.RunKind(sampler, 4.0 + seed % 2, 200)
    return learned.Observations(kind, 1, rows @ rows.T)


def work(path: Path, journal: Path, first: int, count: int) -> None:
    """Add this number of runs."""
    torch.set_num_threads(1)
    with journal.open("a") as file:
        for seed in range(first, first + count):
            one = observation(seed)
            learned_file.update(
                path, learned.Learned(KEY), lambda known, one=one: known.with_run(one)
            )
            file.write(f"{seed}\n")
            file.flush()


def measure(folder: Path, kills: int, count: int, seed: int = 0) -> dict[str, Any]:
    """Add runs with two processes at a time, and this number of kills."""
    path, draw = folder / "learned" / "a.safetensors", random.Random(seed)
    context, started, killed = multiprocessing.get_context("fork"), 0, 0
    running: list[BaseProcess] = []
    while killed < kills or running or not started:
        while len(running) < 2 and (killed < kills or started < 2):
            journal = folder / f"{started}.txt"
            process = context.Process(target=work, args=(path, journal, started * count, count))
            process.start()
            running.append(process)
            started += 1
        time.sleep(draw.uniform(0.0, 0.4))
        running = [process for process in running if process.is_alive()]
        if running and killed < kills:
            victim = draw.choice(running)
            os.kill(victim.pid or 0, signal.SIGKILL)
            victim.join()
            running.remove(victim)
            killed += 1
    return _result(folder, path) | {"processes": started, "kills": killed}


def _result(folder: Path, path: Path) -> dict[str, Any]:
    found = learned_file.load(path)
    noted = [int(line) for file in folder.glob("*.txt") for line in file.read_text().split()]
    sums: dict[float, torch.Tensor] = {}
    for seed in noted:
        one = observation(seed)
        sums[one.kind.guidance] = sums.get(one.kind.guidance, torch.zeros(())) + one.products
    exact = found.runs == len(noted)
    differences = [
        float((one.products - sums[one.kind.guidance]).abs().max()) for one in found.observations
    ]
    return {
        "noted": len(noted), "in_file": found.runs, "exact": exact,
        "largest_difference": max(differences) if exact else None,
        "left": sorted(p.name for p in path.parent.iterdir() if p.name.startswith(".")),
        "bytes": path.stat().st_size,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--runs", type=int, default=40, help="of each process")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(measure(Path(folder), given.kills, given.runs, given.seed))


if __name__ == "__main__":
    main()
