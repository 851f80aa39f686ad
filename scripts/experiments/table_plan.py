"""The ablation of research/LOG.md: the gain of each part of planning, many prompts in lockstep.

python scripts/experiments/table_plan.py --prompts 64 --calibration 32 --computed 25 20 16 12 10

The miniature's denoiser runs on a batch of prompts, step by step, without the pipeline around it.
Forecasts are summed window by window. One GPU needs two minutes; a CPU needs hours for these
numbers. Latents are decoded, rounded to 8 bits and scored against the uncached ones.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import WanPipeline

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "miniature"))

from world import PROMPT_STREAM, scene_at

from dit_accel.calibration.fit import RidgeMoments, expected_moments
from dit_accel.calibration.probes import gain_and_memory, probe_steps
from dit_accel.models import miniature
from dit_accel.planning.error_model import ErrorModel, window_energies
from dit_accel.planning.plan import line_sums, used_steps, window_sums, windows
from dit_accel.planning.sampler import coefficients_of
from dit_accel.planning.search import fit, search

SIZE = (48, 5, 8, 8)  # channels, latent frames, height, width
PROMPTS = Path(__file__).resolve().parents[2] / "assets" / "prompts" / "miniature.jsonl"
Changes = dict[int, torch.Tensor]


class Batch:
    """P prompts in lockstep; latents `(P, N)`."""

    def __init__(self, pipe: Any, prompts: Sequence[str], seeds: Sequence[int], steps: int) -> None:
        self.pipe, self.device = pipe, pipe.device
        self.guidance = float(miniature.call_defaults(miniature.path())["guidance_scale"])
        texts = [pipe.encode_prompt(p, max_sequence_length=64, device=pipe.device) for p in prompts]
        self.texts = tuple(torch.cat(part) for part in zip(*texts, strict=True))
        draws = (torch.randn(SIZE, generator=torch.Generator().manual_seed(s)) for s in seeds)
        self.noise = torch.stack(list(draws)).flatten(1).to(pipe.device)
        pipe.scheduler.set_timesteps(steps, device=pipe.device)
        self.times = pipe.scheduler.timesteps.clone()
        self.sampler = coefficients_of(pipe.scheduler, (1.0, 1.0 - self.guidance))

    def parts(self, step: int, latents: torch.Tensor) -> torch.Tensor:
        """`(B, P, N)`: the conditional prediction, and the difference of the unconditional one."""
        cond, uncond = (
            torch.cat(
                [
                    self.pipe.transformer(
                        hidden_states=x.unflatten(1, SIZE),
                        timestep=self.times[step].expand(len(x)),
                        encoder_hidden_states=text,
                        return_dict=False,
                    )[0].flatten(1)
                    for x, text in zip(latents.split(64), texts.split(64), strict=True)
                ]
            )
            for texts in self.texts
        )
        return torch.stack([cond, uncond - cond])

    def guided(self, parts: torch.Tensor) -> torch.Tensor:
        """`(P, N)`: parts, mixed."""
        return torch.einsum(
            "b,bpn->pn", torch.tensor(self.sampler.branch_weights, device=self.device), parts
        )

    def run(self) -> None:
        """An uncached run: `all` parts `(n, B, P, N)`, and latents before every step and at the
        end."""
        self.latents, self.all = [self.noise], []
        for step, share in enumerate(self.sampler.coefficients.tolist()):
            self.all.append(self.parts(step, self.latents[-1]))
            self.latents.append(self.latents[-1] + share * self.guided(self.all[-1]))

    def pixels(self, latents: torch.Tensor) -> torch.Tensor:
        """`(P, 3, T, H, W)` uint8."""
        config = self.pipe.vae.config
        shape = (1, -1, 1, 1, 1)
        mean, std = (torch.tensor(v, device=self.device).view(shape)
                     for v in (config.latents_mean, config.latents_std))  # fmt: skip
        clips = [self.pipe.vae.decode(x.unflatten(1, SIZE) * std + mean, return_dict=False)[0]
                 for x in latents.split(8)]  # fmt: skip
        return ((torch.cat(clips) / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)

    def psnr(self, latents: torch.Tensor) -> list[float]:
        """PSNR of every prompt against its uncached clip, in dB."""
        if not hasattr(self, "_stock"):
            self._stock = self.pixels(self.latents[-1]).float()
        error = (self.pixels(latents).float() - self._stock).square().flatten(1).mean(1) / 255**2
        return (-10 * error.clamp_min(1e-10).log10()).tolist()

    def accelerated(
        self, computed: Sequence[int], depth: int, change_of: Callable[..., torch.Tensor | None]
    ) -> torch.Tensor:
        """Final latents of a run that computes these steps. `change_of(opened, features, left)` is
        the change of each window's line."""
        latents, computed_parts = self.noise, {}
        for opened, closed in windows(computed, self.sampler.num_steps):
            computed_parts[opened] = self.parts(opened, latents)
            latents = latents + float(self.sampler.coefficients[opened]) * self.guided(
                computed_parts[opened]
            )
            if closed - opened == 1:
                continue
            read = used_steps(computed, opened, depth)
            ends = torch.tensor([opened]), torch.tensor([closed])
            line = line_sums(torch.tensor([read]), *ends, self.sampler)[0]
            features = [computed_parts[step][part] for part in range(2) for step in read] + [
                self.noise
            ]
            rows = torch.stack(features)  # (F, P, N)
            left = self.latents[closed] - latents - _weighted(line, rows)
            change = change_of(opened, rows, left)
            latents = latents + _weighted(line if change is None else line + change, rows)
        return latents


