"""Runs plans on the miniature, and stores what a run knows about its own error, for table_tail.py.

OMP_NUM_THREADS=1 python scripts/experiments/collect_tail.py runs/tail --prompts 64

Each batch of prompts gives one file, which a second start does not make again. For candidate plans
of the shipped profile, it has the PSNR of each clip, and the inner products of all computed
predictions, of the noise, of the error of the final latents, and of the uncached final latents. So
every estimate that is a sum of computed predictions can be tried afterwards without the model.
*Pilots* are the same prompts with the noise averaged down by 2 or 4 in height and width.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import WanPipeline
from table_plan import PROMPTS, SIZE, Batch

from dit_accel.models import miniature
from dit_accel.planning.difficulty import pooled
from dit_accel.planning.lookup import PROFILE_FILE
from dit_accel.planning.plan import Plan
from dit_accel.planning.profile import Profile

FIRST_SEED = 1000
COUNTS = (7, 9, 11, 13, 17)  # computed steps of the tried plans
# from one of these steps on, every step is computed
REPAIRED_COUNTS, REPAIRED_FROM = (9, 13), (5, 12, 25)
PILOTS = (2, 4)  # factors by which the noise is averaged down
PILOT_COUNTS = (9, 13)  # computed steps of a pilot's plans


class Clips(Batch):
    """A batch whose clips may be smaller than the noise that they are made from."""

    def __init__(self, pipe: Any, prompts: Sequence[str], seeds: Sequence[int], pilot: int) -> None:
        super().__init__(pipe, prompts, seeds, steps=50)
        noise = self.noise.unflatten(1, SIZE)
        small = torch.nn.functional.avg_pool3d(noise, (1, pilot, pilot)) * pilot
        self.size = tuple(small.shape[1:])
        self.noise = small.flatten(1)

    def parts(self, step: int, latents: torch.Tensor) -> torch.Tensor:
        found = [
            self.pipe.transformer(
                hidden_states=latents.unflatten(1, self.size),
                timestep=self.times[step].expand(len(latents)),
                encoder_hidden_states=text,
                return_dict=False,
            )[0].flatten(1)
            for text in self.texts
        ]
        return torch.stack([found[0], found[1] - found[0]])

    def pixels(self, latents: torch.Tensor) -> torch.Tensor:
        config = self.pipe.vae.config
        shape = (1, -1, 1, 1, 1)
        mean, std = (
            torch.tensor(v, device=self.device).view(shape)
            for v in (config.latents_mean, config.latents_std)
        )
        found = self.pipe.vae.decode(latents.unflatten(1, self.size) * std + mean)[0]
        return ((found / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)

    def planned(self, plan: Plan) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """Final latents of a plan, and the components of its computed predictions `(B, P, N)`."""
        latents, seen = self.noise, {}
        for step, share in enumerate(self.sampler.coefficients.tolist()):
            given = plan.extrapolations.get(step)
            if given is None:
                seen[step] = now = self.parts(step, latents)
            else:
                now = torch.stack([
                    sum(weight * seen[s][component] for s, weight in weights.items())
                    for component, weights in enumerate(given.weights)
                ])  # fmt: skip
                now[0] += given.noise_weight * self.noise
            latents = latents + share * self.guided(now)
        return latents, seen


def products(rows: list[torch.Tensor]) -> np.ndarray:
    """Rows `(P, N)` each -> `(P, R, R)`."""
    stacked = torch.stack(rows, 1).double()
    return (stacked @ stacked.mT).cpu().numpy()


def repaired(clips: Clips, plan: Plan) -> dict[str, Any]:
    """PSNR if every step from some step on is computed."""
    found = {}
    for start in REPAIRED_FROM:
        before = {step: one for step, one in plan.extrapolations.items() if step < start}
        ended, _ = clips.planned(Plan(plan.num_steps, before))
        found[f"repaired/{len(plan.computed)}/{start}"] = np.array(clips.psnr(ended))
    return found


def collect(pipe: Any, profile: Profile, prompts: list[str], seeds: list[int]) -> dict[str, Any]:
    """All numbers of a batch of prompts."""
    clips = Clips(pipe, prompts, seeds, 1)
    clips.run()
    final, found = clips.latents[-1], {}
    rows = [*torch.stack(clips.all, 1).flatten(0, 1), clips.noise, final]
    found["uncached"] = products(rows)
    found["score"] = np.array([profile.difficulty.score(pooled(t[None])) for t in clips.texts[0]])
    for candidate in (c for c in profile.candidates if len(c.computed) in COUNTS):
        ended, seen = clips.planned(profile.plan_of(candidate))
        name, parts = f"{len(candidate.computed)}", torch.stack([*seen.values()], 1)
        found[f"psnr/{name}"] = np.array(clips.psnr(ended))
        if len(candidate.computed) in REPAIRED_COUNTS:
            found |= repaired(clips, profile.plan_of(candidate))
        found[f"gram/{name}"] = products([*parts.flatten(0, 1), clips.noise, ended - final, final])
    for pilot in PILOTS:
        small = Clips(pipe, prompts, seeds, pilot)
        small.run()
        for candidate in profile.candidates:
            if len(candidate.computed) in PILOT_COUNTS:
                ended, _ = small.planned(profile.plan_of(candidate))
                name = f"{pilot}/{len(candidate.computed)}"
                found[f"pilot/{name}"] = np.array(small.psnr(ended))
                error = (ended - small.latents[-1]).norm(dim=1) / small.latents[-1].norm(dim=1)
                found[f"pilot_latents/{name}"] = (-20 * error.log10()).cpu().numpy()
    return found


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument(
        "--model", type=Path, default=miniature.path(), help="of Wan's class, on such latents"
    )
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    pipe = WanPipeline.from_pretrained(str(options.model))
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    profile = Profile.load(miniature.path() / PROFILE_FILE)
    prompts = [json.loads(line)["prompt"] for line in PROMPTS.read_text().splitlines()]
    for start in range(0, options.prompts, options.batch):
        path = options.folder / f"{start:03d}.npz"
        if path.exists():
            continue
        mine = prompts[start : start + options.batch]
        seeds = [FIRST_SEED + start + place for place in range(len(mine))]
        found = collect(pipe, profile, mine, seeds)
        np.savez(path.with_suffix(".part.npz"), **found)
        path.with_suffix(".part.npz").replace(path)
        print(path, flush=True)


if __name__ == "__main__":
    main()
