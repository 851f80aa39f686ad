"""Draws the idea of the project: a real run of ten steps, some computed, the others extrapolated.

python scripts/docs/draw_idea.py --profile out/ten.safetensors --out docs/idea.png

If the file of the profile is missing, it is made first: `calibrate` at ten steps on some prompts of
the miniature, some minutes on a CPU. Then one prompt runs three times: with every step computed,
with the plan for a speedup, and with as few steps as that plan computes. The figure shows the clip
at each step, the weights of the extrapolations, and the error against the uncached run after each
step.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from diffusers import WanPipeline

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from dit_accel import accelerate
from dit_accel.calibration.calibrate import calibrate
from dit_accel.core.generation import ClipSpec
from dit_accel.metrics import psnr
from dit_accel.planning.profile import Profile
from dit_accel.planning.selection import for_speedup

ASSETS = Path(__file__).parents[2] / "assets"
STEPS, CLIPS, BATCH = 10, 48, 8
COLOURS = ("#1f5fa8", "#e08a1e", "#2f9e6e", "#b0457f", "#6f58b5")  # one for each computed step
INK, FAINT = "#22262b", "#8a9099"
WIDE, HIGH, LEFT = 8.0, 6.1, 0.115  # inches; share of the width where the steps begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", type=Path, default=Path("out/ten.safetensors"))
    parser.add_argument("--out", type=Path, default=Path("docs/idea.png"))
    parser.add_argument("--speedup", type=float, default=2.5)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--prompt", default="a red circle moving right on a plain gray background")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pipe = WanPipeline.from_pretrained(ASSETS / "mini-wan")
    pipe.set_progress_bar_config(disable=True)
    profile = profile_of(pipe, args.profile)
    run = Run(pipe, profile, args.prompt, args.seed, args.speedup)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    draw(run, args.out)
    print(json.dumps(run.numbers(), indent=1))


def profile_of(pipe: Any, path: Path) -> Profile:
    """The profile of ten steps: read, or made and written."""
    if not path.is_file():
        lines = (ASSETS / "prompts" / "calibration.jsonl").read_text(encoding="utf-8").splitlines()
        clips = [
            ClipSpec(json.loads(line)["prompt"], "", 1000 + i, STEPS, 4.0, 64, 64, 17, 8.0, 64)
            for i, line in enumerate(lines[:CLIPS])
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        calibrate(pipe, clips, speedups=(2.0, 2.5), probes=4, batch=BATCH).save(path)
    return Profile.load(path)


class Run:
    """The runs of one prompt: the uncached one, the planned one, and one with as few steps."""

    def __init__(self, pipe: Any, profile: Profile, prompt: str, seed: int, speedup: float) -> None:
        self.pipe, self.prompt, self.seed = pipe, prompt, seed
        self.plan = for_speedup(profile, speedup).plan
        self.reference, exact = self._made(STEPS)
        with accelerate(pipe, speedup=speedup, profile=profile) as handle:
            self.planned, self.latents = self._made(STEPS)
        self.notes = handle.report().notes
        self.fewer, _ = self._made(len(self.plan.computed))
        self.error = [
            float((mine - theirs).norm() / theirs.norm())
            for mine, theirs in zip(self.latents, exact, strict=True)
        ]

    def weights(self, step: int) -> dict[int, float]:
        """Weights of the computed steps at an extrapolated step, in the conditional branch."""
        return {
            read: float(w) for read, w in sorted(self.plan.extrapolations[step].weights[0].items())
        }

    def pictures(self) -> list[np.ndarray]:
        """The decoded middle frame of the latents after each step."""
        return [self._frame(latents) for latents in self.latents]

    def psnr(self, clip: np.ndarray) -> float:
        """PSNR of a clip against the uncached one, in dB."""
        return float(psnr(self.reference, clip, data_range=1.0))

    def numbers(self) -> dict[str, Any]:
        """The numbers in the figure."""
        return {
            "computed": self.plan.computed,
            "weights": {s: self.weights(s) for s in self.plan.extrapolations},
            "error": [round(e, 4) for e in self.error],
            "psnr_db": round(self.psnr(self.planned), 1),
            "fewer_steps_psnr_db": round(self.psnr(self.fewer), 1),
            "notes": self.notes,
        }

    def _made(self, steps: int) -> tuple[np.ndarray, list[torch.Tensor]]:
        latents: list[torch.Tensor] = []

        def keep(_: Any, step: int, time: Any, values: dict[str, torch.Tensor]) -> dict[str, Any]:
            latents.append(values["latents"].clone())
            return {}

        frames = self.pipe(
            self.prompt, num_inference_steps=steps, guidance_scale=4.0, height=64, width=64,
            num_frames=17, max_sequence_length=64, output_type="np",
            generator=torch.Generator().manual_seed(self.seed), callback_on_step_end=keep,
        ).frames[0]  # fmt: skip
        return frames, latents

    @torch.no_grad()
    def _frame(self, latents: torch.Tensor) -> np.ndarray:
        vae = self.pipe.vae
        shape = (1, vae.config.z_dim, 1, 1, 1)
        mean = torch.tensor(vae.config.latents_mean).view(shape)
        std = torch.tensor(vae.config.latents_std).view(shape)
        clip = vae.decode((latents * std + mean).to(vae.dtype), return_dict=False)[0]
        frame = clip[0, :, clip.shape[2] // 2].permute(1, 2, 0).float()
        return (frame / 2 + 0.5).clamp(0, 1).numpy()


def draw(run: Run, path: Path) -> None:
    """Draw the figure: the clip step by step, cached predictions and weights, errors, three
    results."""
    plt.rcParams.update({"font.family": "DejaVu Sans", "font.size": 9, "text.color": INK})
    figure = plt.figure(figsize=(WIDE, HIGH), dpi=200, facecolor="white")
    colours = dict(zip(run.plan.computed, COLOURS, strict=False))
    _pictures(figure, run, colours)
    _lanes(figure.add_axes((LEFT, 0.44, 0.99 - LEFT, 0.36)), run, colours)
    _errors(figure.add_axes((LEFT, 0.295, 0.99 - LEFT, 0.09)), run, colours)
    _results(figure, run)
    figure.savefig(path)
    plt.close(figure)


def _x(step: float) -> float:
    return LEFT + (0.99 - LEFT) * (step + 0.5) / STEPS


def _title(figure: Any, y: float, text: str) -> None:
    figure.text(0.012, y, text, va="center", fontsize=9, color=INK, linespacing=1.25)


def _pictures(figure: Any, run: Run, colours: dict[int, str]) -> None:
    width = 0.078
    height = width * WIDE / HIGH
    for step, picture in enumerate(run.pictures()):
        colour = colours.get(step, FAINT)
        axes = figure.add_axes((_x(step) - width / 2, 0.85, width, height))
        axes.imshow(picture)
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(color=colour, linewidth=3 if step in colours else 1)
            spine.set_linestyle("-" if step in colours else (0, (3, 2)))
        axes.set_title(f"step {step}", fontsize=8.5, pad=5, color=INK)
        figure.text(
            _x(step), 0.836, "computed" if step in colours else "extrapolated", ha="center",
            va="top", fontsize=7.3, color=colour, weight="bold" if step in colours else "normal",
        )  # fmt: skip
    _title(figure, 0.90, "the clip\nafter\neach step")


def _lanes(axes: Axes, run: Run, colours: dict[int, str]) -> None:
    """Draw the lanes. A lane is a cached prediction: it begins at its computed step, and ends where
    it is used last. A mark on it is its weight in the extrapolation of that step."""
    weights = {step: run.weights(step) for step in run.plan.extrapolations}
    for lane, (read, colour) in enumerate(colours.items()):
        y = -lane
        last = max((step for step, parts in weights.items() if _counts(parts, read)), default=read)
        axes.plot([read, read], [0.85, y], color=colour, linewidth=2.5, solid_capstyle="butt")
        axes.plot([read, last], [y, y], color=colour, linewidth=2.5, solid_capstyle="round")
        axes.plot(read, y, "o", color=colour, markersize=9)
        for step, parts in weights.items():
            if _counts(parts, read):
                _mark(axes, step, y, parts[read], colour)
    for step, parts in weights.items():
        lowest = -max(lane for lane, read in enumerate(colours) if _counts(parts, read))
        axes.annotate(
            "", (step, 0.85), (step, lowest), zorder=0,
            arrowprops={"arrowstyle": "simple,head_width=1.6,head_length=0.8,tail_width=0.7",
                        "color": "#dde1e6", "shrinkA": 0, "shrinkB": 0},
        )  # fmt: skip
    axes.set_ylim(0.4 - len(colours), 0.85)
    _plain(axes)
    _title(axes.figure, 0.63, "cached\npredictions\nand their\nweights")


def _counts(parts: dict[int, float], read: int) -> bool:
    return abs(parts.get(read, 0.0)) >= 0.05


def _mark(axes: Axes, step: int, y: float, weight: float, colour: str) -> None:
    plus = weight > 0
    box = {"boxstyle": "round,pad=0.3", "facecolor": colour if plus else "white"}
    axes.text(
        step, y, f"{weight:+.1f}".replace("-", "\u2212"), ha="center", va="center", fontsize=8,
        weight="bold", color="white" if plus else colour,
        bbox=box | {"edgecolor": colour, "linewidth": 1.4}, zorder=3,
    )  # fmt: skip


def _errors(axes: Axes, run: Run, colours: dict[int, str]) -> None:
    for step, error in enumerate(run.error):
        axes.bar(step, 100 * error, 0.62, color=colours.get(step, "#c3c9d2"))
        axes.text(step, 100 * error, f" {100 * error:.0f} %", ha="center", va="bottom", fontsize=8)
    axes.set_ylim(0, 135 * max(run.error))
    axes.axhline(0, color=INK, linewidth=0.8)
    _plain(axes)
    _title(axes.figure, 0.34, "error\nafter\neach step")


def _plain(axes: Axes) -> None:
    axes.set(xlim=(-0.5, STEPS - 0.5), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _results(figure: Any, run: Run) -> None:
    count, middle = len(run.plan.computed), len(run.reference) // 2
    rows = (
        (run.reference, f"{STEPS} steps,\nall computed", "reference"),
        (run.planned, f"{STEPS} steps,\n{count} computed", f"{run.psnr(run.planned):.1f} dB"),
        (run.fewer, f"{count} steps,\nall computed", f"{run.psnr(run.fewer):.1f} dB"),
    )
    size = 0.155
    for place, (clip, name, score) in enumerate(rows):
        left = LEFT + 0.012 + 0.298 * place
        axes = figure.add_axes((left, 0.025, size, size * WIDE / HIGH))
        axes.imshow(clip[middle])
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(color=FAINT, linewidth=1)
        figure.text(left + size + 0.012, 0.155, name, va="center", fontsize=8.5, linespacing=1.3)
        figure.text(left + size + 0.012, 0.09, score, va="center", fontsize=11, weight="bold")
    _title(figure, 0.13, "the clip\nthat\ncomes out")


if __name__ == "__main__":
    main()
