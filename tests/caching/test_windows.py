import itertools
import math

import pytest

from dit_accel.caching.windows import EDCW, Windows, next_length


def replay(config, total, drift_of):
    """Computed steps of a run in which a gap of g steps ending at step s drifts drift_of(s, g)."""
    windows, computed = Windows(config, total), []
    for step in range(total):
        if windows.computes(step):
            windows.observe(step, drift_of(step, step - computed[-1]) if computed else None)
            computed.append(step)
    return computed


def test_worked_example():
    """A run of 9 steps; the cached value is off by 0.04 for every step that it is old."""
    config = EDCW(threshold=0.1, first=1, last=1, growth="step")
    windows, computed = Windows(config, 9), []
    for step in range(9):
        if windows.computes(step):
            age = step - computed[-1] if computed else None
            windows.observe(step, 0.04 * age if age else None)
            computed.append(step)
    # step 0: the first is always computed. Nothing was cached, so the window is 1 step.
    # step 1: computed; drift 0.04 < 0.1, so the window grows to 2: step 2 reuses step 1.
    # step 3: computed; drift 2 x 0.04 = 0.08 < 0.1, so 3: steps 4 and 5 reuse step 3.
    # step 6: computed; drift 3 x 0.04 = 0.12 > 0.1, so the window shrinks to 1.
    # step 7: computed; drift 0.04, so the window grows to 2.
    # step 8: would be reused, but the last step is always computed.
    assert computed == [0, 1, 3, 6, 7, 8]
    # Growth by rate: a drift of 0.05 after 2 steps is 0.025 a step, and 0.1 / 0.025 = 4 steps.
    assert next_length(2, 2, 0.05, EDCW(threshold=0.1, growth="rate")) == 4


def test_growth_by_one_by_hand():
    # Drift is never felt: windows of 1, 1 (first value), 2, 3, 3 (longest), and the last step.
    config = EDCW(threshold=0.1, first=1, max_window=3, growth="step")
    assert replay(config, 13, lambda step, gap: 0.0) == [0, 1, 3, 6, 9, 12]


def test_growth_by_rate_by_hand():
    # 0.03 a step under a threshold of 0.1: int(0.1 / 0.03) = 3 steps are affordable, after 2 x 1.
    config = EDCW(threshold=0.1, first=2, growth="rate")
    assert replay(config, 14, lambda step, gap: 0.03 * gap) == [0, 1, 3, 6, 9, 12, 13]


def test_shrinks_at_once_and_grows_again():
    # A spike at step 6: the window that ends there is followed by one of a single step.
    spike = lambda step, gap: 0.5 if step == 6 else 0.01 * gap  # noqa: E731
    config = EDCW(threshold=0.1, first=2, max_window=4, growth="step")
    assert replay(config, 14, spike) == [0, 1, 3, 6, 7, 9, 12, 13]


@pytest.mark.parametrize("growth", ["step", "rate"])
def test_threshold_zero_computes_every_step_even_without_drift(growth):
    assert replay(EDCW(threshold=0.0, growth=growth), 20, lambda s, g: 0.0) == list(range(20))


@pytest.mark.parametrize("growth", ["step", "rate"])
def test_both_ends_are_guarded(growth):
    config = EDCW(threshold=1e9, first=3, last=2, growth=growth)
    computed = replay(config, 30, lambda step, gap: 1e-9)
    assert computed[:3] == [0, 1, 2] and computed[-2:] == [28, 29]
    assert len(computed) < 12


@pytest.mark.parametrize("drift", [math.nan, math.inf, 0.1, 7.0])
def test_at_the_threshold_or_not_finite_means_compute(drift):
    assert next_length(5, 5, drift, EDCW(threshold=0.1)) == 1


@pytest.mark.parametrize("growth", ["step", "rate"])
def test_higher_threshold_never_computes_more(growth):
    for slope in (0.001, 0.02, 0.07):
        counts = [
            len(replay(EDCW(threshold=t, growth=growth), 50, lambda s, g, k=slope: k * g))
            for t in (0.0, 0.05, 0.1, 0.2, 0.4)
        ]
        assert counts == sorted(counts, reverse=True)
        assert counts[0] == 50


def test_no_window_is_longer_than_allowed():
    computed = replay(EDCW(threshold=9.0, max_window=5), 60, lambda s, g: 0.0)
    assert max(b - a for a, b in itertools.pairwise(computed)) == 5


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"threshold": -0.1}, r"threshold is -0.1; accepted: a finite number >= 0"),
        ({"threshold": math.inf}, "threshold is inf"),
        ({"threshold": math.nan}, "threshold is nan"),
        ({"threshold": "high"}, "threshold is 'high'"),
        ({"max_window": 0}, "max_window is 0; accepted: an integer >= 1"),
        ({"first": 0}, "first is 0; accepted: an integer >= 1"),
        ({"last": -1}, "last is -1; accepted: an integer >= 0"),
        ({"growth": "fast"}, "growth is 'fast'; accepted: 'step', 'rate'"),
    ],
)
def test_bad_settings_are_named(setting, text):
    with pytest.raises(ValueError, match=text):
        EDCW(**setting)
