"""Inner products at other places: exact where known, with a remainder where not."""

from __future__ import annotations

import torch

from dit_accel.planning.interpolation import interpolate_gram, linear_weights

PLACES = torch.linspace(1.0, 0.0, 13, dtype=torch.float64)


def gram_of(rows: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    every = torch.cat([rows, noise[None]])
    return every @ every.T


def curve(places: torch.Tensor) -> torch.Tensor:
    """Rows that bend slowly."""
    return torch.stack([(k * places).cos() / k for k in range(1, 9)], 1)


def rough(places: torch.Tensor, seed: int) -> torch.Tensor:
    """Rows that wander: the sum of steps which no neighbour knows."""
    draw = torch.Generator().manual_seed(seed)
    steps = torch.randn(len(places), 400, generator=draw, dtype=torch.float64)
    return (steps * places.diff(prepend=places[:1] + 1).abs().sqrt()[:, None]).cumsum(0)


def test_worked_example() -> None:
    """By linear weights: 0.7 lies three tenths from 1 and seven from 0."""
    weights = linear_weights(torch.tensor([1.0, 0.0]).double(), torch.tensor([0.7, 1.5]).double())
    torch.testing.assert_close(weights, torch.tensor([[0.7, 0.3], [1.0, 0.0]]).double())


def test_known_places_come_back() -> None:
    gram = gram_of(curve(PLACES), torch.ones(8).double())
    torch.testing.assert_close(interpolate_gram(gram, PLACES, PLACES), gram, atol=1e-5, rtol=0)
    both = torch.block_diag(gram[:-1, :-1], gram)
    back = interpolate_gram(both, PLACES.flip(0), PLACES.flip(0))
    torch.testing.assert_close(back, both, atol=1e-5, rtol=0)


def test_smooth_rows_are_found_between() -> None:
    noise = torch.ones(8).double()
    wanted = (PLACES[1:] + PLACES[:-1])[1:-1] / 2
    found = interpolate_gram(gram_of(curve(PLACES), noise), PLACES, wanted)
    exact = gram_of(curve(wanted), noise)
    assert (found - exact).abs().max() < 0.01 * exact.abs().max()


def test_what_no_neighbour_knows_is_not_made_up() -> None:
    """Of rows that wander, the middle one is missed by half a step's energy: about so large must
    the remainder be, which a weighted sum of neighbours would lack."""
    fine = torch.linspace(1.0, 0.0, 25, dtype=torch.float64)
    misses, found = [], []
    for seed in range(20):
        rows = rough(fine, seed)
        gram = gram_of(rows, torch.zeros(400).double())
        keep = [*range(0, 25, 2), 25]
        between = interpolate_gram(gram[keep][:, keep], fine[::2], fine)
        sums = (rows[10] + rows[12]) / 2 - rows[11]
        misses.append(float(sums.square().sum()))
        mix = torch.zeros(26).double()
        mix[[10, 11, 12]] = torch.tensor([0.5, -1.0, 0.5]).double()
        found.append(float(mix @ between @ mix))
    ratio = sum(found) / sum(misses)
    assert 0.3 < ratio < 2.0
    assert torch.linalg.eigvalsh(between)[0] > -1e-9 * between.diag().max()
