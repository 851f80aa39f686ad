"""The Gram matrix after some runs: what was observed, and the prior for the rest."""

from __future__ import annotations

import pytest
import torch

from dit_accel.planning.learned import Observations, RunKind
from dit_accel.planning.plan import SamplerCoefficients
from dit_accel.planning.posterior import (
    ENOUGH_WHOLE,
    WEIGHT_BESIDE_WHOLE,
    posterior_gram,
    weight_of,
)

STEPS = 12


def kind_of(steps: int = STEPS, weights: tuple[float, ...] = (1.0, -3.0)) -> RunKind:
    times = torch.linspace(1.0, 0.05, steps, dtype=torch.float64)
    return RunKind(SamplerCoefficients(-torch.ones_like(times) / steps, times, weights), 4.0, 60)


def seen(gram: torch.Tensor, kind: RunKind, computed: tuple[int, ...]) -> Observations:
    rows = kind.sampler.feature_rows(torch.tensor([computed]))[0]
    return Observations(kind, computed, 1, gram[rows][:, rows])


def smooth(seed: int, kind: RunKind, size: int = 400) -> torch.Tensor:
    """Of rows that change slowly from step to step, as predictions do."""
    draw = torch.Generator().manual_seed(seed)
    n, parts = kind.sampler.num_steps, len(kind.sampler.branch_weights)
    times = kind.sampler.timesteps
    powers = (
        torch.stack([times**p for p in range(6)])
        * torch.tensor([1, 1, 0.3, 0.1, 0.03, 0.01])[:, None]
    )
    base = torch.randn(parts, 6, size, generator=draw, dtype=torch.float64)
    rows = [powers.T @ base[part] for part in range(parts)]
    noise = torch.randn(1, size, generator=draw, dtype=torch.float64)
    rows = torch.cat([*rows, noise])
    assert rows.shape == (parts * n + 1, size)
    return rows @ rows.T / size


def test_worked_example() -> None:
    """One component of two steps, and noise that is not known. The prior: [[1, .5], [.5, 1]]. A
    clip computed step 0 alone, and its square is 2.

    Step 1 is predicted as half of step 0, with a rest of 1 - .5 · .5 = .75: the clip's matrix is
    [[2, 1], [1, .5 + .75]]. With weight 1: the mean of both, [[1.5, .75], [.75, 1.125]]. Repeated
    with that, the prediction is still half, and the rest 1.125 - .375 = .75: it has settled.
    """
    kind = kind_of(2, (1.0,))
    prior = torch.tensor([[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 0.0]]).double()
    clip = Observations(kind, (0,), 1, torch.tensor([[2.0, 0.0], [0.0, 0.0]]).double())
    found = posterior_gram(prior, [clip], 1.0)
    wanted = torch.tensor([[1.5, 0.75, 0.0], [0.75, 1.125, 0.0], [0.0, 0.0, 0.0]]).double()
    torch.testing.assert_close(found, wanted, atol=1e-8, rtol=0)


@pytest.mark.parametrize("weight", [0.0, 1.0, 8.0])
def test_whole_runs_are_averaged_with_the_prior(weight) -> None:
    kind = kind_of()
    prior, one, two = (smooth(seed, kind) for seed in range(3))
    every = tuple(range(STEPS))
    found = posterior_gram(prior, [seen(one, kind, every) + seen(two, kind, every)], weight)
    torch.testing.assert_close(found, (weight * prior + one + two) / (weight + 2))
    without = posterior_gram(None, [seen(one, kind, every) + seen(two, kind, every)], weight)
    torch.testing.assert_close(without, (one + two) / 2)


def test_rows_that_follow_from_others_are_found_again() -> None:
    """Where the prior knows how rows hang together, some rows of a clip say all the others."""
    kind = kind_of()
    prior = smooth(0, kind)  # of rank 6 a component, and the noise
    other = smooth(1, kind)
    found = posterior_gram(prior, [seen(other, kind, tuple(range(0, STEPS, 2)))], 0.0)
    torch.testing.assert_close(found, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_no_negative_eigenvalue(seed) -> None:
    kind, draw = kind_of(), torch.Generator().manual_seed(seed)
    prior, clips = smooth(seed, kind), []
    for number in range(3):
        some = torch.randperm(STEPS - 1, generator=draw)[:4] + 1
        computed = (0, *sorted(some.tolist()))
        clips.append(seen(smooth(10 + number, kind), kind, computed))
    found = posterior_gram(prior, clips, 0.5)
    least = torch.linalg.eigvalsh(found)[0]
    assert least > -1e-9 * found.trace()
    # Mixed entry by entry instead, there is one.
    mixed = prior.clone()
    rows = clips[0].rows
    mixed[rows[:, None], rows] = (prior[rows][:, rows] + 3 * clips[0].products) / 4
    assert torch.linalg.eigvalsh(mixed)[0] < -1e-4


def test_without_prior_and_whole_run_there_is_none() -> None:
    kind = kind_of()
    with pytest.raises(ValueError, match="no prior, and no run was computed whole"):
        posterior_gram(None, [seen(smooth(0, kind), kind, (0, 3, 6))], 1.0)


def test_the_prior_has_a_weight_beside_few_whole_runs() -> None:
    kind = kind_of()
    part, whole = (seen(smooth(0, kind), kind, (*range(0, STEPS, k),)) for k in (3, 1))
    assert weight_of([part, whole]) == WEIGHT_BESIDE_WHOLE > 0
    assert weight_of([part, *[whole] * ENOUGH_WHOLE]) == 0.0


def test_without_weight_the_prior_is_not_used_where_a_run_was_whole() -> None:
    kind = kind_of()
    prior, own, other = (smooth(seed, kind) for seed in range(3))
    clips = [seen(own, kind, (*range(STEPS),)), seen(other, kind, (0, 3, 6, 9))]
    found = posterior_gram(prior, clips, 0.0)
    torch.testing.assert_close(found, posterior_gram(None, clips, 0.0))
    assert not torch.allclose(found, posterior_gram(prior, clips, 0.25))
