"""What accelerated runs teach: the table of the log, with the model left out of the prior.

    python scripts/experiments/table_learning.py MODEL... --output results.jsonl

`MODEL`, `--loader` and the prior are as of table_first_clip.py. For 20 and 13 of 50 computed steps,
plans are searched on the prior, on whole runs, and on the posterior of the prior and 1 to 16
accelerated runs, which are made by the plan of the last posterior with weight 1. `entrywise` mixes
the same entries one by one. With `--references` the posterior is of 1 or 4 whole runs, or of one
and accelerated ones, with three weights of the prior: what uncached references teach. With
`--dtypes` runs in float32 and in bfloat16 are planned by what runs in each of them taught. Scores
are PSNR of the latents of held-out prompts, relative to their size, against the uncached ones.
Every row is one line of the output; rows that are there are not scored again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from table_first_clip import Model

from dit_accel import accelerate
from dit_accel.caching.observing import RunObserver
from dit_accel.caching.policy import PlanPolicy, Policy
from dit_accel.core.interceptor import RunInfo
from dit_accel.evaluation.prompts import read_prompts
from dit_accel.planning import posterior
from dit_accel.planning.learned import Observations, RunKind
from dit_accel.planning.plan import Plan
from dit_accel.planning.prior import Prior
from dit_accel.planning.search import ErrorModel, search

ROOT = Path(__file__).resolve().parents[2]
COUNTS, AFTER, WHOLE = (20, 13), (1, 2, 4, 8, 16), (1, 4)
WEIGHTS = (0.25, 1.0, 4.0, 16.0)
DTYPES = (torch.float32, torch.bfloat16)
FIRST_PLANNED, FIRST_HELD_OUT = 10, 40  # prompts; the first ones are of whole runs


class Observed(PlanPolicy):
    """A plan whose runs are observed."""

    records = True

    def __init__(self, plan: Plan, model: Model) -> None:
        self.kind = RunKind(model.trajectory.sampler, model.guidance, 0)
        super().__init__(plan, self.kind.sampler.branch_weights)
        self.branches = model.family.branches

    def start(self, run: RunInfo) -> Policy:
        self.observer = RunObserver(self.kind, run.guidance or 1.0, self.branches, self.plan)
        return super().start(run)

    def on_noise(self, noise: torch.Tensor) -> None:
        self.observer.on_noise(noise)

    def on_output(self, step: int, component: int, value: torch.Tensor) -> None:
        self.observer.on_output(step, component, value)


class Trial:
    """A model, its held-out clips, and the scores that are there."""

    def __init__(self, model: Model, held_out: int, output: Path) -> None:
        self.model, self.output = model, output
        self.reference = self.latents(None, held_out)
        rows = output.read_text().splitlines() if output.is_file() else []
        self.known = {self._key(row) for row in map(json.loads, rows)}
        self._scores: dict[str, list[float]] = {}

    def latents(self, policy: Policy | None, count: int, first: int | None = None) -> torch.Tensor:
        """Of some prompts in one batch; of the held-out ones by default."""
        begin = FIRST_HELD_OUT if first is None else first
        seeds = [torch.Generator().manual_seed(begin + place) for place in range(count)]
        prompts = self.model.prompts[begin : begin + count]
        given = {"prompt": prompts, "generator": seeds, "output_type": "latent"}
        call = self.model.call | given
        if policy is None:
            return self.model.pipe(**call).frames.float()
        with accelerate(self.model.pipe, plan=policy):
            return self.model.pipe(**call).frames.float()

    def observe(self, plan: Plan, prompt: int) -> Observations:
        policy = Observed(plan, self.model)
        self.latents(policy, 1, prompt)
        found = policy.observer.observations()
        if found is None:
            raise RuntimeError(f"the run of prompt {prompt} could not be observed")
        return found

    def _key(self, row: dict[str, Any]) -> tuple[Any, ...]:
        return row["model"], row["label"], row["count"]

    def score(self, label: str, count: int, made: Callable[[], tuple[Plan, float]]) -> None:
        row: dict[str, Any] = {"model": self.model.name, "label": label, "count": count}
        if self._key(row) in self.known:
            return
        plan, energy = made()
        if str(plan) not in self._scores:
            policy = PlanPolicy(plan, self.model.trajectory.sampler.branch_weights)
            miss = self.latents(policy, len(self.reference)) - self.reference
            ratio = miss.square().flatten(1).mean(1) / self.reference.square().flatten(1).mean(1)
            self._scores[str(plan)] = (-10 * torch.log10(ratio)).tolist()
        psnr = self._scores[str(plan)]
        row |= {"mean": statistics.fmean(psnr), "worst": min(psnr), "psnr": psnr,
                "predicted": -10 * math.log10(energy)}  # fmt: skip
        with self.output.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print({name: value for name, value in row.items() if name != "psnr"}, flush=True)


def entrywise(prior: torch.Tensor, seen: list[Observations], weight: float) -> torch.Tensor:
    """The mean of every entry, over the clips that have it, without negative eigenvalues."""
    total, counts = weight * prior, torch.full_like(prior, weight)
    for one in seen:
        total[one.rows[:, None], one.rows] += one.products
        counts[one.rows[:, None], one.rows] += 1
    values, vectors = torch.linalg.eigh(total / counts)
    return (vectors * values.clamp_min(0)) @ vectors.T


def plan_of(base: ErrorModel, found: torch.Tensor, count: int) -> tuple[Plan, float]:
    return search(ErrorModel(base.sampler, found[None], base.error_gain, base.error_memory), count)


def references(trial: Trial, prior: Prior) -> None:
    base = prior.error_model_for(trial.model.trajectory)
    whole = [trial.observe(Plan(base.num_steps, {}), prompt) for prompt in range(max(WHOLE))]
    for count in sorted(COUNTS):
        trial.score("prior", count, lambda c=count: plan_of(base, base.gram[0], c))
        plan, _ = plan_of(base, posterior.posterior_gram(None, whole[:1], 0.0), count)
        planned = [trial.observe(plan, FIRST_PLANNED + number) for number in range(4)]
        known = {f"{runs} whole": whole[:runs] for runs in WHOLE}
        known |= {f"1 whole, {runs} accelerated": [*whole[:1], *planned[:runs]] for runs in WHOLE}
        for label, seen in known.items():
            for weight in (0.0, *WEIGHTS[:2]):
                start = base.gram[0] if weight else None
                found = posterior.posterior_gram(start, seen, weight)
                trial.score(
                    f"weight {weight:g}, {label}", count,
                    lambda f=found, c=count: plan_of(base, f, c),
                )  # fmt: skip


def dtypes(trials: dict[str, Trial], prior: Prior) -> None:
    for count in COUNTS:
        seen = {name: _seen(trial, prior, count) for name, trial in trials.items()}
        for name, trial in trials.items():
            base = prior.error_model_for(trial.model.trajectory)
            trial.score(
                f"prior, in {name}", count, lambda b=base, c=count: plan_of(b, b.gram[0], c)
            )
            for of, (whole, accelerated) in seen.items():
                for label, some in (("whole", whole), ("accelerated", accelerated)):
                    weight = posterior.weight_of(some)
                    found = posterior.posterior_gram(base.gram[0], some, weight)
                    made = partial(plan_of, base, found, count)
                    trial.score(f"{len(some)} {label} in {of}, in {name}", count, made)


def _seen(trial: Trial, prior: Prior, count: int) -> tuple[list[Observations], list[Observations]]:
    """Whole runs, and others that the prior planned."""
    base = prior.error_model_for(trial.model.trajectory)
    whole = [trial.observe(Plan(base.num_steps, {}), prompt) for prompt in range(max(WHOLE))]
    plan, _ = plan_of(base, base.gram[0], count)
    return whole, [trial.observe(plan, FIRST_PLANNED + place) for place in range(max(WHOLE))]


def table(trial: Trial, prior: Prior) -> None:
    base = prior.error_model_for(trial.model.trajectory)
    gram, n = base.gram[0], base.num_steps
    whole = [trial.observe(Plan(n, {}), prompt) for prompt in range(max(WHOLE))]
    for count in COUNTS:
        trial.score("prior", count, lambda count=count: plan_of(base, gram, count))
        for runs in WHOLE:
            found = posterior.posterior_gram(None, whole[:runs], 0.0)
            trial.score(f"{runs} whole", count, lambda f=found, c=count: plan_of(base, f, c))
        plan, seen = plan_of(base, gram, count)[0], []
        for number in range(max(AFTER)):
            seen.append(trial.observe(plan, FIRST_PLANNED + number))
            if number + 1 not in AFTER:
                continue
            for weight in WEIGHTS:
                found = posterior.posterior_gram(gram, seen, weight)
                label = f"prior, weight {weight:g}, and {number + 1} accelerated"
                trial.score(label, count, lambda f=found, c=count: plan_of(base, f, c))
            plan = plan_of(base, posterior.posterior_gram(gram, seen, 1.0), count)[0]
        found = entrywise(gram, seen, 1.0)
        trial.score(
            f"entrywise, and {len(seen)}", count, lambda f=found, c=count: plan_of(base, f, c)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--loader", type=Path)
    parser.add_argument("--held-out", type=int, default=8)
    parser.add_argument("--references", action="store_true")
    parser.add_argument("--dtypes", action="store_true")
    parser.add_argument(
        "--prompts", type=Path, default=ROOT / "assets" / "prompts" / "miniature.jsonl"
    )
    given = parser.parse_args()
    count = FIRST_HELD_OUT + given.held_out
    prompts = [one.prompt for one in read_prompts(given.prompts)][:count]
    for name in given.models:
        if given.dtypes:
            of = {str(dtype).removeprefix("torch."): Model(name, given.loader, prompts, dtype)
                  for dtype in DTYPES}  # fmt: skip
            found = {one: Trial(model, given.held_out, given.output) for one, model in of.items()}
            dtypes(found, Prior.load())
            continue
        trial = Trial(Model(name, given.loader, prompts), given.held_out, given.output)
        (references if given.references else table)(trial, Prior.load())


if __name__ == "__main__":
    main()
