"""Compares ways to interpolate a Gram matrix between steps: the table of research/LOG.md.

python scripts/experiments/table_interpolation.py --every 2 3

Every second (third) step of the miniature's profile is taken, and all 50 are interpolated. A plan
is searched with the result. Its error is the one that the whole profile predicts.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.interpolate import CubicSpline

from dit_accel.models import miniature
from dit_accel.planning import interpolation
from dit_accel.planning.error_model import ErrorModel, energies
from dit_accel.planning.interpolation import interpolate_gram, linear_weights
from dit_accel.planning.lookup import PROFILE_FILE
from dit_accel.planning.profile import Profile
from dit_accel.planning.search import search

Sums = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # known and wanted places: weights


def cubic(known: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Weights of the cubic spline."""
    spline = CubicSpline(known.flip(0).numpy(), np.eye(len(known))[::-1], axis=0)
    return torch.from_numpy(spline(wanted.numpy()))


def by_sums(weights: Sums) -> Callable[..., torch.Tensor]:
    """Weighted sums alone, without a remainder."""

    def found(gram: torch.Tensor, known: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        each = weights(known, wanted)
        parts = [each] * ((len(gram) - 1) // len(known))
        one = torch.ones(1, 1, dtype=torch.float64)
        rows = torch.block_diag(*parts, one)  # type: ignore[no-untyped-call]
        return rows @ gram @ rows.T

    return found


WAYS: dict[str, Callable[..., torch.Tensor]] = {
    "lines": by_sums(linear_weights),
    "cubic spline": by_sums(cubic),
    "Matérn kernel": by_sums(lambda known, wanted: interpolation._kriging(known, wanted)[1]),
    "Matérn kernel and remainder": interpolate_gram,
}


def decibels(error: torch.Tensor | float) -> float:
    return -10 * math.log10(float(error))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--every", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--computed", type=int, nargs="+", default=[20, 13])
    given = parser.parse_args()
    torch.set_num_threads(1)
    profile = Profile.load(miniature.path() / PROFILE_FILE)
    whole, n = profile.error_model, profile.sampler.num_steps
    places = torch.linspace(1, 0, n, dtype=torch.float64)
    best = [f"{decibels(search(whole, count)[1]):.1f}" for count in given.computed]
    print(f"the whole profile: {' / '.join(best)} dB")
    print("| steps known | way | predicted, dB | by the whole profile, dB |\n|---|---|---|---|")
    for every in given.every:
        chosen = torch.tensor(sorted({*range(0, n, every), n - 1}))
        rows = torch.cat([chosen, chosen + n, torch.tensor([2 * n])])
        known = profile.gram[0][rows][:, rows]
        for name, way in WAYS.items():
            gram = way(known, places[chosen], places)
            model = ErrorModel(profile.sampler, gram[None], whole.error_gain, whole.error_memory)
            found = [search(model, count) for count in given.computed]
            said = " / ".join(f"{decibels(error):.1f}" for _, error in found)
            real = " / ".join(f"{decibels(energies(plan, whole)[0]):.1f}" for plan, _ in found)
            print(f"| {len(chosen)} of {n} | {name} | {said} | {real} |", flush=True)


if __name__ == "__main__":
    main()
