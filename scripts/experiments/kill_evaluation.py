"""Kills processes that share an evaluation's folder, and compares the results with a calm run.

    OMP_NUM_THREADS=1 python scripts/experiments/kill_evaluation.py --kills 50

Two processes at a time work in one folder. A random one of them gets SIGKILL at a random moment,
and another one replaces it, until there were enough kills and all jobs are done. The methods reuse
steps of 30, with windows at every site, with a plan and with fewer steps. All results except the
clock are compared byte by byte, the frames by their hashes; also how often each job began and
ended. The processes are forked from one that has loaded the packages, so a kill costs no start.
Ours.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import tiny  # noqa: E402
from commands import invoke  # noqa: E402

from dit_accel.evaluation.store import Store  # noqa: E402

METHODS = "uncached,edcw:9,edcw/block:9,edcw/attention:9,speedup:2,speedup:3,fewer-steps:15"
CLIP = ("--height", "16", "--width", "16", "--frames", "9", "--steps", "30", "--guidance", "4")


def words(prompts: Path, model: Path, profile: Path, out: Path) -> list[str]:
    more = ["--methods", METHODS, "--profile", str(profile), "--seeds", "0,1", "--json"]
    return ["evaluate", str(prompts), "--model", str(model), "--output", str(out), *CLIP, *more]


def work(command: list[str]) -> None:
    """One process, from its beginning to the end of the whole evaluation."""
    torch.set_num_threads(1)
    result = invoke(*command)
    if result.exit_code:
        print(result.stderr, file=sys.stderr, flush=True)
    os._exit(result.exit_code)


def results(out: Path) -> dict[str, str]:
    """Every result without its clock. Raises an error if the frames are not those of the result."""
    store, found = Store(out), {}
    for path in sorted((out / "jobs").glob("*.json")):
        content = json.loads(path.read_text())
        store.read_clip(path.stem, content["frames_sha256"])
        del content["clock"]
        found[path.stem] = json.dumps(content, sort_keys=True)
    return found


def disturbed(command: list[str], kills: int, seed: int) -> int:
    """Run the evaluation with this number of kills. Returns the number of started processes."""
    context, draw = multiprocessing.get_context("fork"), random.Random(seed)

    def start() -> BaseProcess:
        process = context.Process(target=work, args=(command,))
        process.start()
        return process

    running, started, killed = [start(), start()], 2, 0
    while running:
        time.sleep(draw.uniform(0.05, 1.5))
        running = [process for process in running if process.is_alive()]
        if killed < kills and running:
            victim = draw.choice(running)
            os.kill(victim.pid or 0, signal.SIGKILL)
            victim.join()
            running.remove(victim)
            killed += 1
        while running and killed <= kills and len(running) < 2:
            running.append(start())
            started += 1
        if not running and killed < kills:
            raise SystemExit(f"all was done after {killed} kills: add prompts")
    return started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        report(measure(Path(folder), given), given)


def measure(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    model, prompts, profile = folder / "model", folder / "a.txt", folder / "p.safetensors"
    tiny.tiny_wan().save_pretrained(model)
    prompts.write_text("".join(f"a circle, number {i}\n" for i in range(given.prompts)))
    calibrated = invoke("calibrate", str(prompts), "--limit", "3", "--model", str(model), *CLIP,
                        "--minutes", "0",
                        "--speedups", "2,3", "--probes", "3", "--output", str(profile))  # fmt: skip
    assert calibrated.exit_code == 0, calibrated.output
    calm, out = folder / "calm", folder / "killed"
    began = time.monotonic()
    one = multiprocessing.get_context("fork").Process(
        target=work, args=(words(prompts, model, profile, calm),)
    )
    one.start()
    one.join()
    calm_seconds = time.monotonic() - began
    began = time.monotonic()
    started = disturbed(words(prompts, model, profile, out), given.kills, given.seed)
    seconds = time.monotonic() - began
    entries = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    ended = Counter(entry["job"] for entry in entries if entry["event"] == "end")
    begun = Counter(entry["job"] for entry in entries if entry["event"] == "begin")
    mine, theirs = results(calm), results(out)
    computed = Counter()
    for text in mine.values():
        content = json.loads(text)
        calls = list(content["computed"].values())
        share = sum(map(sum, calls)) / (2 * len(calls) * 30)
        computed[content["job"]["method"]] += share / (2 * given.prompts)
    return {
        "jobs": len(mine), "equal": mine == theirs, "processes": started,
        "working": len({entry["pid"] for entry in entries}),
        "again": sum(begun.values()) - len(mine),
        "twice": sum(count > 1 for count in ended.values()), "calm": calm_seconds,
        "seconds": seconds, "computed": dict(computed),
        "left": sorted(path.name for path in (out / "claims").iterdir()),
    }  # fmt: skip


def report(found: dict[str, Any], given: argparse.Namespace) -> None:
    print(f"jobs {found['jobs']}, kills {given.kills}, processes {found['processes']}, of which "
          f"{found['working']} began a job")  # fmt: skip
    print(f"jobs begun again after a kill {found['again']}, jobs ended twice {found['twice']}")
    print(f"results equal byte by byte: {found['equal']}; left in claims: {found['left']}")
    print(f"seconds: calm {found['calm']:.0f}, with kills {found['seconds']:.0f}")
    shares = ", ".join(f"{name} {share:.2f}" for name, share in found["computed"].items())
    print(f"share of the calls computed: {shares}")


if __name__ == "__main__":
    main()
