"""Measures weights from few clips: the PSNR of other prompts with plans fitted to these clips.

    python scripts/experiments/table_weights.py MODEL... --output results.jsonl

Goes in: folders of models that are not in the prior; for `--loader` see table_first_clip.py. For
each number of computed steps, the plan from the prior is carried out on some clips in one batch,
and its corrections are fitted near those of the search. With 0 clips, the plan is the searched one.
Comes out: one row in each line; existing rows are not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from table_first_clip import Model

from dit_accel import accelerate
from dit_accel.calibration.record import UncachedRun, record
from dit_accel.calibration.refine import REFINED_DEPTH, carry_out
from dit_accel.core.generation import ClipSpec
from dit_accel.evaluation.prompts import read_prompts
from dit_accel.planning.error_model import ErrorModel
from dit_accel.planning.plan import Plan
from dit_accel.planning.prior import SHIPPED, Prior
from dit_accel.planning.search import fit, search
from dit_accel.planning.trajectory import trajectory_of

PROMPTS = Path(__file__).resolve().parents[2] / "assets" / "prompts" / "miniature.jsonl"
FIRST_SEED = 1000  # of the clips for the fit


class FittedModel(Model):
    """A model with the clips that plans are fitted to. Its prompts are those on which plans are
    tried."""

    def __init__(
        self, folder: str, loader: Path | None, prompts: Sequence[str], known: Sequence[str]
    ) -> None:
        super().__init__(folder, loader, prompts)
        self.known = [self._clip(prompt, FIRST_SEED + i) for i, prompt in enumerate(known)]

    def _clip(self, prompt: str, seed: int) -> ClipSpec:
        call = self.call
        return ClipSpec(
            prompt, None, seed, call["num_inference_steps"], call["guidance_scale"], call["height"],
            call["width"], call["num_frames"], max_sequence_length=call.get("max_sequence_length"),
        )  # fmt: skip

    def fitted(self, plan: Plan, weights: tuple[float, ...]) -> torch.Tensor:
        with accelerate(self.pipe, plan=plan, mix=weights):
            return self.clips()


def plans(
    model: FittedModel, error_model: ErrorModel, count: int, clips: Sequence[int],
    recordings: Sequence[UncachedRun],
) -> Iterator[tuple[int, Plan]]:  # fmt: skip
    """Plans by number of clips."""
    computed, sampler = search(error_model, count)[0].computed, error_model.sampler
    for number in clips:
        plan = fit(computed, error_model, depth=REFINED_DEPTH)[0]
        if number:
            known = dict(enumerate(model.known[:number]))
            refined = carry_out(
                model.pipe, known, computed, error_model, recordings[:number], {}, None
            )
            plan = Plan.of(computed, sampler, refined.corrections, REFINED_DEPTH)
        yield number, plan


def table(
    model: FittedModel, prior: Prior, given: argparse.Namespace, rows: list[dict[str, Any]]
) -> None:
    """Make the missing rows of a model."""
    wanted = {
        count: [n for n in given.clips if (model.name, count, n) not in _known(rows)]
        for count in given.computed
    }
    if not any(wanted.values()):
        return
    uncached, recordings = model.clips(), record(model.pipe, model.known)
    weights = recordings[0].sampler.branch_weights
    model.pipe.scheduler.set_timesteps(recordings[0].sampler.num_steps)
    error_model = prior.error_model_for(trajectory_of(model.pipe.scheduler, weights))
    for count, missing in wanted.items():
        for number, plan in plans(model, error_model, count, missing, recordings):
            errors = (model.fitted(plan, weights) - uncached).double().square().flatten(1).mean(1)
            psnr = [-10 * math.log10(max(float(error), 1e-12)) for error in errors]
            row = {"model": model.name, "computed": count, "clips": number, "psnr_db": psnr}
            rows.append(row)
            with given.output.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(_line(row), flush=True)


def _known(rows: Sequence[dict[str, Any]]) -> set[tuple[Any, ...]]:
    return {(row["model"], row["computed"], row["clips"]) for row in rows}


def _line(row: dict[str, Any]) -> str:
    psnr = row["psnr_db"]
    score = f"{statistics.fmean(psnr):.1f} ({min(psnr):.1f})"
    return f"| {row['model']} | {row['computed']} | {row['clips']} | {score} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", nargs="+")
    parser.add_argument("--loader", type=Path)
    parser.add_argument("--prior", type=Path, default=SHIPPED, help="without the models")
    parser.add_argument("--computed", type=int, nargs="+", default=[20, 13])
    parser.add_argument("--clips", type=int, nargs="+", default=[0, 1, 2, 3, 4, 8, 16])
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--file", type=Path, default=PROMPTS)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    every = [one.prompt for one in read_prompts(given.file)]
    if len(every) < given.prompts + max(given.clips):
        parser.error(f"{given.file} has {len(every)} prompts: too few for --prompts and --clips")
    prior = Prior.load(given.prior)
    lines = given.output.read_text().splitlines() if given.output.is_file() else []
    rows = [json.loads(line) for line in lines]
    for name in given.models:
        known = every[given.prompts :][: max(given.clips)]
        model = FittedModel(name, given.loader, every[: given.prompts], known)
        if model.name in prior.models:
            parser.error(f"{model.name} is in the prior; --prior takes one without it")
        table(model, prior, given, rows)
    print("\n| model | computed | clips | PSNR in dB, mean (lowest) |\n|---|---|---|---|")
    print("\n".join(map(_line, rows)))


if __name__ == "__main__":
    main()