def _weighted(weights: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return torch.einsum("f,fpn->pn", weights.to(rows), rows)


def field_of(batch: Batch, probed: int = 8) -> ErrorModel:
    """Inner products of a batch, and gain and memory from reusing single predictions."""
    n, final = batch.sampler.num_steps, batch.latents[-1]
    grams = []
    for p in range(len(final)):
        parts = torch.stack(batch.all)[:, :, p].transpose(0, 1).flatten(0, 1)
        rows = torch.cat([parts, batch.noise[p][None]]).double()
        grams.append((rows @ rows.T / final[p].double().square().sum()).cpu())
    found = []
    for step in probe_steps(n, 10):
        latents, reused = batch.latents[step], batch.guided(batch.all[step - 1])
        share = float(batch.sampler.coefficients[step])
        made = share * (reused - batch.guided(batch.all[step]))
        latents = latents + share * reused
        for later in range(step + 1, n):
            guided = batch.guided(batch.parts(later, latents))
            latents = latents + float(batch.sampler.coefficients[later]) * guided
        became = latents - final
        cosine = torch.nn.functional.cosine_similarity(made, became)
        gain = became.norm(dim=1) / made.norm(dim=1)
        found += [(step, float(gain[p]), float(cosine[p])) for p in range(min(probed, len(gain)))]
    return ErrorModel(batch.sampler, torch.stack(grams), *gain_and_memory(found, n))


def refined(batch: Batch, computed: Sequence[int], depth: int, field: ErrorModel) -> Changes:
    """Every window's change, fitted to the error that a batch's accelerated run leaves, near the
    change that is fitted on uncached runs."""
    changes: Changes = {}
    centre = planned(computed, field, depth)
    expected = window_energies(fit(computed, field, depth=depth)[0], field)

    def change_of(opened: int, rows: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
        size = batch.latents[-1].square().mean(1)
        used = torch.tensor([used_steps(computed, opened, depth)])
        at = field.sampler.feature_rows(used)[0]
        gram, error = field.mean_gram[at][:, at], float(expected[opened].mean())
        penalty = expected_moments(gram, float(size.mean()), error)
        moments = RidgeMoments(centre[opened], penalty)
        moments.add(range(rows.shape[1]), rows.cpu(), left.cpu(), size.cpu())
        changes[opened] = moments.correction(moments.gains())
        return changes[opened]

    batch.accelerated(computed, depth, change_of)
    return changes


def planned(computed: Sequence[int], field: ErrorModel, depth: int) -> Changes:
    """Every window's change as fitted on uncached runs."""
    plan, _ = fit(computed, field, depth=depth)
    changes = {}
    for opened, closed in windows(computed, field.num_steps):
        read = used_steps(computed, opened, depth)
        ends = torch.tensor([opened]), torch.tensor([closed])
        whole = window_sums(plan, read, range(opened + 1, closed), field.sampler)
        changes[opened] = whole - line_sums(torch.tensor([read]), *ends, field.sampler)[0]
    return changes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--calibration", type=int, default=32)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--computed", type=int, nargs="+", default=[33, 25, 20, 16, 12, 10])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.backends.cudnn.allow_tf32 = False
    pipe = WanPipeline.from_pretrained(str(miniature.path()))
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    unseen = [json.loads(line)["prompt"] for line in PROMPTS.read_text().splitlines()]
    captions = dict.fromkeys(scene_at(PROMPT_STREAM, 5000 + i).caption() for i in range(500))
    known = [caption for caption in captions if caption not in unseen][: args.calibration]
    batches = []
    for prompts, first in ((known, 1000), (unseen[: args.prompts], 0)):
        seeds = range(first, first + len(prompts))
        batches.append(Batch(pipe, prompts, seeds, args.steps))
        batches[-1].run()
    calibration, held_out = batches
    field = field_of(calibration)
    rows: dict[str, dict[int, list[float]]] = {}
    for count in args.computed:
        computed = search(field, count)[0].computed
        print(count, computed, flush=True)
        for name, depth, changes in (
            ("line", 2, {}),
            ("fitted on uncached runs", 4, planned(computed, field, 4)),
            *(
                (
                    f"refined, {depth} predictions",
                    depth,
                    refined(calibration, computed, depth, field),
                )
                for depth in (3, 5)
            ),
        ):
            final = held_out.accelerated(computed, depth, lambda o, *_, c=changes: c.get(o))
            rows.setdefault(name, {})[count] = held_out.psnr(final)
        fewer = Batch(pipe, unseen[: args.prompts], range(args.prompts), count)
        fewer.run()
        rows.setdefault("fewer steps", {})[count] = held_out.psnr(fewer.latents[-1])
        for name, by_count in rows.items():
            values = by_count[count]
            print(f"  {name}: {statistics.fmean(values):.1f} dB, lowest {min(values):.1f}")
        pipe.scheduler.set_timesteps(args.steps, device=pipe.device)
    if args.out:
        args.out.write_text(json.dumps(rows) + "\n")


if __name__ == "__main__":
    main()
