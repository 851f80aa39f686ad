"""Measures how far our plans are from the bound of trained samplers, and the value of levers.

    python scripts/experiments/table_bound.py MODEL --device cuda --output bound.jsonl \\
        --trained runs/rivals

Goes in: a model's folder, and for the rows of BNS a folder of `table_rivals.py` with trained
samplers. One profile of `--clips` clips is made. For each number of computed steps, its plan gives
the places and the initial weights: better weights come from Gauss-Newton steps on the same clips,
from Adam on these, or from Adam on `--more` clips. Each lever is trained in the same way,
separately from the others:

    weights  those of the plan: of the last five predictions, in every window
    wide     of all predictions, and of a computed step's own too: BNS on the plan's places
    bands    weights of their own for low and high spatial frequencies of the latents
    frames   weights of their own for the first latent frame
    labels   the timesteps that the model gets are free, by up to a half
    block    the first block is computed in the middle of every window, on what the others added at
             the last computed step; so many computed steps fewer that the FLOPs are no more

Comes out: one row in each line, for clips that were not used before. Existing rows are not made
again. `--table` prints the table of a file. Adam runs in TF32 on CUDA, everything else in float32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from bound_samplers import CHEAP, FULL, Clips, Sampler, drive, to
from bound_subject import Subject
from bound_training import Job, adam, gauss_newton

from dit_accel.evaluation.statistics import mean
from dit_accel.models import miniature
from dit_accel.planning.lookup import find_profile
from dit_accel.planning.plan import Plan
from dit_accel.planning.profile import Profile
from dit_accel.planning.selection import Target, choose

LEVERS = ("weights", "wide", "bands", "frames", "labels", "block")
BNS = {"bns": "BNS", "bns/grid": "BNS on the grid"}


class Table:
    """All rows for one number of computed steps."""

    def __init__(self, subject: Subject, rows: Rows, count: int) -> None:
        self.subject, self.rows, self.count = subject, rows, count
        self.made: list[tuple[str, Sampler, torch.Tensor, dict[str, Any]]] = []

    def run(self) -> None:
        subject, profile, begun = self.subject, self.subject.profile(), time.monotonic()
        self._plans(profile)
        self._bns()
        levers = [lever for lever in subject.args.levers if self._missing(lever)]
        jobs = [job for lever in levers for job in self._lever(lever, profile)]
        named = [job for _, job in jobs]
        if named and subject.args.iterations:
            adam(subject.model, named, subject.args.iterations)
            for row, job in jobs:
                known = {"held_out_db": -job.best_db, "began_db": -job.first_db}
                self.made.append((row, job.sampler, job.values, known))
        self._score(time.monotonic() - begun)

    def _missing(self, lever: str) -> bool:
        args = self.subject.args
        name = _row(lever, args.more, "Adam") if args.iterations else _row(
            lever, args.clips, f"Gauss-Newton {self._steps(lever)}"
        )  # fmt: skip
        return not self.rows.has(self.subject.name, self.count, name)

    def _steps(self, lever: str) -> int:
        """Number of Gauss-Newton steps: one for all but the first, because Adam does the rest."""
        wanted: int = self.subject.args.gauss_newton
        return wanted if lever == "weights" else min(wanted, 1)

    def _plans(self, profile: Profile) -> None:
        shipped = find_profile(self.subject.pipe)
        target = Target(speedup=self.subject.steps / self.count)
        if shipped is not None:
            plan = choose(Profile.load(shipped), None, target, static=True).plan
            self._add("the plan as it ships", self.subject.sampler(plan))
        plan = _plan_of(profile, self.count)
        self._add(f"the plan of {self.subject.args.clips} clips", self.subject.sampler(plan), plan)

    def _add(self, row: str, sampler: Sampler, plan: Plan | None = None) -> None:
        shape = (0, sampler.groups, len(sampler.kinds), sampler.base[0].numel() + 1)
        sampler.directions = torch.zeros(shape, dtype=torch.float64, device=sampler.base.device)
        sampler.firsts = torch.zeros(0)
        self.made.append((row, sampler, sampler.start(), {} if plan is None else {"plan": plan}))

    def _bns(self) -> None:
        """The samplers that table_rivals.py trained on clips that are not scored."""
        folder = self.subject.args.trained
        for name, row in BNS.items():
            path = None if folder is None else (
                folder / "calibration" / f"{name.replace('/', '-')}-{self.count}.json"
            )  # fmt: skip
            if path is None or not path.exists():
                continue
            found = json.loads(path.read_text(encoding="utf-8"))
            k, weights = self.count, torch.tensor(self.subject.weights).double()
            labels, noise, table = (torch.tensor(found[n]).double()
                                    for n in ("labels", "noise", "weights"))  # fmt: skip
            own = Sampler([FULL] * k, labels, table[:, :, None] * weights, noise,
                          torch.zeros(k, k).double(), [[]] * k)  # fmt: skip
            self._add(row, to(own, self.subject.pipe.device))

    def _lever(self, lever: str, profile: Profile) -> Iterator[tuple[str, Job]]:
        """Make Gauss-Newton steps. Returns what Adam trains from there."""
        args, model, few = self.subject.args, self.subject.model, self.subject.few
        count = self.subject.block_count(self.count) if lever == "block" else self.count
        if count < 2:
            print(f"{self.count}, {lever}: too few steps would be computed", flush=True)
            return
        sampler = self.subject.oriented(_plan_of(profile, count), lever)
        values = sampler.start()
        if lever == "weights":
            # all of them train: clips that the plan was fitted to cannot show when to stop
            yield _row(lever, args.clips, "Adam"), Job(sampler, values, few, few)
        for step in range(self._steps(lever)):
            values, said = gauss_newton(model, sampler, values, few)
            print(f"{self.count}, {lever}, Gauss-Newton {step + 1}: {said}", flush=True)
            row = _row(lever, args.clips, f"Gauss-Newton {step + 1}")
            self.made.append((row, sampler, values, {"step": said}))
        yield _row(lever, args.more, "Adam"), self._job(sampler, values, self.subject.many)

    def _job(self, sampler: Sampler, values: torch.Tensor, clips: Clips) -> Job:
        """A training job. The last quarter of the clips chooses the values."""
        train = len(clips.numbers) - max(1, len(clips.numbers) // 4)
        return Job(sampler, values, clips.at(slice(train)), clips.at(slice(train, None)))

    @torch.no_grad()
    def _score(self, seconds: float) -> None:
        subject = self.subject
        missing = [one for one in self.made if not self.rows.has(subject.name, self.count, one[0])]
        scored = [subject.scored.run(sampler, values[None]) for _, sampler, values, _ in missing]
        ends = drive(subject.model, scored)
        for (row, sampler, _, known), (made, _) in zip(missing, ends, strict=True):
            plan = known.pop("plan", None)
            if plan is not None:
                known["agrees_db"] = subject.agreement(plan, made[0])
            cheap = sampler.kinds.count(CHEAP)
            cost = len(sampler.kinds) - cheap + cheap * subject.block_share
            self.rows.add(
                model=subject.name, computed=self.count, row=row, cost=round(cost, 2),
                **subject.scores(made[0]), **known, seconds=round(seconds, 1),
            )  # fmt: skip


def _row(lever: str, clips: int, how: str) -> str:
    return f"{lever}, {clips} clips, {how}"


def _plan_of(profile: Profile, count: int) -> Plan:
    return next(profile.plan_of(c) for c in profile.candidates if len(c.computed) == count)


class Rows:
    """The output file, with one row in each line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self.all: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def has(self, model: str, computed: int, row: str) -> bool:
        wanted = (model, computed, row)
        return any((r["model"], r["computed"], r["row"]) == wanted for r in self.all)

    def add(self, **row: Any) -> None:
        self.all.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        levels = (statistics.fmean(row[name]) for name in ("psnr_db", "latents_db"))
        said = ", ".join(f"{level:.2f}" for level in levels)
        print(f"{row['computed']}, {row['row']}: {said} dB, cost {row['cost']}", flush=True)

    def table(self) -> str:
        """Markdown, with one table for each model."""
        parts = []
        for model in dict.fromkeys(row["model"] for row in self.all):
            own = [row for row in self.all if row["model"] == model]
            counts = sorted({row["computed"] for row in own}, reverse=True)
            head = f"| {model}: frames' PSNR ± half of its 95 % interval; latents, dB; cost | "
            lines = [head + " | ".join(map(str, counts)) + " |", "|---" * (len(counts) + 1) + "|"]
            for name in dict.fromkeys(row["row"] for row in own):
                at = {row["computed"]: _cell(row) for row in own if row["row"] == name}
                lines.append(f"| {name} | " + " | ".join(at.get(c, "") for c in counts) + " |")
            parts.append("\n".join(lines))
        return "\n\n".join(parts)


