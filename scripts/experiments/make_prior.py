"""Makes the shipped prior from models and their profiles.

python scripts/experiments/make_prior.py assets/mini-wan
python scripts/experiments/make_prior.py assets/mini-wan other=path/to/profile.safetensors

A model is a folder with a profile in it, or a folder and its profile with "=" between. All models
have the same weight. `--judged` takes the results of table_knowledge.py or table_first_clip.py. In
these, each model was left out of the prior, and its clips show the possible error of a prediction
for an unknown model. To judge a model by a prior with such evidence, leave its own rows out of that
file.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

import diffusers
import torch

from dit_accel.planning.lookup import PROFILE_FILE
from dit_accel.planning.prior import SHIPPED, Prior
from dit_accel.planning.profile import Profile
from dit_accel.planning.trajectory import Trajectory, trajectory_of


def measured(given: str) -> tuple[str, Profile, Trajectory]:
    """The name, profile and trajectory of a model."""
    folder, _, file = given.partition("=")
    profile = Profile.load(file or Path(folder) / PROFILE_FILE)
    return Path(folder).name, profile, trajectory_on(Path(folder), profile)


def trajectory_on(folder: Path, profile: Profile) -> Trajectory:
    """The trajectory that the profile was measured on; a ValueError if the scheduler has other
    steps."""
    kind: Any = getattr(diffusers, profile.key.scheduler)
    own = profile.sampler
    scheduler = kind.from_pretrained(folder, subfolder="scheduler")
    if scheduler.config.get("use_dynamic_shifting"):  # the timesteps depend on the clip's size
        scheduler = kind.from_config(scheduler.config, use_dynamic_shifting=False, shift=1.0)
        sigmas = own.timesteps / scheduler.config.num_train_timesteps
        scheduler.set_timesteps(sigmas=sigmas.tolist())
    else:
        scheduler.set_timesteps(own.num_steps)
    found = trajectory_of(scheduler, own.branch_weights)
    if not torch.allclose(found.sampler.coefficients, own.coefficients, rtol=1e-3, atol=1e-5):
        raise ValueError(f"{folder}: its scheduler steps otherwise than the profile's")
    return dataclasses.replace(found, sampler=own)


def judged(table: Path) -> torch.Tensor:
    """`(m, 2)`: mean and deviation of the real minus the predicted PSNR, for each model of a
    table."""
    by_model: dict[str, list[float]] = {}
    for line in table.read_text().splitlines():
        row = json.loads(line)
        # None: every step was computed
        if row["source"] == "prior" and row["predicted_db"] is not None:
            off = [psnr - row["predicted_db"] for psnr in row["psnr_db"]]
            by_model.setdefault(row["model"], []).extend(off)
    rows = [(statistics.fmean(off), statistics.stdev(off)) for off in by_model.values()]
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+", metavar="FOLDER[=PROFILE]")
    parser.add_argument("--judged", type=Path, help="results of models that were left out")
    parser.add_argument("--output", type=Path, default=SHIPPED)
    given = parser.parse_args()
    prior = Prior.of([measured(model) for model in given.models])
    if given.judged is not None:
        found = judged(given.judged)
        prior = Prior(prior.grams, prior.gains, prior.memory, prior.models, found)
    prior.save(given.output)
    print(f"{given.output}: {', '.join(prior.models)}; {len(prior.judged)} models left out")
    print(prior.evidence.note)


if __name__ == "__main__":
    main()
