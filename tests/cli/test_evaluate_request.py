"""The options of `evaluate`: metrics that cannot be measured here are refused before any work."""

from __future__ import annotations

import pytest

from dit_accel.cli.common.errors import BadInput
from dit_accel.cli.evaluate_request import _metrics


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
