"""DWS by hand: the weight is a minimum, the blend beats both, and the choice follows the errors."""

import math

import pytest
import torch

from dit_accel.caching.blend import (
    DWS,
    Choice,
    Errors,
    blend_error,
    blend_weight,
    cached_error,
    choose,
)

GRID = [
    Errors(cached, pruned, rho)
    for cached in (0.05, 0.2, 1.0)
    for pruned in (0.05, 0.1, 0.7)
    for rho in (-0.5, 0.0, 0.4, 0.9)
]


def test_worked_example():
    """The old value is off by 2, the pruned one by 1, independently of each other."""
    errors = Errors(2.0, 1.0, 0.0)
    # w* = old^2 / (old^2 + pruned^2) = 4 / (4 + 1) = 0.8 of the pruned value
    assert blend_weight(errors) == 0.8
    # its squared error is (0.8 x 1)^2 + (0.2 x 2)^2 = 0.64 + 0.16 = 0.8, below 1 and 4
    assert blend_error(errors, 0.8) == pytest.approx(math.sqrt(0.8))
    # A quarter of the windows' threshold is allowed. Of 4 that is 1, and sqrt(0.8) = 0.894 is less.
    assert choose(errors, 4.0, DWS()).action == "blend"
    # Of 3 it is 0.75: even the blend is expected too far off.
    assert choose(errors, 3.0, DWS()).action == "compute"
    # Half as old again, it is off by 3: w* = 9 / 10, and the squared error 0.81 + 0.09 = 0.9.
    assert blend_error(errors.aged(1.5), 0.9) == pytest.approx(math.sqrt(0.9))


@pytest.mark.parametrize("errors", GRID)
def test_the_weight_is_the_best_of_all_weights(errors):
    best = min((blend_error(errors, w / 1000), w / 1000) for w in range(1001))
    weight = blend_weight(errors)
    assert blend_error(errors, weight) <= best[0] + 1e-12
    assert weight == pytest.approx(best[1], abs=1e-3) or errors.correlation > 0.8


def test_by_hand():
    assert blend_weight(Errors(1.0, 1.0, 0.0)) == 0.5
    assert blend_error(Errors(1.0, 1.0, 0.0), 0.5) == pytest.approx(math.sqrt(0.5))
    assert blend_weight(Errors(2.0, 1.0, 0.5)) == 1.0  # ρ = σ_p/σ_k: cached adds nothing
    assert blend_weight(Errors(1.0, 2.0, 0.5)) == 0.0
    assert blend_weight(Errors(0.3, 0.3, 1.0)) == 1.0  # the same error
    assert blend_weight(Errors(math.inf, 0.1, 0.0)) == 1.0
    assert blend_weight(Errors(0.1, math.inf, 0.0)) == 0.0


def test_the_formula_is_that_of_tensors():
    """On drawn errors the blend's real mean square is what is expected of it, and least."""
    generator = torch.Generator().manual_seed(0)
    cached = torch.randn(100_000, generator=generator)
    pruned = 0.3 * cached + 0.5 * torch.randn(100_000, generator=generator)
    sums = [float(x) for x in (cached @ cached, pruned @ pruned, cached @ pruned)]
    errors = Errors.measured([(*sums, float(len(cached)))])
    weight = blend_weight(errors)

    def real(w):
        return float((w * pruned + (1 - w) * cached).square().mean().sqrt())

    assert real(weight) == pytest.approx(blend_error(errors, weight), rel=1e-4)
    assert real(weight) < min(real(weight - 0.05), real(weight + 0.05), real(0), real(1))


def test_measured_sums_over_the_branches():
    errors = Errors.measured([(4.0, 1.0, 1.0, 50.0), (0.0, 0.0, 0.0, 50.0)])
    assert errors == Errors(0.2, 0.1, 0.5)
    assert Errors.measured([(math.nan, 1.0, 0.0, 1.0)]) == Errors(math.inf, math.inf, 0.0)
    assert Errors.measured([(1.0, 1.0, 0.0, 0.0)]) == Errors(math.inf, math.inf, 0.0)


@pytest.mark.parametrize("errors", GRID)
def test_the_cached_error_is_found_again_from_the_distance(errors):
    k, p, rho = errors.cached, errors.pruned, errors.correlation
    distance = math.sqrt(k * k + p * p - 2 * rho * k * p)
    found = cached_error(distance, p, rho)
    assert math.isclose(found, k, rel_tol=1e-6) or found > k  # two roots: the larger is taken
    if k >= rho * p:
        assert found == pytest.approx(k, rel=1e-6)


def test_a_distance_too_small_is_no_error():
    assert cached_error(0.0, 0.3, 0.0) == 0.0


@pytest.mark.parametrize(
    ("errors", "action"),
    [
        (Errors(1.0, 0.05, 0.0), "prune"),  # the old value would save less than the margin
        (Errors(0.12, 0.1, 0.0), "blend"),
        (Errors(0.05, 1.0, 0.0), "reuse"),
        (Errors(1.0, 0.5, 0.0), "compute"),
        (Errors(math.inf, math.inf, 0.0), "compute"),
        (Errors(0.01, math.nan, 0.0), "compute"),
    ],
)
def test_choices(errors, action):
    assert choose(errors, 0.4, DWS()).action == action


def test_a_blend_can_be_good_enough_where_neither_is():
    errors = Errors(0.12, 0.12, 0.0)
    choice = choose(errors, 0.4, DWS())
    assert choice == Choice("blend", 0.5, pytest.approx(0.12 / math.sqrt(2)))
    assert choose(errors, 0.32, DWS()).action == "compute"
    assert choose(errors, 0.32, DWS(tolerance=0.1)).action == "blend"


def test_without_a_tolerance_it_is_a_quarter_of_the_windows_threshold():
    assert DWS().allowed(0.4) == 0.1
    assert DWS(tolerance=0.3).allowed(0.4) == 0.3


def test_age_changes_the_cached_value_alone():
    assert Errors(0.1, 0.2, 0.3).aged(3) == Errors(pytest.approx(0.3), 0.2, 0.3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tolerance": -1}, "tolerance is -1; accepted: a number >= 0, or None"),
        ({"margin": 1.0}, "margin is 1.0; accepted: a number from 0 to below 1"),
        ({"recheck": 0}, "recheck is 0; accepted: an integer >= 1"),
    ],
)
def test_bad_settings_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        DWS(**given)
