"""A pipeline with the clips of `table_bound.py`: its latents, frames, profile, and samplers."""

from __future__ import annotations

import argparse
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bound_samplers import CHEAP, KEEPS, Clips, Model, Sampler, sampler_of, to
from table_rivals import CALIBRATION_SEED, clips_of
from torch.utils.flop_counter import FlopCounterMode

from dit_accel import accelerate
from dit_accel.calibration.calibrate import CalibrationRun
from dit_accel.core import video
from dit_accel.core.families import family_of
from dit_accel.core.generation import ClipSpec, batch_arguments
from dit_accel.evaluation.methods import runs
from dit_accel.evaluation.methods.samplers import sampled
from dit_accel.evaluation.methods.unrolled import errors_db
from dit_accel.metrics import psnr
from dit_accel.models import loading
from dit_accel.models.folder import inspect_folder
from dit_accel.planning.plan import Plan
from dit_accel.planning.profile import Profile
from dit_accel.planning.sampler import response_of
from dit_accel.planning.selection import branch_weights

LOW = 0.25  # limit of the low band, in cycles per latent pixel


class Subject:
    """A pipeline with its scored clips and its training clips."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.name = args, args.model.name
        model = inspect_folder(args.model, name=self.name)
        self.pipe = loading.load(model, device=args.device, dtype="float32")
        self.pipe.set_progress_bar_config(disable=True)
        self.pipe.transformer.requires_grad_(False)
        teaching = max(args.clips, args.more)
        scored = _clips(args.model, args.prompt_file, args.prompts, 0)
        self.clips = scored + _clips(args.model, args.calibration, teaching, CALIBRATION_SEED)
        final = runs.final_latents(self.pipe, self.clips, args.batch).to(self.pipe.device)
        self.response = response_of(self.pipe.scheduler)
        clip, separate = self.clips[0], family_of(self.pipe).branches == "separate"
        self.steps = clip.steps
        self.weights = branch_weights(None, clip.guidance, separate=separate)
        self.model = Model(self.pipe, self.clips, self.weights)
        noise = self.model.denoiser.noise
        numbers = torch.arange(len(self.clips), device=noise.device)
        every = Clips(numbers, noise, final.view_as(noise))
        self.scored, self.few = every.at(slice(len(scored))), self._teaching(every, args.clips)
        self.many = self._teaching(every, args.more)
        self.frames = self.decoded(self.scored.final)
        self.block_share = self._block_share()

    def _teaching(self, every: Clips, count: int) -> Clips:
        return every.at(slice(self.args.prompts, self.args.prompts + count))

    def profile(self) -> Profile:
        """The profile from the few clips."""
        path = Path(f"{self.args.output}.{self.name}-{self.args.clips}.safetensors")
        if not path.exists():
            counts = {c for k in self.args.computed for c in (k, self.block_count(k))}
            clips = self.clips[self.args.prompts :][: self.args.clips]
            speedups = [self.steps / count for count in counts if count > 1]
            CalibrationRun(
                self.pipe, clips, speedups=speedups, batch=len(clips), probed=min(3, len(clips))
            ).run().save(path)
        return Profile.load(path)

    def block_count(self, count: int) -> int:
        """The number of computed steps that, with one block in every window, cost at most as much
        as `count`."""
        return math.floor(count / (1 + self.block_share))

    def _block_share(self) -> float:
        """FLOPs of the first block and of the layers around the blocks, as a share of all."""
        one = self.scored.at(slice(1))
        label = self.response.timesteps[:1].float().to(one.noise.device)
        given = [one.noise, label, one.numbers]
        with torch.no_grad():
            with FlopCounterMode(display=False) as full:
                residuals = self.model.answer(KEEPS, given)[1:]
            with FlopCounterMode(display=False) as cheap:
                self.model.answer(CHEAP, [*given, *residuals])
        return cheap.get_total_flops() / full.get_total_flops()

    def decoded(self, latents: torch.Tensor) -> list[np.ndarray]:
        """Frames in 8 bits, decoded by the pipeline."""
        frames: list[np.ndarray] = []
        for start in range(0, len(latents), self.args.batch):
            some = latents[start : start + self.args.batch]
            call = batch_arguments(self.pipe, self.clips[start : start + len(some)])
            given = partial(_Given, some)
            with sampled(self.pipe, lambda nodes: nodes.at([0]), given, self.steps):
                made = self.pipe(**call | {"num_inference_steps": 1, "output_type": "np"}).frames
            frames += [video.to_uint8(np.asarray(clip)) for clip in made]
        return frames

    def scores(self, latents: torch.Tensor) -> dict[str, list[float]]:
        pairs = zip(self.frames, self.decoded(latents), strict=True)
        levels = [min(float(psnr(a, b, data_range=255)), 100.0) for a, b in pairs]
        return {"psnr_db": levels, "latents_db": (-errors_db(latents, self.scored.final)).tolist()}

    def agreement(self, plan: Plan, made: torch.Tensor) -> float:
        """How close the pipeline with the plan is to our run of it, on two clips, in dB."""
        with accelerate(self.pipe, plan=plan, mix=self.weights):
            own = runs.final_latents(self.pipe, self.clips[:2], 2).to(made.device)
        return -float(errors_db(made[:2], own.view_as(made[:2])).max())

    def sampler(self, plan: Plan, lever: str = "weights") -> Sampler:
        depth, layout = self.profile().depth, Layout(self.pipe, self.clips[0])
        split = {"bands": layout.low, "frames": layout.first}.get(lever)
        found = sampler_of(
            plan, self.response, self.weights, depth, wide=lever == "wide", cheap=lever == "block",
            split=split, free_labels=lever == "labels",
        )  # fmt: skip
        return to(found, self.pipe.device)

    def oriented(self, plan: Plan, lever: str) -> Sampler:
        found, few = self.sampler(plan, lever), self.few
        found.orient(self.model, few.noise, few.numbers, few.final)
        return found


class _Given:
    """A sampler that ends at given latents."""

    def __init__(self, latents: torch.Tensor, *_: Any) -> None:
        self.latents = latents

    def step(self, index: int, prediction: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        return self.latents


class Layout:
    """The places of frames, height and width in the latents of a clip."""

    def __init__(self, pipe: Any, clip: ClipSpec) -> None:
        name, self.grid = family_of(pipe).name, None
        self.axes = (-4, -2, -1) if name.startswith("cogvideox") else (-3, -2, -1)
        if name.startswith("ltx"):  # (frames height width, channels)
            space, of_time = pipe.vae_spatial_compression_ratio, pipe.vae_temporal_compression_ratio
            frames = (clip.frames - 1) // of_time + 1
            self.grid, self.axes = (frames, clip.height // space, clip.width // space), (-4, -3, -2)

    def first(self, value: torch.Tensor) -> torch.Tensor:
        """The first latent frame; the others are 0."""
        laid = self._laid(value)
        return self._back(laid * self._along(laid, 0, torch.arange(laid.shape[self.axes[0]]) < 1))

    def low(self, value: torch.Tensor) -> torch.Tensor:
        """The low spatial frequencies."""
        laid = self._laid(value)
        spectrum = torch.fft.fft2(laid, dim=self.axes[1:])
        for place in (1, 2):
            near = torch.fft.fftfreq(laid.shape[self.axes[place]]).abs() < LOW
            spectrum = spectrum * self._along(laid, place, near)
        return self._back(torch.fft.ifft2(spectrum, dim=self.axes[1:]).real)

    def _laid(self, value: torch.Tensor) -> torch.Tensor:
        return value if self.grid is None else value.unflatten(-2, self.grid)

    def _back(self, laid: torch.Tensor) -> torch.Tensor:
        return laid if self.grid is None else laid.flatten(-4, -2)

    def _along(self, laid: torch.Tensor, place: int, mask: torch.Tensor) -> torch.Tensor:
        shape = [1] * laid.ndim
        shape[self.axes[place]] = len(mask)
        return mask.view(shape).to(laid)


def _clips(model: Path, source: Path, count: int, seed: int) -> tuple[ClipSpec, ...]:
    found = clips_of(model, source, count, seed)
    if len(found) < count:
        raise SystemExit(f"{source} has {len(found)} prompts; wanted are {count}")
    return found
