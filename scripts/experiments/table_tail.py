"""Measures how much a pilot or the run itself could reduce the spread of a plan's PSNR over clips.

OMP_NUM_THREADS=1 python scripts/experiments/collect_tail.py runs/tail --prompts 64
python scripts/experiments/table_tail.py runs/tail
python scripts/experiments/table_tail.py assets/mini-wan/dit-accel-profile.safetensors

From the file of a profile, the clips of calibration are used. There an artificial signal replaces a
pilot or a run: it has a given correlation with the clip's PSNR.

The first table has the standard deviation of the PSNR over clips that remains if a signal is known,
fitted by least squares to all other clips. The second table has the speed of a rule that uses the
signal: each clip gets the fewest steps whose predicted PSNR, minus a margin, reaches the quality.
The margin is the least one with which 95 % of the other clips reach it. The cost of the signal is
added to the steps. *Oracle*: the fewest steps that reach the quality. The third table has the gain
that is still possible when an estimate is available: the gain if every later step is computed.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dit_accel.core.extrapolation import lagrange_weights
from dit_accel.models import miniature
from dit_accel.planning.candidate import CandidatePlan
from dit_accel.planning.error_model import energies
from dit_accel.planning.lookup import PROFILE_FILE
from dit_accel.planning.plan import Extrapolation, Plan
from dit_accel.planning.profile import Profile
from dit_accel.planning.search import fit

COVERAGE = 0.95
POINTS = 4  # computed steps through which a window is interpolated, once they are known
TOKENS = {2: 1 / 4, 4: 1 / 16}  # tokens of a pilot, as a share of the clip's
Weights = dict[int, float]


def window_error(
    profile: Profile, plan: Plan, other: Callable[[int, int, int], tuple[Weights, ...]],
    opened: int, closed: int,
) -> torch.Tensor:  # fmt: skip
    """The difference between a window's contribution and that with other weights of computed steps:
    `(R,)`, the rows of the computed steps by component, then the noise. `other(opened, closed,
    step)`."""
    sampler, places = profile.sampler, {s: i for i, s in enumerate(plan.computed)}
    rows = torch.zeros(len(sampler.branch_weights) * len(places) + 1, dtype=torch.float64)
    for step in range(opened + 1, closed):
        scale = float(sampler.coefficients[step])
        rows[-1] += scale * float(plan.extrapolations[step].noise_weight)
        pairs = zip(plan.extrapolations[step].weights, other(opened, closed, step), strict=True)
        for component, (mine, theirs) in enumerate(pairs):
            share = scale * sampler.branch_weights[component]
            for sign, weights in ((1, mine), (-1, theirs)):
                for used, weight in weights.items():
                    rows[component * len(places) + places[used]] += sign * share * weight
    return rows


def estimate(
    profile: Profile, plan: Plan, gram: np.ndarray,
    other: Callable[[int, int, int], tuple[Weights, ...]], until: int,
) -> np.ndarray:  # fmt: skip
    """`(P,)`: the error of each clip's latents in dB, estimated from its own predictions up to a
    step.

    The windows' differences from `other` are added up by the error model's growth and fade.
    """
    model, size = profile.error_model, gram.shape[1] - 2
    products = torch.from_numpy(gram[:, :size, :size])
    error = torch.zeros(len(gram), dtype=torch.float64)
    so_far = torch.zeros(size, dtype=torch.float64)
    for opened, closed in plan.windows:
        ends = torch.tensor(opened), torch.tensor(closed)
        error, so_far = error * model.growth(*ends) ** 2, so_far * model.fade(*ends)
        if closed <= until:
            window = window_error(profile, plan, other, opened, closed)
            error = error + (products @ window) @ (window + 2 * so_far)
            so_far = so_far + window
    final = torch.from_numpy(gram[:, -1, -1])
    return -10 * (error.clamp_min(1e-12) / final).log10().numpy()


def interpolated(profile: Profile, plan: Plan) -> Callable[[int, int, int], tuple[Weights, ...]]:
    """The polynomial through the computed steps around a window, including the next one."""

    def weights(opened: int, closed: int, step: int) -> tuple[Weights, ...]:
        known = [s for s in plan.computed if s <= closed][-POINTS:]
        times = [float(profile.sampler.timesteps[s]) for s in known]
        line = lagrange_weights(times, float(profile.sampler.timesteps[step]))
        return tuple(dict(zip(known, line, strict=True)) for _ in profile.sampler.branch_weights)

    return weights


def of_plan(plan: Plan) -> Callable[[int, int, int], tuple[Weights, ...]]:
    """Another plan with the same computed steps, without weights of the noise."""

    def weights(opened: int, closed: int, step: int) -> tuple[Weights, ...]:
        other: Extrapolation = plan.extrapolations[step]
        return tuple(dict(one) for one in other.weights)

    return weights


# --- what is known of a clip ---


def signals(data: dict[str, np.ndarray], profile: Profile) -> dict[str, Any]:
    """By name: the cost in steps, and for each count of computed steps the numbers of each clip."""
    candidates = {len(c.computed): c for c in profile.candidates}
    counts = [int(name[5:]) for name in data if name.startswith("psnr/")]
    text = {count: [data["score"]] for count in counts}
    found: dict[str, Any] = {"nothing": (0.0, {count: [] for count in counts})}
    found["the text"] = (0.0, text)
    steps = profile.sampler.num_steps
    for name in sorted(name for name in data if name.startswith("pilot/")):
        _, pilot, computed = name.split("/")
        cost = (steps + int(computed)) * TOKENS[int(pilot)]
        given = {
            c: [*text[c], data[name], data[f"pilot_latents/{pilot}/{computed}"]] for c in counts
        }
        found[f"text, and a pilot of 1/{pilot}² at {computed} steps"] = (cost, given)
    parts = {"a tenth": 0.1, "a quarter": 0.25, "half": 0.5, "the whole": 1.0}
    for name, until in ((f"{part} of the run", round(parts[part] * steps)) for part in parts):
        given = {c: [*text[c], *own_estimates(data, profile, candidates[c], until)] for c in counts}
        found[f"text, and its own error estimates after {name}"] = (0.0, given)
    truth = {}
    for count in counts:
        gram = data[f"gram/{count}"]
        truth[count] = [-10 * np.log10(gram[:, -2, -2] / gram[:, -1, -1])]
    found["the true error of its latents"] = (0.0, truth)
    return found


def own_estimates(
    data: dict[str, np.ndarray], profile: Profile, candidate: CandidatePlan, until: int
) -> list[np.ndarray]:
    """Estimates by the line, by weights of depth 2, and by interpolation once a window has
    closed."""
    plan, gram = profile.plan_of(candidate), data[f"gram/{len(candidate.computed)}"]
    line = Plan.of(candidate.computed, profile.sampler, {}, 2)
    shallow = fit(candidate.computed, profile.error_model, depth=2)[0]
    others = (of_plan(line), of_plan(shallow), interpolated(profile, plan))
    found = [estimate(profile, plan, gram, other, until) for other in others]
    return [one for one in found if one.std() > 1e-9]


def held_out(values: np.ndarray, numbers: list[np.ndarray]) -> np.ndarray:
    """Each clip's value, predicted from its numbers by a fit to all others."""
    design = np.stack([np.ones(len(values)), *numbers], 1)
    hat = design @ np.linalg.pinv(design)
    return values - (values - hat @ values) / (1 - np.diag(hat))


