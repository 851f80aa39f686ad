"""The tables of docs/planning.md, "Cheaper computes": do levels pay, at equal cost?

    OMP_NUM_THREADS=1 python scripts/table_levels.py --calibration 2 --prompts 6 --work out/levels

1. Levels are tried along uncached runs of the first calibration prompts (`trials.py`), and join the
   shipped profile: error and cost of each.
2. What pruning would be expected to gain where attention is more of a step than here.
3. At the cost of 20, 13 and 12 full steps of 50: the plan of that many full steps, and the best
   plans with levels that the profile finds (`cheaper.py`), of all kinds and of some kind alone, are
   carried out on prompts that neither training nor calibration saw, whether they are expected to
   pay or not. PSNR against the uncached clip, paired prompt by prompt.

Errors and costs depend on the machine in their seconds alone. What is done is kept in `--work`, so
that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import WanPipeline

from dit_accel import accelerate, cheaper, miniature
from dit_accel.autopilot import FILE
from dit_accel.levels import LevelTable
from dit_accel.metrics import psnr
from dit_accel.plans import Plan
from dit_accel.profile import Profile
from dit_accel.takes import Clip, call_arguments
from dit_accel.trials import try_levels
from dit_accel.workfolder import WorkFolder

PROMPTS = Path(__file__).resolve().parents[1] / "assets" / "prompts"
BUDGETS = (20, 13, 12)
SHARES = (0.2, 0.5, 0.8, 0.95, 1.0)
KINDS = ("prune", "attention", "block")


def clips_of(name: str, count: int, seed: int) -> list[Clip]:
    lines = (PROMPTS / f"{name}.jsonl").read_text().splitlines()[:count]
    prompts = [json.loads(line)["prompt"] for line in lines]
    return [
        Clip(prompt, None, seed + i, 50, 4.0, 64, 64, 17, max_sequence_length=64)
        for i, prompt in enumerate(prompts)
    ]


def measured(pipe: Any, count: int, work: Path) -> LevelTable:
    """Errors and costs of all candidates on calibration prompts."""
    clips = clips_of("calibration", count, 1000)
    folder = WorkFolder(work / "trials", clips[:1], None, pipe)

    def told(done: int, total: int) -> None:
        print(f"trial {done + 1} of {total}", file=sys.stderr, flush=True)

    return try_levels(pipe, clips, kept=folder.get, told=told)


def only(table: LevelTable, kind: str) -> LevelTable:
    """The levels of one kind."""
    rows = [i for i, level in enumerate(table.levels) if level.kind == kind]
    return dataclasses.replace(
        table, levels=tuple(table.levels[i] for i in rows), errors=table.errors[rows],
        flops=table.flops[rows], seconds=table.seconds[rows],
    )  # fmt: skip


def plans(profile: Profile, kinds: Sequence[str]) -> Iterator[tuple[int, str, Plan, float, str]]:
    """Budget, name, plan, expected PSNR, and which levels."""
    assert profile.levels is not None
    for budget in BUDGETS:
        plain = next(r for r in profile.rungs if len(r.computed) == budget)
        yield budget, "full steps only", profile.plan_of(plain), float(plain.psnr_db.mean()), ""
        tables = {"levels, all kinds": profile.levels}
        tables |= {f"levels, {kind} alone": only(profile.levels, kind) for kind in kinds}
        for name, table in tables.items():
            offer = cheaper.best_offer(dataclasses.replace(profile, levels=table), budget)
            if offer is not None:
                plan = profile.plan_of(offer.rung)
                plan = dataclasses.replace(plan, levels=dict(offer.choice.levels))
                yield budget, name, plan, offer.psnr_db, cheaper.names(plan.levels)


def one_plan(pipe: Any, clip: Clip, profile: Profile, plan: Plan, whole: Any) -> dict[str, float]:
    """A plan on one prompt: PSNR against the uncached clip, and the share of its FLOPs."""
    with accelerate(pipe, plan=plan, mix=profile.schedule.mix) as handle:
        frames = pipe(**call_arguments(pipe, clip)).frames[0]
        report = handle.report()
    if set(report.levels) != set(plan.levels):
        raise RuntimeError(f"levels were asked for at {plan.levels}, done at {report.levels}")
    score = psnr(whole, frames, data_range=1.0)
    print(f"{score:.1f} dB, levels {report.levels}: {clip.prompt}", file=sys.stderr, flush=True)
    return {"psnr_db": score, "flops": report.flops_kept or math.nan}


def level_table(profile: Profile) -> None:
    """Error and cost of every level, and the share of a full step that it would have to save."""
    table = profile.levels
    assert table is not None
    ages = ", ".join(map(str, table.ages))
    columns = ["level", "FLOPs", f"seconds, {table.device}", f"guided error, {ages} steps old"]
    columns += [f"must save at {budget} steps" for budget in BUDGETS]
    print_row(columns)
    print_row(["---"] * len(columns))
    rungs = [next(r for r in profile.rungs if len(r.computed) == budget) for budget in BUDGETS]
    margins = [cheaper.margins(profile, rung, table) for rung in rungs]
    for i, (level, errors) in enumerate(zip(table.levels, cheaper.mean_errors(table), strict=True)):
        needed = [f"{row[i].needed:.0%} (step {row[i].step})" if row else "–" for row in margins]
        shown = ", ".join(f"{error:.1%}" for error in errors)
        print_row([level.name, f"{table.flops[i]:.0%}", f"{table.seconds[i]:.0%}", shown, *needed])


def result_table(
    profile: Profile, results: list[dict[str, dict[str, float]]], kinds: Sequence[str]
) -> None:
    """PSNR of every plan, and paired with the plan of full steps alone at the same cost."""
    columns = ["at the cost of", "plan", "computed, of them at levels", "FLOPs kept"]
    columns += [f"PSNR, {len(results)} prompts", "against full steps only, lowest and highest"]
    print()
    print_row([*columns, "expected"])
    print_row(["---"] * (len(columns) + 1))
    said = []
    for budget, name, plan, expected, which in plans(profile, kinds):
        rows = [result[f"{budget} {name}"] for result in results]
        gains = [row["psnr_db"] - result[f"{budget} full steps only"]["psnr_db"]
                 for row, result in zip(rows, results, strict=True)]  # fmt: skip
        gain = f"{statistics.fmean(gains):+.1f} [{min(gains):+.1f}, {max(gains):+.1f}]"
        flops, score = (statistics.fmean(row[key] for row in rows) for key in ("flops", "psnr_db"))
        print_row(
            [
                f"{budget} steps ({50 / budget:.2f}×)", name,
                f"{len(plan.computed)}, {len(plan.levels)}", f"{flops:.1%}", f"{score:.1f}",
                gain if plan.levels else "", f"{expected:.1f}",
            ]
        )  # fmt: skip
        said += [f"{budget}, {name}: {len(plan.computed)} computed; {which}"] if which else []
    print("\n" + "\n".join(said))


def share_table(profile: Profile) -> None:
    """What pruning would be expected to gain were attention's products more of a step, as they are
    in larger models: errors as here, and a pruned product costs its density, no more."""
    table = only(profile.levels, "prune") if profile.levels is not None else None
    assert table is not None
    densities = torch.tensor([level.density for level in table.levels], dtype=torch.float64)
    print()
    print_row(["attention's products, share of a step", *(f"{b} steps" for b in BUDGETS)])
    print_row(["---"] * (1 + len(BUDGETS)))
    for share in SHARES:
        flops = 1 - share * (1 - densities)
        found = dataclasses.replace(profile, levels=dataclasses.replace(table, flops=flops))
        gains = {one.budget: one.gain_db for one in cheaper.verdicts(found)}
        cells = (gains[budget] for budget in BUDGETS)
        print_row([f"{share:.0%}", *(f"{g:+.1f} dB" if math.isfinite(g) else "–" for g in cells)])


def print_row(cells: list[str]) -> None:
    print("| " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--calibration", type=int, default=2, help="prompts to try levels on")
    parser.add_argument("--prompts", type=int, default=6, help="prompts to carry plans out on")
    parser.add_argument(
        "--kinds", nargs="*", choices=KINDS, default=[], help="also with levels of one kind"
    )
    parser.add_argument("--work", type=Path, default=Path("out/levels"))
    parser.add_argument("--into", type=Path, help="save the profile with its levels here")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    args.work.mkdir(parents=True, exist_ok=True)
    pipe = WanPipeline.from_pretrained(str(miniature.path()))
    pipe.set_progress_bar_config(disable=True)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    profile = Profile.load(miniature.path() / FILE)
    profile = dataclasses.replace(profile, levels=measured(pipe, args.calibration, args.work))
    if args.into is not None:
        profile.save(args.into)
    level_table(profile)
    share_table(profile)
    kept = WorkFolder(args.work / "clips", clips_of("miniature", 1, 0), None, pipe)
    results: list[dict[str, dict[str, float]]] = []
    for clip in clips_of("miniature", args.prompts, 0):
        whole = kept.get(f"{clip}", lambda c=clip: pipe(**call_arguments(pipe, c)).frames[0])
        results.append({})
        for budget, name, plan, _, which in plans(profile, args.kinds):
            results[-1][f"{budget} {name}"] = kept.get(
                f"{clip} {plan.computed} {which}",
                lambda c=clip, p=plan, w=whole: one_plan(pipe, c, profile, p, w),
            )
    result_table(profile, results, args.kinds)


if __name__ == "__main__":
    main()
