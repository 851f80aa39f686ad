"""What is predicted of a plan: a PSNR, its interval, and the share of clips that reach a target."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from profiles import candidate_of, profile_of, spread_out
from scipy import stats

from dit_accel.planning.prediction import (
    CONFIDENCE,
    FIRST_RUN,
    MIN_COUNTED_CLIPS,
    QualityDistribution,
    clopper_pearson_lower,
)
from dit_accel.planning.selection import for_quality, for_speedup

SLOW, FAST = (0, 1, 2, 4, 6, 8, 10, 12, 14, 16, 17, 18), (0, 2, 4, 8, 14)


def test_worked_example():
    """The share of all clips that reach a quality, at least, with 90 % confidence."""
    # All 10 of 10 reached it. If a share s of all clips does, 10 of 10 are seen with probability
    # s^10. That is less than 10 % for every s below 0.1^(1/10) = 0.794: so s is at least that.
    assert clopper_pearson_lower(10, 10) == pytest.approx(0.1**0.1)
    # 9 of 10: at the bound, 9 or more of 10 are seen with probability 10 s^9 (1 - s) + s^10 = 10 %.
    share = clopper_pearson_lower(9, 10)
    assert share == pytest.approx(0.663, abs=1e-3)
    assert 10 * share**9 * (1 - share) + share**10 == pytest.approx(0.1)
    # 45 of 45: 0.1^(1/45) = 0.950, so 45 clips are the fewest that can vouch for 95 %.
    assert clopper_pearson_lower(45, 45) == pytest.approx(0.950, abs=1e-3)
    assert clopper_pearson_lower(0, 10) == 0.0


def tailed(count: int, failing: int) -> list[float]:
    """So many prompts, most at 40 dB and some at 20: nothing like a normal distribution."""
    return [20.0] * failing + [40.0] * (count - failing)


@pytest.mark.parametrize(("failing", "computed"), [(0, FAST), (7, FAST), (8, SLOW), (20, SLOW)])
def test_of_many_prompts_the_share_that_reaches_is_counted(failing, computed):
    """Of 256 prompts 7 may fail. If really 5 % did, 7 or fewer would be seen less than once in ten
    times (the sum over k <= 7 of C(256, k) 0.05^k 0.95^(256 - k) is 0.055), 8 or fewer more often
    (0.103). So 95 % are sure to nine tenths with 7 failures, not with 8."""
    candidates = [
        candidate_of(SLOW, spread_out(50.0, 1.0)),
        candidate_of(FAST, tailed(256, failing)),
    ]
    choice = for_quality(profile_of(candidates), 30.0)
    assert choice.plan.computed == computed
    assert QualityDistribution.of(candidates[1]).guaranteed_share(30.0) <= (256 - failing) / 256
    assert (QualityDistribution.of(candidates[1]).guaranteed_share(30.0) >= 0.95) == (failing <= 7)


def test_fewer_than_many_prompts_are_not_counted():
    """45 without a failure: 0.95^45 = 0.099; 44 do not do, and a normal one is taken."""
    assert 0.95**MIN_COUNTED_CLIPS < 1 - CONFIDENCE < 0.95 ** (MIN_COUNTED_CLIPS - 1)
    distribution = QualityDistribution.of(candidate_of(FAST, [40.0] * MIN_COUNTED_CLIPS))
    assert distribution.guaranteed_share(39.0) == pytest.approx(0.1 ** (1 / 45))
    assert distribution.guaranteed_share(41.0) == 0.0


def test_the_interval_of_many_prompts_is_their_own():
    """101 prompts at 0, 1, ... 100 dB: 90 % of them lie between 5 and 95."""
    choice = for_speedup(profile_of([candidate_of(FAST, [float(i) for i in range(101)])]), 4.0)
    assert (choice.prediction.low_db, choice.prediction.high_db) == pytest.approx((5.0, 95.0))


def test_few_clips_stand_beside_what_is_known_of_other_models():
    """One clip of 40 dB, where 46 ± 6 was expected of the mean: that counts as (6 / 6)² = 1 clip.

    The mean is 43. Squares: 20 times 6², and half of the distance 6 squared; over 20 + 1. The next
    clip has 1 + 1/2 of that variance.
    """
    clip = dataclasses.replace(candidate_of(FAST, [40.0]), expected=torch.tensor([46.0, 6.0]))
    found = QualityDistribution.of(clip)
    assert found.mean == pytest.approx(43.0)
    variance = (20 * 36 + 36 / 2) / 21
    half = math.sqrt(variance * 1.5) * float(stats.t.ppf(0.95, 21))
    assert found.interval == pytest.approx((43.0 - half, 43.0 + half))
    below = (43.0 - 30.0) / math.sqrt(variance)
    unsure = math.sqrt(1 / 2 + below**2 / (2 * 21))  # of 1 + 1 clips, and 21 degrees of freedom
    share = float(stats.norm.cdf(below - 1.2816 * unsure))
    assert found.guaranteed_share(30.0) == pytest.approx(share, abs=1e-4)
    alone = QualityDistribution.of(candidate_of(FAST, [40.0]))
    assert alone.mean == pytest.approx(40.0) and alone.next_gain_db > found.next_gain_db > 0
    many = QualityDistribution.of(dataclasses.replace(clip, psnr_db=torch.full((44,), 40.0)))
    assert many.mean == pytest.approx(40.0, abs=0.2)


def test_measured_clips_correct_an_assumption():
    """Two clips, 3 and 5 dB better than predicted; before, 0 ± 6 dB was assumed.

    The assumption counts as one clip for the mean: (0 + 3 + 5) / 3. Squares about their own mean 4
    are 1 + 1; the distance to what was assumed adds 2/3 · 16; the variance of before counts as
    three: 3 · 36. Their sum over 3 + 2, times 1 + 1/3 for the next clip.
    """
    found = FIRST_RUN.with_measured((3.0, 5.0))
    assert found.offset_db == pytest.approx(8 / 3) and found.freedom == 5
    variance = (2 + 2 / 3 * 16 + 3 * 36) / 5 * 4 / 3
    assert found.deviation_db == pytest.approx(math.sqrt(variance))
    assert "measured on 2 clips of this model, compared" in found.reliability
    assert FIRST_RUN.with_measured(()) == FIRST_RUN


def test_from_nineteen_clips_on_they_are_counted():
    differences = tuple(float(value) for value in range(-9, 10))  # 19 of them
    found = FIRST_RUN.with_measured(differences)
    assert found.share(30.0, 21.0) == pytest.approx(19 / 20)  # all reach it: of 20 at least 19
    assert found.share(30.0, 22.5) == pytest.approx(17 / 20)
    fewer = FIRST_RUN.with_measured(differences[1:])
    assert fewer.share(30.0, 0.0) > 0.99  # by the normal distribution


@pytest.mark.parametrize("seed", range(5))
def test_the_counted_share_is_reached_by_the_next_clip(seed):
    """Of many series of clips, whatever their distribution, at least the share reaches it."""
    draw = torch.Generator().manual_seed(seed)
    reached = claimed = 0.0
    for _ in range(400):
        clips = torch.empty(25).exponential_(generator=draw).mul(-4.0).tolist()
        share = FIRST_RUN.with_measured(tuple(clips[:-1])).share(30.0, 25.0)
        claimed, reached = claimed + share / 400, reached + (30 + clips[-1] >= 25) / 400
    assert claimed <= reached + 0.04 and claimed > 0.5


def test_measured_clips_are_counted_with_those_of_calibration():
    candidate = candidate_of(FAST, [40.0] * 45)
    own = QualityDistribution.of(candidate)
    worse = QualityDistribution.of(candidate, (-10.0,) * 5)
    assert own.guaranteed_share(36.0) > 0.94 > 0.9 > worse.guaranteed_share(36.0)
    assert len(worse.psnr_db) == 50 and worse.mean == pytest.approx(39.0)
