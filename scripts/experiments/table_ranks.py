"""Checks that two processes that make clips together agree with each other and with one.

    torchrun --nproc-per-node 2 scripts/experiments/table_ranks.py --rounds 50

In: the number of rounds; each has its own noise. Out: a table with one row for each setting: runs,
largest difference of the clips to those of a single process, runs with other decisions, seconds per
run. The exit status is 1 if a clip or a decision differs. A collective that waits longer than a
minute ends the script with an error. It knows the tiny Wan pipeline of the tests, on the CPU, with
gloo and diffusers' own plan of context parallelism. Source: ours.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from diffusers.utils import logging
from process_groups import end
from tiny_families import ROOT

import dit_accel
from dit_accel.core.families import SITES

sys.path.insert(0, str(ROOT / "tests"))
import tiny

WAIT = datetime.timedelta(minutes=1)
STEPS = 12
THRESHOLDS = (0.0, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.5, 2.0, 3.0, 1e9)
# 12 tokens, so that two ranks have 6 each.
CALL: dict[str, Any] = {
    **tiny.CALL, "height": 32, "width": 32, "num_inference_steps": STEPS, "output_type": "latent",
}  # fmt: skip


@dataclass
class Tally:
    """The results of the runs of one setting."""

    runs: int = 0
    reused: int = 0  # decisions not to compute, on this rank
    farthest: float = 0.0  # from the clip of one process
    decided_otherwise: int = 0
    seconds: float = 0.0


Setting = tuple[dict[str, Any], int]  # keywords of `accelerate`, and calls under one handle


def settings(thresholds: tuple[float, ...]) -> dict[str, Setting]:
    """Every technique by name. Without a profile, plans begin at the second call."""
    found: dict[str, Setting] = {
        f"site={site!r} threshold={delta:g}": ({"site": site, "threshold": delta}, 1)
        for site in SITES
        for delta in thresholds
    }
    line = dit_accel.EDCW(threshold=3.0, order=1)
    found["site='model' order=1"] = {"config": line, "site": "model"}, 1
    found |= {
        f"accel='unicp-paper' threshold={delta:g}": (
            {"accel": "unicp-paper", "threshold": delta}, 1
        )
        for delta in (0.0, 0.7, 1e9)
    }  # fmt: skip
    variants: tuple[dict[str, Any], ...] = ({}, {"static": True}, {"cache_memory": 3000})
    for target in ({"speedup": 2.0}, {"quality": 15.0}):
        for more in variants:
            named = " ".join(f"{name}={value!r}" for name, value in (target | more).items())
            found[named] = target | more, 2
    return found


def clip_of(pipe: Any, seed: int) -> torch.Tensor:
    """Latents of a clip."""
    frames: torch.Tensor = pipe(**CALL, generator=torch.Generator().manual_seed(seed)).frames
    return frames


def run(pipe: Any, setting: Setting, seed: int) -> tuple[torch.Tensor, list[Any]]:
    """The last clip of a setting, and the decisions at every site, branch and step."""
    keywords, calls = setting
    with dit_accel.accelerate(pipe, **keywords) as handle:
        for _ in range(calls):
            clip = clip_of(pipe, seed)
        handle.executor.flush()
        sites = handle.executor.site_reports()
    decided = [(site.name, site.branch, site.computed, site.not_computed) for site in sites]
    return clip, decided


def divide(pipe: Any, **degrees: Any) -> None:
    """Enable context parallelism; diffusers divides by the number of accelerators, here none."""
    with mock.patch.object(torch.accelerator, "device_count", return_value=1):
        pipe.transformer.enable_parallelism(config=ContextParallelConfig(**degrees))


def compare(
    single: Any, divided: Any, chosen: dict[str, Setting], rounds: int,
    show: Callable[[str], None],
) -> dict[str, Tally]:  # fmt: skip
    """Compare all settings, `rounds` times."""
    tallies = {name: Tally() for name in chosen}
    for seed in range(rounds):
        for name, setting in chosen.items():
            expected, decided_there = run(single, setting, seed)
            began = time.perf_counter()
            clip, decided = run(divided, setting, seed)
            tally = tallies[name]
            tally.seconds += time.perf_counter() - began
            tally.runs += 1
            tally.reused += sum(len(steps) for *_, steps in decided)
            tally.farthest = max(tally.farthest, float((clip - expected).abs().max()))
            tally.decided_otherwise += decided != decided_there
        show(f"round {seed + 1} of {rounds}")
    return tallies


def table(tallies: dict[str, Tally]) -> str:
    """The table as Markdown."""
    lines = [
        "| setting | runs | reused a run | largest error | decided otherwise | seconds a run |",
        "|---|---|---|---|---|---|",
    ]
    for name, t in tallies.items():
        lines.append(
            f"| `{name}` | {t.runs} | {t.reused / t.runs:.1f} | {t.farthest:.2g} | "
            f"{t.decided_otherwise} | {t.seconds / t.runs:.3f} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--short", action="store_true", help="three thresholds only")
    given = parser.parse_args()
    chosen = settings(THRESHOLDS[::5] if given.short else THRESHOLDS)
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=WAIT)
    agreed = agree(chosen, given.rounds)
    end()
    return 0 if agreed else 1


def agree(chosen: dict[str, Setting], rounds: int) -> bool:
    """Whether no clip and no decision differs; the first rank prints the table."""
    first = dist.get_rank() == 0
    single, divided = tiny.tiny_wan(), tiny.tiny_wan()
    divide(divided, ulysses_degree=2)
    began = time.perf_counter()
    tallies = compare(single, divided, chosen, rounds, print if first else lambda _: None)
    everyone: list[Any] = [None, None]
    dist.all_gather_object(everyone, tallies)
    if first:
        print(table(tallies))
        runs = sum(t.runs for t in tallies.values())
        print(f"\n{runs} runs of two processes in {time.perf_counter() - began:.0f} s, no hang")
    return not any(t.farthest or t.decided_otherwise for one in everyone for t in one.values())


if __name__ == "__main__":
    sys.exit(main())