def _cell(row: dict[str, Any]) -> str:
    found, latents = mean(row["psnr_db"]), statistics.fmean(row["latents_db"])
    half = "" if found.low is None or found.high is None else (
        f" ± {(found.high - found.low) / 2:.1f}"
    )  # fmt: skip
    return f"{found.value:.2f}{half}; {latents:.2f}; {row['cost']:g}"


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path, nargs="?", default=miniature.path())
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("--trained", type=Path, help="folder of table_rivals.py")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--computed", type=int, nargs="+", default=[20, 13, 10])
    parser.add_argument("--levers", nargs="*", choices=LEVERS, default=list(LEVERS))
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--clips", type=int, default=8, help="of the plan and of every lever")
    parser.add_argument("--more", type=int, default=64, help="that Adam trains on in the end")
    parser.add_argument("--gauss-newton", type=int, default=3, help="steps of `weights`")
    parser.add_argument("--iterations", type=int, default=100, help="of Adam")
    parser.add_argument("--batch", type=int, default=32, help="clips of one call")
    parser.add_argument("--prompt-file", type=Path, default=miniature.prompts("miniature.jsonl"))
    parser.add_argument("--calibration", type=Path, default=miniature.prompts("calibration.jsonl"))
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    args = arguments(words)
    rows = Rows(args.output)
    if not args.table:
        subject = Subject(args)
        for count in args.computed:
            Table(subject, rows, count).run()
    print(rows.table())


if __name__ == "__main__":
    main()
