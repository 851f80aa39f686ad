"""Latent metrics: closed forms in any shape, scored in parts, and what they refuse."""

from __future__ import annotations

import re

import numpy as np
import pytest

from dit_accel.metrics import (
    Unavailable,
    latent_cosine,
    latent_rel_l2,
)
from dit_accel.metrics.latents import LatentSums


def test_latent_metrics_have_their_closed_forms_in_any_shape():
    x = np.random.default_rng(0).normal(size=(1, 4, 2, 3, 5)).astype(np.float32)
    assert latent_rel_l2(x, 1.25 * x) == pytest.approx(0.25, rel=1e-6)
    assert latent_cosine(x, 3 * x) == pytest.approx(1.0)
    assert latent_cosine(x, -x) == -1.0
    assert latent_cosine(np.array([1.0, 0.0]), np.array([1.0, 1.0])) == pytest.approx(0.5**0.5)
    assert latent_rel_l2(np.array([3.0, 4.0]), np.array([3.0, 9.0])) == 1.0
    assert latent_rel_l2(x, x) == 0.0


def test_latents_in_parts_score_as_the_whole():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 7, 9)), rng.normal(size=(2, 7, 9))
    for of, function in (("rel_l2", latent_rel_l2), ("cosine", latent_cosine)):
        sums = LatentSums(of)
        for part in (slice(0, 2), slice(2, 7)):
            sums.update(x[:, part], y[:, part])
        assert sums.compute() == pytest.approx(function(x, y), rel=1e-12)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.ones(3), np.ones(4), "test has shape (4,), reference has (3,)"),
        (np.ones(3), np.ones((3, 1)), "accepted: equal shapes"),
        (np.ones(3, int), np.ones(3), "reference has dtype int64; accepted: float"),
        (np.ones(3), np.array([1, np.nan, 1]), "test has NaN or infinite values"),
        (np.ones(0), np.ones(0), "accepted: at least one value"),
    ],
)
def test_latents_that_cannot_be_compared_are_refused(x, y, message):
    for function in (latent_rel_l2, latent_cosine):
        with pytest.raises(ValueError, match=re.escape(message)):
            function(x, y)


def test_latents_of_zeros_have_no_score():
    with pytest.raises(Unavailable, match="the reference latents are all zero"):
        latent_rel_l2(np.zeros(3), np.ones(3))
    with pytest.raises(Unavailable, match="the test latents are all zero"):
        latent_cosine(np.ones(3), np.zeros(3))
