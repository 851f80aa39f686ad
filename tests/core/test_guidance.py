"""How a first step weighs its forwards: measured from what the sampler gets."""

from __future__ import annotations

import pytest
import torch

from dit_accel.core.guidance import FirstStep

COND, UNCOND, OTHER = torch.randn(3, 2, 4, 6, 5, generator=torch.Generator().manual_seed(0))


def test_worked_example():
    """u + 3 (c - u) = 1 c - 2 (u - c)."""
    assert FirstStep((COND, UNCOND - COND), UNCOND + 3 * (COND - UNCOND)).weights() == (1.0, -2.0)


def test_frames_that_are_given_say_nothing():
    guided = UNCOND + 3 * (COND - UNCOND)
    guided[:, :, :2] = OTHER[:, :, :2]  # a third of the frames
    assert FirstStep((COND, UNCOND - COND), guided).weights() == pytest.approx(
        (1.0, -2.0), abs=0.02
    )


@pytest.mark.parametrize("cut", [(slice(None), slice(None), slice(1, None)),
                                 (slice(None), slice(2))])  # fmt: skip
def test_the_sampler_may_get_a_part(cut):
    guided = (UNCOND + 3 * (COND - UNCOND))[cut]
    assert FirstStep((COND, UNCOND - COND), guided).weights() == (1.0, -2.0)


def test_halves_of_one_forward_are_one_component():
    batch = torch.cat([UNCOND, COND])
    assert FirstStep((batch,), UNCOND + 3 * (COND - UNCOND)).weights() == (1.0,)
    assert FirstStep((batch,), UNCOND + 3 * OTHER).weights() is None


def test_the_part_that_the_sampler_gets_is_taken():
    joined = torch.cat([COND.flatten(1), torch.ones(2, 9)], dim=1)
    main = lambda value: value[:, : COND[0].numel()].reshape(COND.shape)  # noqa: E731
    assert FirstStep((joined,), COND, main=main).weights() == (1.0,)


@pytest.mark.parametrize("guided", [None, OTHER, COND + 3 * OTHER, COND * UNCOND])
def test_what_is_no_weighted_sum_has_no_weights(guided):
    assert FirstStep((COND, UNCOND - COND), guided).weights() is None
    assert FirstStep((COND,), guided).weights() is None


@pytest.mark.parametrize("lost", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["component", "guided"])
def test_what_is_not_finite_has_no_weights(lost, where):
    cond, guided = COND.clone(), UNCOND + 3 * (COND - UNCOND)
    lose = cond if where == "component" else guided
    lose *= lost
    assert FirstStep((cond, UNCOND - COND), guided).weights() is None
