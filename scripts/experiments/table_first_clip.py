"""Measures plans for a model without calibration: the table of the log, with the model left out.

    python scripts/experiments/table_first_clip.py MODEL... --output results.jsonl

A model is a folder, or a folder and a profile of it with "=" between, for the row of its own clips.
The prior must not contain the model: with `--others` it is made from these models, as in
make_prior.py. Every row is one line of the output. Existing rows are not run again, so a stopped
command can be continued. Rows by source of the plan:

    prior       nothing was run of this model
    first run   inner products of one recorded run
    own clips   the model's profile
    fewer       the stock pipeline with fewer steps

Clips run in one batch, without a guard; scores are PSNR of the frames against the uncached ones.
`--loader` names a Python file with `load(name)`, `CALL` and `frames(latents)`, for models without a
folder of their own.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from make_prior import measured

from dit_accel import accelerate
from dit_accel.caching.guard import GuardedPolicy
from dit_accel.caching.policy import ComputeAll
from dit_accel.core.families import family_of
from dit_accel.core.guidance import guided
from dit_accel.evaluation.prompts import read_prompts
from dit_accel.models import miniature
from dit_accel.planning.choice import PlanChoice
from dit_accel.planning.first_run import RunRecord
from dit_accel.planning.lookup import profile_key
from dit_accel.planning.plan import SamplerCoefficients
from dit_accel.planning.prior import SHIPPED, Prior
from dit_accel.planning.profile import Profile
from dit_accel.planning.selection import Target, branch_weights, choose
from dit_accel.planning.trajectory import trajectory_of

ROOT = Path(__file__).resolve().parents[2]


class Recorder(ComputeAll):
    """Computes all steps, and records the inner products of one run."""

    records = True

    def __init__(self, sampler: SamplerCoefficients, guidance: float, branches: str) -> None:
        self.branch_weights, self.guidance, self.branches = (
            sampler.branch_weights, guidance, branches,
        )  # fmt: skip
        self.record = RunRecord(sampler.num_rows)

    def on_noise(self, noise: torch.Tensor) -> None:
        self.record.add_noise(guided(noise, self.guidance, self.branches))

    def on_output(self, step: int, component: int, value: torch.Tensor) -> None:
        self.record.add(component, guided(value, self.guidance, self.branches))


class Model:
    """A pipeline, its clips and its plans."""

    def __init__(
        self, given: str, loader: Path | None, prompts: Sequence[str],
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        folder, _, profile = given.partition("=")
        self.name, self.prompts = Path(folder).name, list(prompts)
        self.own = Profile.load(profile) if profile else None
        self._frames: Callable[[torch.Tensor], torch.Tensor] | None = None
        if loader is None:
            self.pipe: Any = diffusers.DiffusionPipeline.from_pretrained(folder, torch_dtype=dtype)
            self.call: dict[str, Any] = dict(miniature.call_defaults(folder))
            fps = self.call.pop("fps", None)  # from the file; LTX-Video's call also takes it
            if "frame_rate" in inspect.signature(self.pipe.__call__).parameters:
                self.call["frame_rate"] = fps
        else:
            module = _module(loader)
            self.pipe, self.call = module.load(self.name), dict(module.CALL)
            self._frames = module.frames
        self.pipe.set_progress_bar_config(disable=True)
        self.steps, self.guidance = self.call["num_inference_steps"], self.call["guidance_scale"]
        self.family = family_of(self.pipe)
        if self.pipe.scheduler.config.get("use_dynamic_shifting"):
            self.clips(1)  # the timesteps depend on the clip's size
        else:
            self.pipe.scheduler.set_timesteps(self.steps)
        separate = self.family.branches == "separate"
        weights = branch_weights(None, self.guidance, separate=separate)
        self.trajectory = trajectory_of(self.pipe.scheduler, weights)

    def clips(self, count: int | None = None, **changes: Any) -> torch.Tensor:
        """Frames of the first `count` prompts, in one batch."""
        prompts = self.prompts[:count]
        seeds = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
        kind = "pt" if self._frames is None else "latent"
        given = {"prompt": prompts, "generator": seeds, "output_type": kind}
        found = self.pipe(**self.call | given | changes).frames
        if self._frames is None:
            return torch.as_tensor(found)
        if self.family.name.startswith("cogvideox"):
            found = found.transpose(1, 2)  # frames before channels
        return self._frames(found)

    def planned(self, choice: PlanChoice) -> torch.Tensor:
        with accelerate(self.pipe, plan=GuardedPolicy.of(choice, guard=False)):
            return self.clips()

    def recorded(self) -> Profile:
        """The record of the first prompt's run."""
        sampler = self.trajectory.sampler
        recorder = Recorder(sampler, self.guidance, self.family.branches)
        with accelerate(self.pipe, plan=recorder, mix=sampler.branch_weights):
            self.clips(1)
        return recorder.record.profile(sampler, profile_key(self.pipe))


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def profiles_of(model: Model, prior: Prior) -> Iterator[tuple[str, int, Callable[[], Profile]]]:
    """The source of each profile, its cost in runs of the model, and a function that makes it."""
    yield "prior", 0, lambda: prior.profile_for(model.trajectory, model.guidance)
    yield "first run", 1, model.recorded
    own = model.own
    if own is not None:
        yield "own clips", int(own.metadata.get("clips", 0)), lambda: own


