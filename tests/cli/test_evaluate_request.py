"""The options of `evaluate`: metrics, seeds and methods are checked before any work."""

from __future__ import annotations

import pytest

from dit_accel.cli.common.errors import BadInput
from dit_accel.cli.evaluate_request import _metrics, _seeds
from dit_accel.evaluation.methods import parse, parse_list


def test_a_metric_whose_extra_is_missing_is_refused_with_the_way_out(monkeypatch):
    monkeypatch.delenv("DIT_ACCEL_ST_LPIPS_WEIGHTS", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadInput) as refused:
        _metrics("psnr_db,st_lpips")
    assert str(refused.value) == (
        "--metrics has 'st_lpips', which cannot be measured here: no weights: "
        "pip install 'dit-accel[st-lpips]', or set DIT_ACCEL_ST_LPIPS_WEIGHTS"
    )
    monkeypatch.setenv("DIT_ACCEL_LPIPS_WEIGHTS", "gone.pth")
    with pytest.raises(BadInput, match="'lpips', which cannot be measured here: no weights: gone"):
        _metrics("lpips")


def test_jod_needs_nothing():
    assert _metrics("psnr_db,jod") == ("psnr_db", "jod")


@pytest.mark.parametrize("text", ["", "-1", "1.0", "0,\u00b2", "\u0663", "9" * 5000, str(2**63)])
def test_seeds_are_plain_whole_numbers(text):
    with pytest.raises(BadInput, match=r"--seeds is .*; accepted: whole numbers from 0, with"):
        _seeds(text)
    assert _seeds("0, 2,0,1") == (0, 2, 1)


def test_settings_whose_numbers_differ_late_are_two_and_have_jobs_of_their_own():
    """Their labels name the jobs, and the manifest has them as text."""
    settings = parse_list("edcw:0.1,0.12345678,0.123456789,1e-7,fewer-steps : 4")
    labels = [setting.label for setting in settings]
    assert labels == [
        "edcw:0.1", "edcw:0.12345678", "edcw:0.123456789", "edcw:1e-07", "fewer-steps:4",
    ]  # fmt: skip
    assert [parse(label) for label in labels] == list(settings)


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("fewer-steps:*", r"are all at least the 8 steps .*; accepted: numbers below 8, such as"),
        ("edcw:-1", r"method 'edcw' is given '-1'; accepted: threshold δ: a number, at least 0$"),
        ("speedup:0", r"given '0'; accepted: steps over computed steps: a number from 1 to 100$"),
    ],
)
def test_a_refused_method_has_what_is_accepted(text, accepted):
    with pytest.raises(ValueError, match=accepted):
        parse_list(text, steps=8)
