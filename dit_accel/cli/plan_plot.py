"""Draws a plan: its steps, and its predicted PSNR among the candidate plans.

In: a profile and, if there is a target, a chosen plan. Out: a .png or .svg.
Knows matplotlib, of the extra `report`; opens no window. Ours.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_accel.core.files import placed

if TYPE_CHECKING:
    from dit_accel.planning.choice import PlanChoice
    from dit_accel.planning.profile import Profile

COMPUTED, EXTRAPOLATED, TARGET, PROMPTS = "#1f6f8b", "#dbe7ec", "#c7522a", "#8fb3c0"


def draw(
    path: Path, profile: Profile, choice: PlanChoice | None, quality: float | None = None
) -> None:
    """Write the picture.

    Args:
        choice: the plan; None: only the candidate plans are drawn.
        quality: the target in dB, drawn as a line.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    heights = (1, 3) if choice is not None else (3,)
    figure = Figure(figsize=(8, 1.5 * sum(heights)), layout="constrained")
    axes = figure.subplots(len(heights), squeeze=False, height_ratios=heights)[:, 0]
    if choice is not None:
        _steps(axes[0], choice)
    _candidates(axes[-1], profile, choice, quality)
    content = io.BytesIO()
    figure.savefig(content, dpi=150, format=path.suffix[1:].lower())
    with placed(path) as scratch:
        scratch.write_bytes(content.getbuffer())


def _steps(axes: Any, choice: PlanChoice) -> None:
    plan = choice.plan
    computed = set(plan.computed)
    colours = [COMPUTED if step in computed else EXTRAPOLATED for step in range(plan.num_steps)]
    axes.barh([0] * plan.num_steps, 0.9, left=range(plan.num_steps), height=0.7, color=colours)
    axes.set_yticks([0], ["plan"])
    axes.set_ylim(0.5, -0.5)
    axes.set_xlim(0, plan.num_steps)
    axes.set_xlabel("step (dark: computed, light: extrapolated)")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)


def _candidates(
    axes: Any, profile: Profile, choice: PlanChoice | None, quality: float | None
) -> None:
    total = profile.sampler.num_steps
    for candidate in profile.candidates:
        psnr = candidate.psnr_db.tolist()
        axes.plot([total / len(candidate.computed)] * len(psnr), psnr, "_", color=PROMPTS)
    means = [(total / len(r.computed), float(r.psnr_db.mean())) for r in profile.candidates]
    if means:
        axes.plot(*zip(*means, strict=True), "o-", color=COMPUTED, label="calibration, mean")
    predicted = choice.prediction if choice is not None else None
    if predicted is not None and math.isfinite(predicted.psnr_db):
        interval = [[predicted.psnr_db - predicted.low_db], [predicted.high_db - predicted.psnr_db]]
        axes.errorbar(
            [predicted.speedup], [predicted.psnr_db], yerr=interval, fmt="D", color=TARGET,
            capsize=4, label="this plan, 90 % of clips",
        )  # fmt: skip
    if quality is not None:
        axes.axhline(quality, color=TARGET, linestyle=":", linewidth=1, label="target")
    axes.set_xlabel("speedup (steps / computed steps)")
    axes.set_ylabel("PSNR, dB")
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