def table(model: Model, prior: Prior, counts: Sequence[int], rows: Rows) -> None:
    """Make the missing rows of a model."""
    sampler, uncached = model.trajectory.sampler, None

    def score(clips: torch.Tensor) -> list[float]:
        nonlocal uncached
        uncached = model.clips() if uncached is None else uncached
        errors = (clips - uncached).double().square().flatten(1).mean(1)
        return [-10 * math.log10(max(float(error), 1e-12)) for error in errors]

    for source, runs, made in profiles_of(model, prior):
        missing = [count for count in counts if not rows.has(model.name, source, count)]
        profile = made() if missing else None
        for count in missing:
            assert profile is not None
            choice = choose(profile, sampler, Target(speedup=model.steps / count))
            rows.add(
                model=model.name, source=source, runs=runs, computed=len(choice.plan.computed),
                predicted_db=choice.prediction.psnr_db, psnr_db=score(model.planned(choice)),
                steps=choice.plan.computed,
            )  # fmt: skip
    for count in counts:
        if not rows.has(model.name, "fewer", count):
            psnr = score(model.clips(num_inference_steps=count))
            rows.add(model=model.name, source="fewer", runs=0, computed=count, psnr_db=psnr)


class Rows:
    """The output file, with one row in each line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.is_file() else []
        self.all = [json.loads(line) for line in lines]

    def has(self, model: str, source: str, computed: int) -> bool:
        wanted = (model, source, computed)
        return any((r["model"], r["source"], r["computed"]) == wanted for r in self.all)

    def add(self, **row: Any) -> None:
        self.all.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(_line(row), flush=True)


def _line(row: dict[str, Any]) -> str:
    psnr, predicted = row["psnr_db"], row.get("predicted_db")
    said = f"{predicted:.1f}" if predicted is not None else ""
    cells = (
        row["model"], row["source"], row["runs"], row["computed"],
        f"{statistics.fmean(psnr):.1f} ({min(psnr):.1f})", said, len(psnr),
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="MODEL[=PROFILE]")
    parser.add_argument("--others", nargs="+", metavar="FOLDER[=PROFILE]", help="make the prior of")
    parser.add_argument("--loader", type=Path)
    parser.add_argument("--computed", type=int, nargs="+", default=[20, 13])
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--file", type=Path, default=ROOT / "assets/prompts/miniature.jsonl")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    others = [measured(other) for other in given.others or ()]
    prior = Prior.of(others) if others else Prior.load(SHIPPED)
    prompts = [one.prompt for one in read_prompts(given.file)][: given.prompts]
    rows = Rows(given.output)
    for name in given.models:
        model = Model(name, given.loader, prompts)
        if model.name in prior.models:
            raise ValueError(f"{model.name} is in the prior; make it of others by --others")
        table(model, prior, given.computed, rows)
    print("\n| model | plan from | runs | computed | PSNR, mean (worst) | predicted | clips |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(map(_line, rows.all)))


if __name__ == "__main__":
    main()