def made_up(data: dict[str, np.ndarray]) -> dict[str, Any]:
    """The text, and a signal that correlates with the PSNR of a plan with ten steps."""
    counts = [int(name[5:]) for name in data if name.startswith("psnr/")]
    psnr, draw = data["psnr/10"], np.random.default_rng(0)
    standard = (psnr - psnr.mean()) / psnr.std()
    found: dict[str, Any] = {"nothing": (0.0, {count: [] for count in counts})}
    found["the text"] = (0.0, {count: [data["score"]] for count in counts})
    noise = draw.standard_normal(len(psnr))
    for correlation in (0.4, 0.6, 0.7, 0.8, 0.9, 0.95):
        signal = correlation * standard + math.sqrt(1 - correlation**2) * noise
        given = {count: [data["score"], signal] for count in counts}
        found[f"text, and a signal of correlation {correlation:g}"] = (0.0, given)
    return found


def read(path: Path, profile: Profile) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The numbers of all clips, and the signals of each."""
    if path.is_dir():
        files = [np.load(one) for one in sorted(path.glob("[0-9]*.npz"))]
        data = {name: np.concatenate([one[name] for one in files]) for name in files[0].files}
        return data, signals(data, profile)
    given = Profile.load(path)
    if given.difficulty is None:
        raise SystemExit(f"{path} does not know the difficulty of its clips")
    data = {f"psnr/{len(one.computed)}": one.psnr_db.numpy() for one in given.candidates}
    data["score"] = given.difficulty.held_out.numpy()
    return data, made_up(data)


def repaired(profile: Profile, data: dict[str, np.ndarray]) -> list[str]:
    """By how many dB a plan improves if a run computes every step from some step on: by the error
    model, and as measured."""
    model, steps = profile.error_model, profile.sampler.num_steps
    starts = [round(share * steps) for share in (0.1, 0.25, 0.5, 0.75)]
    head = " | ".join(f"from step {start} on" for start in starts)
    lines = [f"| computed steps of the plan | {head} |", "|---" * (len(starts) + 1) + "|"]
    for candidate in profile.candidates:
        plan = fit(candidate.computed, model, depth=profile.depth)[0]
        whole, gains = energies(plan, model).mean(), []
        for start in starts:
            before = {step: one for step, one in plan.extrapolations.items() if step < start}
            left = energies(Plan(steps, before), model).mean()
            gains.append(f"{float(10 * (whole / left).log10()):+.1f}")
        lines.append(f"| {len(candidate.computed)} | " + " | ".join(gains) + " |")
    for name in (name for name in data if name.startswith("repaired/")):
        _, count, start = name.split("/")
        gain = (data[name] - data[f"psnr/{count}"]).mean()
        lines.append(f"\nMeasured, {count} computed, from step {start} on: {gain:+.1f} dB.")
    return lines


# --- speed ---


def curve(known: dict[int, np.ndarray], steps: int) -> np.ndarray:
    """`(steps - 1, P)`: PSNR by computed steps from 2 on. Straight lines over the logarithm of the
    steps; no value below the fewest tried steps."""
    counts = sorted(known)
    logs, values = np.log(counts), np.stack([known[count] for count in counts])
    at = np.log(np.arange(2, steps + 1))
    place = np.clip(np.searchsorted(logs, at) - 1, 0, len(counts) - 2)
    share = (at - logs[place]) / (logs[place + 1] - logs[place])
    found = values[place] * (1 - share)[:, None] + values[place + 1] * share[:, None]
    found[: counts[0] - 2] = -math.inf
    found[-1] = math.inf  # every step computed is exact
    return np.maximum.accumulate(found)


def fewest(curves: np.ndarray, quality: float, margin: float) -> np.ndarray:
    """`(P,)`: the fewest steps that reach a quality with a margin."""
    return (curves - margin >= quality).argmax(0) + 2


def chosen(predicted: np.ndarray, true: np.ndarray, quality: float) -> np.ndarray:
    """The steps of each clip, with the least margin with which enough of the other clips reach the
    quality."""
    margins = np.arange(-10, 30, 0.25)
    counts = np.stack([fewest(predicted, quality, margin) for margin in margins])
    right = np.stack([true[row - 2, np.arange(len(row))] >= quality for row in counts])
    found = []
    for clip in range(true.shape[1]):
        others = np.delete(right, clip, 1).mean(1) >= COVERAGE
        first = int(len(others) - np.argmin(others[::-1])) if not others.all() else 0
        found.append(counts[min(first, len(margins) - 1), clip])
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of collect_tail.py; or a profile's file")
    parser.add_argument("--qualities", type=float, nargs="+", default=(28, 32, 36))
    options = parser.parse_args()
    profile = Profile.load(miniature.path() / PROFILE_FILE)
    data, known = read(options.folder, profile)
    psnr = {int(name[5:]): value for name, value in data.items() if name.startswith("psnr/")}
    steps, qualities = profile.sampler.num_steps, options.qualities
    print(f"{len(data['score'])} clips.\n")
    counts = sorted(psnr)
    print("| what is known | " + " | ".join(f"{c} computed" for c in counts) + " |")
    print("|---" * (len(counts) + 1) + "|")
    predicted = {
        name: {c: held_out(psnr[c], numbers[c]) for c in counts}
        for name, (_, numbers) in known.items()
    }
    for name, by_count in predicted.items():
        left = [f"{np.sqrt(np.mean((psnr[c] - by_count[c]) ** 2)):.1f}" for c in counts]
        print(f"| {name} | " + " | ".join(left) + " |")
    print(
        "\n| what is known | its cost, in steps | "
        + " | ".join(f"{q:g} dB" for q in qualities)
        + " |"
    )
    print("|---" * (len(qualities) + 2) + "|")
    true = curve(psnr, steps)
    best = {q: steps / fewest(true, q, 0.0) for q in qualities}
    print("| oracle | – | " + " | ".join(f"{best[q].mean():.2f}×" for q in qualities) + " |")
    for name, (cost, _) in known.items():
        cells = []
        for quality in qualities:
            count = chosen(curve(predicted[name], steps), true, quality)
            right = np.mean(true[count - 2, np.arange(len(count))] >= quality)
            free, speed = (steps / count).mean(), (steps / (count + cost)).mean()
            share = f"{free / best[quality].mean():.0%}"
            share += f", {speed / best[quality].mean():.0%} with its cost" if cost else ""
            cells.append(f"{share} ({right:.0%} reach it)")
        print(f"| {name} | {cost:.1f} | " + " | ".join(cells) + " |")
    print("\n" + "\n".join(repaired(profile, data)))


if __name__ == "__main__":
    main()
